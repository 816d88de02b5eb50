"""The deep part of ``verify``: against the dataset and the target themselves, not only against what was written down.

Every column that passes through is compared with the dataset, and some rows, drawn by the manifest's digest, are
decoded again by the target alone, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from specbatch.jobs.verification import Verification
from specbatch.jobs.verify_files import Absent, RemoteSource, Source, Unsound, map_file, open_regular, read_bounded
from specbatch.jobs.verify_parquet import open_untrusted
from specbatch.jobs.verify_plan import PlannedShard
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.rows import RESERVED_COLUMNS

NUM_REGENERATED = 8
_MAX_PLAN_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class DeepCheck:
    """What was found, and what was done or could not be."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A result that is decoded again."""

    row_id: int
    sample: int
    prompt: str
    seed: int
    token_ids: list[int]


def check_deep(job: Verification) -> DeepCheck:
    """Compare a sound output, or amendment, with its dataset, and decode a few of its rows again."""
    source = job.source
    problems: list[str] = []
    notes: list[str] = []
    fields = job.job["identity"]["fields"]
    prompt_column = str(fields["prompt"]["column"])
    drawn: list[_Drawn] = []
    try:
        paths = _segment_paths(source, job.job["identity"]["P"])
        num_results = 0
        for shard in job.shards:
            with source.open(f"data/{shard.name}") as file, map_file(file) as data:
                part = _read(open_untrusted(data, shard.name), shard.name)
            num_results += part.num_rows
            problems += _compare(part, shard, _input_rows(paths[shard.index]))
            drawn = _draw(drawn, part, prompt_column, job.manifest_sha256 or "")
        notes.append(f"compared {num_results:,} results with the rows of the dataset, every column of theirs")
    except Absent as finding:
        notes.append(f"not compared with the dataset: {finding} is not there")
    except (Unsound, SpecbatchError) as finding:
        problems.append(f"the dataset: {finding}")
    if not problems and drawn:
        _regenerate(drawn, job.job, problems, notes)
    return DeepCheck(tuple(problems), tuple(notes))


def _segment_paths(source: Source, plan: str) -> dict[int, list[tuple[str, str, int, int]]]:
    """(path, footer digest, first row, one past the last row) of every segment, by shard."""
    name = f"_specbatch/plan-{plan}.parquet"
    parquet = open_untrusted(read_bounded(source, name, _MAX_PLAN_BYTES), name)
    names = ["shard", "path", "footer_sha256", "row_start", "row_stop"]
    table = parquet.read(columns=names, use_threads=False)
    found: dict[int, list[tuple[str, str, int, int]]] = {}
    for shard, *place in zip(*(table.column(column).to_pylist() for column in names), strict=True):
        found.setdefault(shard, []).append((place[0], place[1], place[2], place[3]))
    return found


def _input_rows(segments: list[tuple[str, str, int, int]]) -> pa.Table:
    tables = []
    for path, footer_sha256, start, stop in segments:
        with _open_input(path) as file, map_file(file) as data:
            length = int.from_bytes(data[-8:-4], "little")
            if hashlib.sha256(data[len(data) - 8 - length : len(data) - 8]).hexdigest() != footer_sha256:
                raise Unsound(f"{path} is not the file that was planned")
            tables.append(_rows(open_untrusted(data, path), path, start, stop))
    names = tables[0].schema.names
    return pa.concat_tables([table.select(names).cast(tables[0].schema) for table in tables])


@contextmanager
def _open_input(path: str) -> Iterator[BinaryIO]:
    if path.startswith("s3://"):
        from specbatch.storage.store import open_store

        folder, _, name = path.rpartition("/")
        with RemoteSource(open_store(folder)).open(name) as file:
            yield file
        return
    with open_regular(Path(path).parent.resolve(), Path(path).name) as file:
        yield file


