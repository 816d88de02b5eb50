"""The lines of a JSONL file, plain or compressed: numbered, in bounded memory, each parsed strictly.

A line that cannot be read is named by its number and never repeated: it may hold what nobody should see in a log.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError

MAX_LINE_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 20
_MAX_SHOWN_NAME = 60
_SUFFIX = re.compile(r"\.(?:jsonl|ndjson)(?:\.(?:gz|zst))?$", re.IGNORECASE)
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_NAMES = {".gz": "gzip", ".zst": "zstd"}
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_BLANK = b" \t\r"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class Refused(ValueError):  # noqa: N818 - an answer, turned into a coded error by whoever knows file and line
    """A value that is not taken; the message says why, without repeating it."""


def is_jsonl(name: str) -> bool:
    """Whether a file's name is one of JSONL: ``.jsonl`` or ``.ndjson``, plain or with ``.gz`` or ``.zst``."""
    return _SUFFIX.search(name) is not None


def bad_line(path: str, number: int, reason: str) -> SpecbatchError:
    """A line cannot be read."""
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CORRUPT, f"{path} line {number}: {reason}; correct the line or leave it out"
    )


def shown(name: str) -> str:
    """A key or a column's name, short and printable, for a message."""
    return ascii(name if len(name) <= _MAX_SHOWN_NAME else f"{name[:_MAX_SHOWN_NAME]}…")


class LineReader:
    """Reads the lines of one open file, once.

    Attributes:
        sha256, num_bytes: of the file as it is stored, once all lines are read.
        num_text_bytes: of the text in it.
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = _Hashed(file)
        self.num_text_bytes = 0

    @property
    def sha256(self) -> str:
        """Hex digest."""
        return self._file.digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Bytes that were read."""
        return self._file.num_bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line) of every line that is not blank; the byte order mark is left out.

        Raises:
            SpecbatchError: ``JOB_INPUT_CORRUPT``: damaged, cut short or not UTF-8; ``JOB_INPUT_LIMIT``: a line is
                larger than is taken; what reading from S3 raises.
        """
        number = 0
        begun: list[bytes] = []
        num_begun = 0
        for chunk in self._chunks():
            first, *others = chunk.split(b"\n")
            begun.append(first)
            num_begun += len(first)
            if others:
                number += 1
                if line := b"".join(begun).strip(_BLANK):
                    yield number, line
                for line in others[:-1]:
                    number += 1
                    if line := line.strip(_BLANK):
                        yield number, line
                begun, num_begun = [others[-1]], len(others[-1])
            if num_begun > MAX_LINE_BYTES:
                raise SpecbatchError(
                    ErrorCode.JOB_INPUT_LIMIT,
                    f"{self._path} line {number + 1} has more than {MAX_LINE_BYTES >> 20} MiB; leave it out",
                )
        if line := b"".join(begun).strip(_BLANK):
            yield number + 1, line

    def _chunks(self) -> Iterator[bytes]:
        """The text in pieces."""
        compression = self._compression()
        stream: Any = self._file
        if compression is not None:
            stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), compression)
        try:
            is_first = True
            while chunk := stream.read(_CHUNK_BYTES):
                self.num_text_bytes += len(chunk)
                if is_first:
                    if chunk.startswith(_WIDE_BOMS):
                        raise self._corrupt("it is UTF-16 or UTF-32; convert it to UTF-8")
                    chunk, is_first = chunk.removeprefix(_BOM), False
                    if not chunk:
                        continue
                yield chunk
        except (pa.ArrowException, OSError) as error:
            if compression is not None:
                reason = f"its {compression} data is damaged or cut short"
                raise self._corrupt(f"{reason}; write it again or leave it out") from error
            raise self._corrupt(f"it cannot be read ({error.strerror or type(error).__name__})") from error

    def _compression(self) -> str | None:
        """By the first bytes, whatever the name says; a name that promises a compression must keep it."""
        head = self._file.peek()
        found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        promised = next((name for end, name in _NAMES.items() if self._path.lower().endswith(end)), None)
        if promised is not None and found != promised:
            raise self._corrupt(f"its name says {promised}, which it is not; write it again or rename it")
        return found

    def _corrupt(self, reason: str) -> SpecbatchError:
        return SpecbatchError(ErrorCode.JOB_INPUT_CORRUPT, f"{self._path} cannot be read as JSONL: {reason}")


class _Hashed(io.RawIOBase):
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._inner = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def peek(self) -> bytes:
        """The first bytes, which are read again."""
        self._inner.seek(0)
        head = self._inner.read(4)
        self._inner.seek(0)
        return head

    def readable(self) -> bool:
        """See ``io.IOBase``."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """See ``io.RawIOBase``."""
        data = self._inner.read(-1 if size is None else size)
        self.digest.update(data)
        self.num_bytes += len(data)
        return data


def parse_line(path: str, number: int, line: bytes) -> dict[str, Any]:
    """The object that a line holds.

    Taken is JSON as its standard has it: no NaN, no key twice in one object, no half of a surrogate pair.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT`` naming the line.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_line(path, number, f"not valid UTF-8 at byte {error.start + 1}") from None
    try:
        value = _decode(text)
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise bad_line(path, number, f"not valid JSON at character {error.colno} ({_told(error)})") from None
    except Refused as error:
        raise bad_line(path, number, str(error)) from None
    except UnicodeEncodeError:
        raise bad_line(path, number, "it holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise bad_line(path, number, "nested too deeply") from None
    except ValueError:  # Python refuses to read whole numbers of thousands of digits
        raise bad_line(path, number, "it holds a number with too many digits") from None
    if type(value) is not dict:
        raise bad_line(path, number, f"it holds {KIND_NAMES[type(value)]} instead of an object")
    return value


KIND_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
"""What messages call the kinds of JSON values."""


def _told(error: json.JSONDecodeError) -> str:
    """The parser's complaint without anything that it quotes."""
    return error.msg.partition(":")[0].strip().lower().removesuffix(" at")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Refused(f"the key {shown(doubled)} stands twice in one object")
    return found


def _constant(name: str) -> float:
    raise Refused(f"{name} is not JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant).decode
