"""Between the files of a dataset and the Parquet that workers read: copies of JSONL, and settings of batch files.

A copy is made once, create-once, at ``OUT/_specbatch/input/<sha16>.parquet``. Until a job begins it lies in a private
temporary folder: planning writes nothing. What the identity pins are the originals, so that a resume, which reads them
once for their digest, finds the copies that are there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from specbatch.jobs.output.amended import AMENDMENTS_FOLDER
from specbatch.jobs.spec.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import InputSpec, JobSpec
from specbatch.storage.store import NotFound, open_store

if TYPE_CHECKING:
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.storage.inputs import Inputs

INPUT_FOLDER = "_specbatch/input"
QUARANTINED_FIELD = "quarantined"
"""The field of an identity with the files that are left out: [name, code] of each."""

_MAX_COPY_BYTES = 5 << 30
_AMENDMENT = re.compile(rf"/{AMENDMENTS_FOLDER}/\d+$")
_BATCH_ORIGIN = "OpenAI batch file"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a JSONL file.

    Attributes:
        home, key: the output, and its object, where the copy is to lie.
        spool: where it lies until the job begins; None where it is at its place.
    """

    home: str
    key: str
    spool: Path | None

    @property
    def path(self) -> str:
        """Where it is to lie, as workers read it."""
        return f"{self.home.rstrip('/')}/{self.key}"


def with_pinned_datasets(settings: Settings) -> Settings:
    """Settings in which datasets of a hub are pinned to the commits that they are now.

    Raises:
        SpecbatchError: what ``pin_dataset`` raises; ``JOB_CONFIG`` where there is no place for the output.
    """
    given = settings.spec.input
    if not any(name.startswith("hf://") for name in given.datasets):
        return settings
    from specbatch.storage.hub import is_hub, pin_dataset

    if settings.spec.output is None and is_hub(given.datasets[0]):
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG, f"results cannot lie beside {given.datasets[0]}; say where with --output"
        )
    datasets = tuple(pin_dataset(name) if is_hub(name) else name for name in given.datasets)
    spec = settings.spec.model_copy(update={"input": given.model_copy(update={"datasets": datasets})})
    return Settings(spec=spec, origins=settings.origins)


def places(datasets: Sequence[str]) -> list[str]:
    """Those of the datasets that an output could lie in."""
    return [name for name in datasets if not name.startswith("hf://")]


def read_dataset(given: InputSpec, known_bad: Mapping[str, str] | None = None) -> Inputs:
    """The pinned files of a job.

    Args:
        known_bad: name -> code of the files that a job which goes on has left out; None for a job that begins.

    Raises:
        SpecbatchError: what ``read_inputs`` raises; ``JOB_INPUT_EMPTY`` where there are no rows.
    """
    from specbatch.storage.inputs import read_inputs

    # Which files are left out is settled when a job begins: one that goes bad later is not passed over.
    on_bad_file = given.on_bad_file if known_bad is None else "fail"
    inputs = read_inputs(given.datasets, on_bad_file=on_bad_file, allow_empty=given.allow_empty, known_bad=known_bad)
    if not inputs.num_rows and not given.allow_empty:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY,
            f"dataset {', '.join(given.datasets)} has no rows; there is nothing to do "
            "(--allow-empty makes that a complete job)",
        )
    return inputs


def known_bad_files(identity_fields: Mapping[str, Any]) -> dict[str, str]:
    """Name -> code of the files that a job has left out, by the fields of its identity."""
    return {str(name): str(code) for name, code in identity_fields.get(QUARANTINED_FIELD, ())}


def dataset_fields(inputs: Inputs, given: InputSpec) -> dict[str, Any]:
    """What the identity holds of a dataset besides its files; nothing of one that is Parquet of one's own."""
    from specbatch.storage.jsonl import JSONL_FORMAT

    fields: dict[str, Any] = {}
    if inputs.sources:
        fields["jsonl"] = JSONL_FORMAT
    if hub := [name for name in given.datasets if name.startswith("hf://")]:
        fields["hub"] = hub
    if inputs.skipped:
        fields[QUARANTINED_FIELD] = [[one.name, one.code] for one in inputs.skipped]
    return fields


def with_batch_settings(settings: Settings, inputs: Inputs) -> Settings:
    """Settings in which an OpenAI batch file has named its columns, where they were not given."""
    from specbatch.storage.openai_batch import ID_COLUMN, MESSAGES_COLUMN

    kind = _kind(inputs)
    if kind == "rows":
        return settings
    given = settings.spec.input
    changes: dict[str, Any] = {}
    if kind == "chat" and given.messages_column is None and given.template is None:
        changes["messages_column"] = MESSAGES_COLUMN
    if given.id_column is None:
        changes["id_column"] = ID_COLUMN
    if not given.row_params:
        changes["row_params"] = True
    spec = settings.spec.model_copy(update={"input": given.model_copy(update=changes)})
    origins = {**settings.origins, **{f"input.{name}": _BATCH_ORIGIN for name in changes}}
    return Settings(spec=spec, origins=MappingProxyType(origins))


