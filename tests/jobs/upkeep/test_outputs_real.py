"""The commands that run a job, for real: Ray, the bundled models, local disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch import load
from specbatch.jobs.output.amended import read_amendments
from specbatch.jobs.output.ledger import Ledger
from specbatch.jobs.planning.prepare import prepare
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.jobs.upkeep.resume import open_output
from specbatch.jobs.watching.status import read_status
from specbatch.schemas.plan import part_name
from specbatch.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TEXT = ["row_id", "status", "completion", "completion_token_ids", "finish_reason", "row_seed", "error_code"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, from a folder that has nothing to do with the job."""
    command = [sys.executable, "-m", "specbatch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=os.sep, check=False)


def test_resume_retry_and_repair(tmp_path: Path) -> None:
    prompts = ["def add(a, b):\n", None, "import os\n", "class Stack:\n", "for i in range(", "", "x = [", "return "]
    pq.write_table(pa.table({"prompt": prompts, "n": list(range(8))}), tmp_path / "p.parquet")
    options = {"max_new_tokens": 8, "shard_rows": 2, "max_error_rate": 1.0, "output": str(tmp_path / "out")}
    prepared = prepare(resolve([flag_layer(options, [str(tmp_path / "p.parquet")])]))
    spec = prepared.spec.model_dump(mode="json")
    Ledger(open_store(prepared.output)).begin_job(prepared.identity, prepared.models, spec, prepared.shards)

    resumed = run("resume", prepared.output, "--speculation", "2", "--batch-size", "3")
    assert resumed.returncode == 3, resumed.stderr
    output = open_output(prepared.output)
    whole = load(prepared.output)
    num_failed = whole.column("status").to_pylist().count("error")
    assert num_failed in (1, 2), "the null prompt, and the empty one if the model wants a beginning"
    assert run("resume", prepared.output, "--format", "quiet").returncode == 3

    retried = run("retry-failed", prepared.output, "--row-errors-ok")
    assert retried.returncode == 0, retried.stderr
    assert f"amendment 1 decodes {num_failed} failed result" in retried.stderr
    (amendment,) = read_amendments(output.store)
    assert (amendment.commit.counts.results, amendment.commit.counts.errors) == (num_failed, num_failed)
    assert load(prepared.output).select(TEXT).equals(whole.select(TEXT))

    damaged = tmp_path / "out" / part_name(1, output.stored.plan)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    (tmp_path / "out" / part_name(3, output.stored.plan)).unlink()
    repaired = run(
        "repair", prepared.output, "--output", str(tmp_path / "new"), "--speculation", "off", "--workers", "2"
    )
    assert repaired.returncode == 3, repaired.stderr
    assert "2 of 4 parts are sound" in repaired.stderr
    assert load(tmp_path / "new").select(TEXT).equals(whole.select(TEXT))
    assert read_status(str(tmp_path / "new")).state == "complete"
