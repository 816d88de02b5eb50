"""Identity of a job: S, the digest of everything that decides the text and the files.

Whatever is not in ``identity_fields`` is execution (draft, K, workers, batch size, shard size): free to change when
a job is resumed. Under ``distribution`` coupling the text depends on draft and K, so that they are identity there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.plan import InputFile
from specbatch.schemas.spec import JobSpec

IDENTITY_FORMAT = "specbatch/identity/2"


def identity_fields(
    spec: JobSpec,
    *,
    target_files: Mapping[str, str],
    tokenizer_sha256: str,
    dtype: str,
    model_path: str,
    inputs: Sequence[InputFile],
    draft_files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The fields that S is the digest of.

    Args:
        target_files: file name -> hex SHA-256 of the target's configuration and weights. Names and places of
            models are left out: the same weights in another folder give the same text.
        dtype: resolved, never ``auto``. model_path: ``lean`` or ``generic``: code that rounds differently.
        inputs: pinned files in their order; their paths are left out, a dataset that moved is the same dataset.
        draft_files: file name -> hex SHA-256 of the draft's configuration and weights, None without a draft.
    """
    fields = {
        "format": IDENTITY_FORMAT,
        "model": {
            "files": dict(target_files),
            "tokenizer": tokenizer_sha256,
            "dtype": dtype,
            "path": model_path,
        },
        "prompt": {"column": spec.input.prompt_column},
        "generation": spec.generation.model_dump(mode="json"),
        "output": {"id_column": spec.input.id_column, "limit": spec.input.limit},
        "inputs": [[file.name, file.size_bytes, file.footer_sha256, file.num_rows] for file in inputs],
    }
    if spec.generation.coupling == "distribution":
        fields["speculation"] = {"K": spec.execution.speculation, "draft": draft_files and dict(draft_files)}
    return fields


def identity_sha256(fields: Mapping[str, Any]) -> str:
    """S: hex SHA-256 of the canonical JSON of the fields."""
    return sha256_hex(canonical_json(fields))


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """``field: old → new`` for every field that differs, sorted by name; what one side lacks is ``absent``."""
    left, right = dict(_leaves(old)), dict(_leaves(new))
    return tuple(
        f"{name}: {_show(left.get(name, _ABSENT))} → {_show(right.get(name, _ABSENT))}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    )


_ABSENT = object()


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        elif key == "inputs" and not prefix:
            for index, entry in enumerate(item):
                yield f"inputs[{index}]", list(entry)
        else:
            yield f"{prefix}{key}", item


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, list):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return repr(value) if isinstance(value, str) else "none" if value is None else str(value)