def _rows(parquet: pq.ParquetFile, name: str, start: int, stop: int) -> pa.Table:
    """Rows [start, stop) of a file; row groups that hold none of them are not read."""
    at, first = 0, 0
    groups: list[int] = []
    for group in range(parquet.metadata.num_row_groups):
        num_rows = parquet.metadata.row_group(group).num_rows
        if at < stop and at + num_rows > start:
            first = first if groups else at
            groups.append(group)
        at += num_rows
    try:
        table = parquet.read_row_groups(groups, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Unsound(f"{name} cannot be read: {str(error).splitlines()[0][:200]}") from error
    return table.slice(start - first, stop - start)


def _read(parquet: pq.ParquetFile, name: str) -> pa.Table:
    try:
        return parquet.read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Unsound(f"{name} cannot be read: {str(error).splitlines()[0][:200]}") from error


def _compare(part: pa.Table, shard: PlannedShard, rows: pa.Table) -> Iterator[str]:
    """The columns of the dataset must stand in the part as they are, once for every sample."""
    passed = [name for name in part.schema.names if name not in RESERVED_COLUMNS]
    if sorted(passed) != sorted(name for name in rows.schema.names if name not in RESERVED_COLUMNS):
        yield f"{shard.name}: its columns are not those of the dataset"
        return
    picks = shard.picks or ((shard.row_start, shard.row_stop, None),)
    row_ids = np.concatenate([np.arange(start, stop) for start, stop, _ in picks])
    expected = rows.take(pc.index_in(part.column("row_id"), pa.array(row_ids)))
    for name in passed:
        found, wanted = part.column(name), expected.column(name)
        if found.type != wanted.type:
            yield f"{shard.name}: column {name} is {found.type}, in the dataset {wanted.type}"
        elif not found.equals(wanted):
            yield f"{shard.name}: column {name} does not hold what the dataset does"


def _draw(kept: list[_Drawn], part: pa.Table, prompt_column: str, salt: str) -> list[_Drawn]:
    """The results with the smallest digests of all that were seen: a draw that nobody can choose."""

    def lot(row_id: int, sample: int) -> str:
        return hashlib.sha256(f"{salt} {row_id} {sample}".encode()).hexdigest()

    ok = part.filter(pc.equal(part.column("status").cast(pa.string()), "ok"))
    pairs = zip(ok.column("row_id").to_pylist(), ok.column("sample_index").to_pylist(), strict=True)
    places = sorted(range(ok.num_rows), key=dict(enumerate(lot(*pair) for pair in pairs)).__getitem__)
    chosen = ok.take(places[:NUM_REGENERATED])
    new = [
        _Drawn(row["row_id"], row["sample_index"], row[prompt_column], row["row_seed"], row["completion_token_ids"])
        for row in chosen.to_pylist()
    ]
    return sorted([*kept, *new], key=lambda one: lot(one.row_id, one.sample))[:NUM_REGENERATED]


def _regenerate(drawn: list[_Drawn], job: dict[str, Any], problems: list[str], notes: list[str]) -> None:
    """Decode the drawn results again with the target alone and compare token by token."""
    from specbatch.schemas.spec import GenerationSpec
    from specbatch.specdec.engine import Engine
    from specbatch.specdec.models import locate_model

    fields = job["identity"]["fields"]
    if fields["generation"].get("coupling") == "distribution":
        notes.append("no row was decoded again: under the distribution coupling the text depends on the draft")
        return
    try:
        target = locate_model(str(job["spec"]["models"]["target"]))
        if not fields["model"]["files"].items() <= dict(target.files).items():
            notes.append(f"no row was decoded again: {target.name} here is not the target of the job")
            return
        engine = Engine.from_pretrained(
            target.path, max_batch_size=1, speculation="off", dtype=str(fields["model"]["dtype"])
        )
    except SpecbatchError as error:
        notes.append(f"no row was decoded again: {error.message}")
        return
    generation = GenerationSpec.model_validate(fields["generation"])
    outputs = engine.generate([one.prompt for one in drawn], [generation.sampling_params(one.seed) for one in drawn])
    for one, output in zip(drawn, outputs, strict=True):
        if list(output.token_ids) != one.token_ids:
            problems.append(
                f"row {one.row_id} sample {one.sample}: the target alone, on {engine.device} here, says something else"
            )
    notes.append(f"decoded {len(drawn)} results again with the target alone, on {engine.device}")
