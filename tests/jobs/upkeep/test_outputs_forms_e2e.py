"""A whole job whose results have another form: prefix, compression, row groups, a partition, and the card beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specbatch import load
from specbatch.jobs.verify.verify import verify_output

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEADLINE_SECONDS = 400.0


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: Ray makes sockets below the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:
        yield Path(folder)


def specbatch(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "specbatch"), *arguments],
        cwd=root,
        env={**kept, "TMPDIR": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its Ray with it
        process.communicate()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.long
def test_a_job_of_another_form(root: Path) -> None:
    rows = {"prompt": ["def a(x):", None, "class B:"], "completion": ["old"] * 3, "key": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), root / "in.parquet")
    command = ["submit", "in.parquet", "--output", "out", "--output-prefix", "gen_", "--compression", "snappy"]
    command += [
        "--row-group-rows",
        "2",
        "--partition",
        "night=2026-01-01",
        "--max-new-tokens",
        "6",
        "--format",
        "quiet",
    ]
    done = specbatch(root, *command, "--id-column", "key")
    assert done.returncode == 3, done.stderr  # one row has no prompt
    out = root / "out" / "night=2026-01-01"
    assert done.stdout == f"{out}\n"
    report = verify_output(str(out), deep=True)
    assert (report.state, report.problems) == ("sound", ())
    (part,) = (out / "data").iterdir()
    stored = pq.read_metadata(part)
    assert [stored.row_group(index).num_rows for index in range(stored.num_row_groups)] == [2, 1]
    assert stored.row_group(0).column(0).compression == "SNAPPY"
    table = load(out, columns=["key", "completion", "gen_status"])
    assert table.to_pydict() == {
        "key": ["a", "b", "c"],
        "completion": ["old"] * 3,
        "gen_status": ["ok", "error", "ok"],
    }

    card = out / "README.md"
    assert "`gen_completion`" in card.read_text()
    card.write_text("edited by its owner")
    assert specbatch(root, *command, "--id-column", "key").returncode == 3
    assert card.read_text() == "edited by its owner", "a job that is complete leaves it alone"
    card.unlink()
    assert specbatch(root, *command, "--id-column", "key").returncode == 3
    assert "`gen_completion`" in card.read_text()

    done = specbatch(root, "export", str(out), "--openai", "lines.jsonl", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_rows"] == 3
    lines = [json.loads(line) for line in (root / "lines.jsonl").read_text().splitlines()]
    assert [(line["custom_id"], line["error"] is None) for line in lines] == [("a", True), ("b", False), ("c", True)]
    done = specbatch(root, "export", str(out), "--openai", "lines.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("error: JOB_PREFIX_TAKEN: ")
