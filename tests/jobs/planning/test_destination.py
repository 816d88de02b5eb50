"""Whether an output can be written, as ``plan`` tells it: by looking only, and only where it still must be written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_output import build

from specbatch.jobs.output.ledger import Ledger
from specbatch.jobs.planning.destination import why_unwritable
from specbatch.jobs.planning.prepare import PreparedJob, prepare
from specbatch.jobs.planning.text import render_plan
from specbatch.jobs.spec.settings import flag_layer, resolve
from specbatch.storage.store import open_store

_LOOK_WITHOUT_ROOTS_RIGHTS = """
import os, sys
from specbatch.jobs.planning.destination import why_unwritable
why_unwritable("/")
if os.getuid() == 0:  # who may write everywhere; the package may lie where nobody else may read it
    os.setgid(65534)
    os.setuid(65534)
for output in sys.argv[1:]:
    print(why_unwritable(output))
"""


@pytest.fixture
def shown() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory(prefix="specbatch-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def looked_at(*outputs: Path) -> list[str]:
    command = [sys.executable, "-c", _LOOK_WITHOUT_ROOTS_RIGHTS, *map(str, outputs)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()


def job_of(root: Path, output: Path) -> PreparedJob:
    pq.write_table(pa.table({"prompt": ["a", "b"]}), root / "in.parquet")
    given: dict[str, Any] = {"output": str(output), "draft": "none"}
    return prepare(resolve([flag_layer(given, [str(root / "in.parquet")])]))


def told_of(job: PreparedJob) -> tuple[str, str | None]:
    document = json.loads(render_plan(job, "json"))
    return document["state"], document["unwritable"]


def test_a_file_on_the_way_is_told_and_not_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    job = job_of(tmp_path, tmp_path / "file" / "out")
    reason = f"{tmp_path / 'file'} is no folder"
    assert f"(new; cannot be written: {reason})\n" in render_plan(job, "human")
    assert told_of(job) == ("new", reason)


def test_a_place_that_can_be_made_is_fine_and_is_not_made(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "new" / "out")
    assert "(new)\n" in render_plan(job, "human")
    assert told_of(job) == ("new", None)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_the_right_to_write(shown: Path) -> None:
    outputs = {}
    for mode in (0o555, 0o444, 0o777):
        folder = shown / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        for output in (folder, folder / "out", folder / "a" / "b"):
            outputs[output] = "None" if mode == 0o777 else f"{folder} is not writable"
    assert looked_at(*outputs) == list(outputs.values())
    assert why_unwritable("s3://bucket/out") is None, "only a write would show it"


def test_it_is_told_of_a_begun_job_and_not_of_a_complete_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbatch.jobs.planning.text.why_unwritable", lambda output: f"{output} is not writable")
    output = tmp_path / "out"
    job = job_of(tmp_path, output)
    ledger = Ledger(open_store(str(output)))
    ledger.begin_job(job.identity, job.models, job.spec.model_dump(mode="json"), job.shards)
    assert told_of(job) == ("0 of 1 parts are there", f"{output} is not writable")
    shutil.copy(build(tmp_path / "other").root / "manifest.json", output)
    assert told_of(job) == ("complete", None), "it is only read"
