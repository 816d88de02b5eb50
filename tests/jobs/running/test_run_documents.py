"""The record of a run: what it keeps for the report."""

from __future__ import annotations

from pathlib import Path

from stored_output import begin, write_dataset

from specbatch.jobs.output.manifest import build_commit, build_observed
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.running.run_documents import RunDocuments
from specbatch.jobs.running.tally import RunTally
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.schemas.messages import MemoryReport, Progress, WorkerPoll, WorkerReady
from specbatch.storage.retries import count_retry

MEMORY = MemoryReport(100, 10, 7, 3, 500)


def test_requests_that_were_made_again_come_into_the_record_and_the_manifest(tmp_path: Path) -> None:
    output = begin(tmp_path)
    flags = {"output": str(tmp_path / "out"), "shard_rows": 5, "device": "cpu"}
    prepared = prepare(resolve([flag_layer(flags, [str(write_dataset(tmp_path))])]))
    count_retry()  # before this run
    tally = RunTally()
    documents = RunDocuments(prepared, output.ledger, output.stored, tally, lambda: 1.0)
    documents.begin(4)
    tally.add_ready(WorkerReady(0, "here", 1, "cpu", "float32", 1, 0.0, MEMORY, ()), 0.0)
    tally.add_poll(0, WorkerPoll((), (), (), Progress(num_storage_retries=3), MEMORY), 1.0)
    count_retry()
    count_retry()
    documents.write_record("failed")
    (record,) = output.ledger.read_runs()
    assert record.store_retries == 5
    assert build_observed([record, record], build_commit([])).store_retries == 10
