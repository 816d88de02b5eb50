"""Settings that may name a file with their text: ``--template @prompt.jinja``, on the command line and in job files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import MAX_TEMPLATE_CHARACTERS

TEXT_FILE_PATHS = ("input.template", "input.system")
_MARK = "@"
_MAX_BYTES = 4 * MAX_TEMPLATE_CHARACTERS


def read_text_files(values: Mapping[str, Any], origins: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The values with ``@FILE`` replaced by what the file holds. ``@@`` stands for a text that begins with ``@``.

    Line ends are kept but for the last one, which editors put there and no prompt means.

    Args:
        origins: where each value was given, for messages.
        folder: that relative names start from.

    Raises:
        SpecbatchError: JOB_CONFIG, the file cannot be read, is too large, or is not UTF-8.
    """
    found = dict(values)
    for path in TEXT_FILE_PATHS:
        value = found.get(path)
        if isinstance(value, str) and value.startswith(_MARK):
            text = value.removeprefix(_MARK)
            found[path] = (
                text if text.startswith(_MARK) else _read(folder / Path(text).expanduser(), text, origins[path])
            )
    return found


def _read(path: Path, name: str, origin: str) -> str:
    def refused(reason: str) -> SpecbatchError:
        return SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"{origin}: the file {name!r} {reason}; give @FILE with a text, or @@ for a text that begins with @",
        )

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise refused(f"cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})") from None
    if len(data) > _MAX_BYTES:
        raise refused(f"is larger than {_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(f"is not UTF-8 at byte {error.start}") from None
    return text.removesuffix("\n").removesuffix("\r")
