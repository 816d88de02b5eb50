"""Identity of a job: S, the digest of everything that decides the text and the files.

Whatever is not in ``identity_fields`` is execution (draft, K, workers, batch size, shard size): free to change when
a job is resumed. Under ``distribution`` coupling the text depends on draft and K, so that they are identity there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
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
    chat_sha256: str | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields that S is the digest of.

    Args:
        target_files: file name -> hex SHA-256 of the target's configuration and weights. Names and places of
            models are left out: the same weights in another folder give the same text.
        dtype: resolved, never ``auto``. model_path: ``lean`` or ``generic``: code that rounds differently.
        inputs: pinned files in their order; their paths are left out, a dataset that moved is the same dataset.
        draft_files: file name -> hex SHA-256 of the draft's configuration and weights, None without a draft.
        chat_sha256: digest of the target's chat template, None where prompts are no chats.
        quantization: of the target's weights, None where they are dense.
    """
    fields: dict[str, Any] = {
        "format": IDENTITY_FORMAT,
        "model": {
            "files": dict(target_files),
            "tokenizer": tokenizer_sha256,
            "dtype": dtype,
            "path": model_path,
        },
        "prompt": {"column": spec.input.prompt_column, **_changed(spec.input, _PROMPT_FIELDS)},
        "generation": _without(spec.generation.model_dump(mode="json"), {"seed_by": "row"}),
        "output": {
            "id_column": spec.input.id_column,
            "limit": spec.input.limit,
            **_changed(spec.input, _COLUMN_FIELDS),
            **_changed(spec.results, _RESULT_FIELDS),
        },
        "inputs": [[file.name, file.size_bytes, file.footer_sha256, file.num_rows] for file in inputs],
    }
    if quantization is not None:
        fields["model"]["quantization"] = dict(quantization)
    if spec.models.tensor_parallel_size > 1:  # absent where it is 1: the identity of older jobs stays as it is
        fields["model"]["tensor_parallel_size"] = spec.models.tensor_parallel_size
    fields["model"].update(_changed(spec.models, ("kv_cache_dtype", "bitwise")))
    if chat_sha256 is not None:
        fields["prompt"]["chat_template"] = chat_sha256
    if spec.generation.coupling == "distribution":
        fields["speculation"] = {"K": spec.execution.speculation, "draft": draft_files and dict(draft_files)}
    return fields


_PROMPT_FIELDS = ("messages_column", "template", "system", "row_params", "truncate_prompt", "on_bad_file")
_COLUMN_FIELDS = ("keep_columns", "rename", "dedupe", "allow_empty")
_RESULT_FIELDS = ("prefix", "compression", "row_group_rows")


def _changed(section: BaseModel, names: Sequence[str]) -> dict[str, Any]:
    """The settings that are not at their default. A setting that is new leaves the identity of older jobs alone."""
    values, fields = section.model_dump(mode="json"), type(section).model_fields
    return {name: values[name] for name in names if getattr(section, name) != fields[name].default}


def _without(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def identity_sha256(fields: Mapping[str, Any]) -> str:
    """S: hex SHA-256 of the canonical JSON of the fields."""
    return sha256_hex(canonical_json(fields))


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """``field: old → new`` for every field that differs, sorted by name; what one side lacks is ``absent``.

    Input files are matched by name. Long texts are shown by length and digest: a template or a system prompt has no
    place in a message.
    """
    left, right = dict(_leaves(old)), dict(_leaves(new))
    return tuple(
        f"{name}: {_show(left.get(name, _ABSENT))} → {_show(right.get(name, _ABSENT))}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name, _ABSENT) != right.get(name, _ABSENT)
    )


def other_job_error(old: Mapping[str, Any], new: Mapping[str, Any], uri: str) -> SpecbatchError:
    """Why a command cannot go on with the job that an output holds.

    Args:
        old: identity fields of the job that is there. new: those of the command; another S.

    Returns:
        JOB_SPEC_CHANGED with the fields that differ and what to restore; JOB_FORMAT where the two identities are
        made by different versions, whose fields cannot be compared.
    """
    if old.get("format") != new.get("format"):
        formats = [repr(fields.get("format"))[:60] for fields in (old, new)]
        return SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"{uri} was begun by another version of specbatch (its identity is {formats[0]}, this version makes "
            f"{formats[1]}); use the version that began it, or choose another output",
        )
    changes = diff_fields(old, new)
    shown = "; ".join(changes[:_MAX_DIFFERENCES])
    more = f"; and {len(changes) - _MAX_DIFFERENCES} more" if len(changes) > _MAX_DIFFERENCES else ""
    if old.get("inputs") != new.get("inputs"):
        remedy = "restore the dataset as it was, or choose another --output for the new one"
    elif old.get("model") != new.get("model"):
        remedy = "use the target that it began with, or choose another --output"
    else:
        remedy = "choose another --output, or use the old settings"
    return SpecbatchError(
        ErrorCode.JOB_SPEC_CHANGED, f"{uri} holds a job with other settings ({shown}{more}); {remedy}"
    )


_ABSENT = object()
_MAX_DIFFERENCES = 10
_HEX = frozenset("0123456789abcdef")
_MAX_TEXT = 40


@dataclass(frozen=True, slots=True)
class _Pin:
    """One input file as the identity pins it, and its place among them."""

    place: int
    size_bytes: Any
    footer_sha256: Any
    num_rows: Any

    def __str__(self) -> str:
        return (
            f"file {self.place + 1} with {self.num_rows} rows in {self.size_bytes} bytes, {_show(self.footer_sha256)}"
        )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{key}.")
        elif key == "inputs" and not prefix:
            yield from _pins(item)
        else:
            yield f"{prefix}{key}", item


def _pins(inputs: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """A file of a name that was given before (two folders may hold one) gets a number."""
    seen: Counter[str] = Counter()
    for place, entry in enumerate(inputs):
        if not (isinstance(entry, list | tuple) and len(entry) == 4):
            yield f"inputs[{place}]", entry
            continue
        name = str(entry[0])
        seen[name] += 1
        suffix = f" ({seen[name]})" if seen[name] > 1 else ""
        yield f"input {name}{suffix}", _Pin(place, *entry[1:])


def _show(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, str):
        if len(value) == 64 and set(value) <= _HEX:
            return value[:12]
        if len(value) > _MAX_TEXT:
            return f"a text of {len(value)} characters, {sha256_hex(value.encode('utf-8', 'surrogatepass'))[:12]}"
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return "none" if value is None else str(value)