def dataset_notes(inputs: Inputs) -> tuple[str, ...]:
    """What the user should know of a dataset, a line each."""
    notes = [*inputs.notes]
    notes += [f"left out ({one.code}): {one.reason}" for one in inputs.skipped]
    if _kind(inputs) != "rows":
        notes.append("the models that the batch file names are kept in the column 'model'; all rows go to the target")
    return tuple(notes)


def make_copies(inputs: Inputs, spec: JobSpec, output: str) -> tuple[Inputs, tuple[Copy, ...], tuple[str, ...]]:
    """The dataset with a copy of each JSONL file: the one at its place, or a new one in a temporary folder.

    Returns:
        The dataset, the copies, and lines that the user should read.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT`` naming file and line, ``JOB_INPUT_UNSUPPORTED``, ``JOB_INPUT_CHANGED``,
            ``JOB_SCHEMA_MISMATCH``; ``SHARD_DISK_FULL``, ``JOB_OUTPUT_UNWRITABLE``: no room for temporary files.
    """
    from specbatch.storage.inputs import with_copies
    from specbatch.storage.jsonl import Rules, Wanted, copy_name, make_rules

    places = [place for place, source in sorted(inputs.sources.items()) if source.num_rows]
    if not places:
        return inputs, (), ()
    sources = [inputs.sources[place] for place in places]
    wanted = Wanted(spec.input.messages_column, spec.generation)
    store = open_store(home_of(output), single_writer=spec.execution.single_writer)
    copies: dict[str, Copy] = {}
    paths: dict[int, str] = {}
    rules: Rules | None = None
    for place, source in zip(places, sources, strict=True):
        key = f"{INPUT_FOLDER}/{copy_name(source, sources, wanted)}"
        if key not in copies:
            copy = Copy(store.uri, key, None)
            try:
                store.size(key)
            except NotFound:
                rules = rules or make_rules(sources, [inputs.shapes.get(one) for one in places], wanted)
                copy = replace(copy, spool=_written(source, rules))  # create-once comes when the job begins
            copies[key] = copy
        spool = copies[key].spool
        paths[place] = copies[key].path if spool is None else str(spool)
    return with_copies(inputs, paths), tuple(copies.values()), tuple(rules.notes) if rules is not None else ()


def place_copies(prepared: PreparedJob) -> PreparedJob:
    """Write the copies of a job that begins to its output, and read them there from now on.

    Raises:
        SpecbatchError: ``JOB_INPUT_LIMIT``, a copy is too large for S3; what ``Store.create`` raises.
    """
    from specbatch.jobs.planning.prepare import follow_inputs

    moved: dict[str, str] = {}
    for copy in prepared.copies:
        if copy.spool is None:
            continue
        store = open_store(copy.home, single_writer=prepared.spec.execution.single_writer)
        if not store.is_local and copy.spool.stat().st_size > _MAX_COPY_BYTES:
            raise SpecbatchError(
                ErrorCode.JOB_INPUT_LIMIT,
                f"{copy.path} would have more than {_MAX_COPY_BYTES >> 30} GiB, the most that one request stores; "
                "split the JSONL file that it is the copy of",
            )
        store.create(copy.key, copy.spool)
        copy.spool.unlink(missing_ok=True)
        moved[str(copy.spool)] = copy.path
    if not moved:
        return prepared
    inputs = tuple(replace(file, path=moved.get(file.path, file.path)) for file in prepared.inputs)
    copies = tuple(replace(copy, spool=None) for copy in prepared.copies)
    return replace(prepared, inputs=inputs, copies=copies, shards=follow_inputs(prepared.shards, inputs))


def _written(source: Any, rules: Any) -> Path:
    """A copy in the temporary folder."""
    from specbatch.storage.jsonl import write_copy
    from specbatch.storage.spool import new_spool_path

    spool = new_spool_path()
    try:
        write_copy(source, rules, spool)
    except BaseException as error:
        spool.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = (error.strerror or type(error).__name__).lower()
        raise SpecbatchError(
            ErrorCode.SHARD_DISK_FULL,
            f"no room for the Parquet copy of {source.found.path} in {spool.parent.parent}: {reason}; "
            "free some space or set TMPDIR to another folder",
        ) from error
    return spool


def _kind(inputs: Inputs) -> str:
    return next((source.kind for source in inputs.sources.values() if source.num_rows), "rows")


def home_of(output: str) -> str:
    """The output that holds the input folder: an amendment reads what its parent has."""
    return _AMENDMENT.sub("", output.rstrip("/"))


def unused_copies(keys: Sequence[str], paths: Sequence[str], plan: str) -> list[str]:
    """Those of the keys below ``INPUT_FOLDER`` that a job with these segment paths and this plan never reads."""
    used = {f"{INPUT_FOLDER}/{path.rpartition('/')[2]}" for path in paths} | {duplicates_key(plan)}
    return [key for key in keys if key.startswith(f"{INPUT_FOLDER}/") and key not in used]


def duplicates_key(plan: str) -> str:
    """Where the duplicates of a job are marked, by the digest of its plan."""
    return f"{INPUT_FOLDER}/duplicates-{plan}.parquet"
