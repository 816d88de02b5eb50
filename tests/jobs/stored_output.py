"""A job with a real identity (the bundled models, a dataset on disk) whose parts are made up, decoded by nobody."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from finished_output import JOB_SEED, make_result

from specbatch.jobs.output.ledger import Ledger, now_text
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.jobs.upkeep.resume import StoredOutput
from specbatch.schemas.manifest import PART_FORMAT, RUN_FORMAT, Manifest
from specbatch.schemas.plan import Shard, part_name
from specbatch.schemas.prompt import PassThrough
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.run import RunRecord
from specbatch.schemas.spec import JobSpec
from specbatch.schemas.stats import PhaseSeconds
from specbatch.storage.parts import PartMeta, part_stats, write_part
from specbatch.storage.store import open_store
from specbatch.workers.shards import planned_samples

NUM_ROWS = 20
Failed = Mapping[tuple[int, int], str]


def write_dataset(folder: Path) -> Path:
    path = folder / "prompts.parquet"
    prompts = [f"prompt {row}" for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"prompt": prompts, "tag": list(range(NUM_ROWS))}), path, row_group_size=5)
    return path


def begin(folder: Path, *, uri: str | None = None, num_samples: int = 1, **options: Any) -> StoredOutput:
    """Plan and ``job.json`` of a job over 20 rows in 4 shards; its output is ``out`` in the folder unless told."""
    samples = {"num_samples": num_samples, "temperature": 0.5} if num_samples > 1 else {}
    common = {"output": uri or str(folder / "out"), "seed": JOB_SEED, "shard_rows": 5, "device": "cpu"}
    dataset = write_dataset(folder)
    prepared = prepare(resolve([flag_layer({**common, **samples, **options}, [str(dataset)])]))
    ledger = Ledger(open_store(prepared.output))
    spec = prepared.spec.model_dump(mode="json")
    return StoredOutput(ledger, ledger.begin_job(prepared.identity, prepared.models, spec, prepared.shards))


def write_parts(output: StoredOutput, failed: Failed | None = None, shards: Collection[int] | None = None) -> None:
    """Parts of the planned results; those in ``failed`` are error rows with that code."""
    generation = output.stored.document.spec["generation"]
    for shard in output.stored.shards:
        if shards is None or shard.index in shards:
            _write_part(output, shard, failed or {}, generation["num_samples"])


def finish(output: StoredOutput, failed: Failed | None = None) -> Manifest:
    """All parts that lack, and the manifest."""
    present = output.ledger.find_parts(output.stored)
    write_parts(output, failed, {shard.index for shard in output.stored.shards} - present.keys())
    receipts = [
        replace(receipt, sha256=output.ledger.hash_part(receipt.path))
        for receipt in output.ledger.find_parts(output.stored).values()
    ]
    return output.ledger.commit(output.stored, output.stored.document.models, receipts)


def _write_part(output: StoredOutput, shard: Shard, failed: Failed, num_samples: int) -> None:
    planned = planned_samples(shard, num_samples)
    results = []
    for row, sample in planned:
        result = make_result(row, 0, (row, sample) in failed, sample)
        results.append(replace(result, error_code=failed[row, sample]) if (row, sample) in failed else result)
    rows = sorted({row for row, _ in planned})
    meta = PartMeta(
        format=PART_FORMAT,
        plan=output.stored.plan,
        shard=shard.index,
        row_start=shard.row_start,
        row_stop=shard.row_stop,
        token="token",
        stats=part_stats(results, PhaseSeconds()),
    )
    path = output.store.spool_path()
    table = pa.table({"prompt": [f"prompt {row}" for row in rows], "tag": rows})
    spec = JobSpec.model_validate(output.stored.document.spec)
    passed = PassThrough.of(spec.input, table.schema.names)
    table = table.select(list(passed.old)).rename_columns(list(passed.new))
    write_part(path, table, results, meta, planned=planned, form=ResultForm.of(spec))
    assert output.store.create(part_name(shard.index, output.stored.plan), path)
    path.unlink()


def run_record() -> RunRecord:
    return RunRecord(
        format=RUN_FORMAT,
        epoch=0,
        started_at=now_text(),
        host="h",
        pid=1,
        outcome="running",
        wall_seconds=0.0,
        total_seconds=0.0,
        attempts=0,
        restarts=0,
        parts_found=0,
        execution={},
        hardware={},
        workers=[],
    )
