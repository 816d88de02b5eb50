"""Real jobs, killed at random moments, then run again until they finish: nothing lost, nothing twice, the same text.

    make chaos                            # CHAOS_RUNS=20 make chaos for more, CHAOS_SEED=7 for other moments

A run that fails prints its seed; the same seed kills at the same moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNS = int(os.environ.get("CHAOS_RUNS", "4"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
NUM_ROWS = 96
OPTIONS = [
    str(ROOT / "examples" / "prompts.parquet"), "--limit", str(NUM_ROWS), "--max-new-tokens", "24", "--shard-rows", "8",
    "--batch-size", "4", "--temperature", "0.8", "--format", "quiet",
]  # fmt: skip
TEXT_COLUMNS = ["row_id", "id", "prompt", "completion", "completion_token_ids", "finish_reason", "row_seed"]


def submit(output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "specbatch", "submit", *OPTIONS, "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def descendants(pid: int) -> list[int]:
    """Processes below one, Ray's workers among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found += [int(stat.parent.name), *descendants(int(stat.parent.name))]
    return found


def kill_something(process: subprocess.Popen[str], generator: random.Random) -> str:
    """SIGKILL the driver, a worker, or everything at once."""
    below = descendants(process.pid)
    workers = [
        pid for pid in below if b"ray::Worker" in (Path(f"/proc/{pid}/cmdline").read_bytes() if alive(pid) else b"")
    ]
    victim = generator.choice(["driver", "worker", "all"])
    targets = {"driver": [process.pid], "worker": workers[:1], "all": [process.pid, *below]}[victim]
    for pid in targets:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    return victim


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def read(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").glob("*.parquet")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    process = submit(output, "--draft", "none")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return read(output)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(RUNS))
def test_a_job_that_is_killed_at_random_moments(number: int, undisturbed: pa.Table, tmp_path: Path) -> None:
    generator = random.Random(SEED * 1000 + number)
    output, kept = tmp_path / "out", {}
    for attempt in range(20):
        process = submit(output, "--speculation", str(generator.randint(1, 6)), "--workers", generator.choice("12"))
        if attempt < 3:
            time.sleep(generator.uniform(2, 20))
            if process.poll() is None:
                print(f"seed {SEED}, run {number}, attempt {attempt}: killed the {kill_something(process, generator)}")
        _, err = process.communicate(timeout=300)
        parts = {path.name: path.read_bytes() for path in sorted((output / "data").glob("*.parquet"))}
        assert all(parts[name] == data for name, data in kept.items()), "a finished part was changed or lost"
        kept = parts
        if process.returncode == 0:
            break
    assert process.returncode == 0, err
    verified = subprocess.run([sys.executable, "-m", "specbatch", "verify", str(output)], check=False, timeout=120)
    assert verified.returncode == 0
    table = read(output)
    assert table.column("row_id").to_pylist() == list(range(NUM_ROWS))
    assert table.select(TEXT_COLUMNS).equals(undisturbed.select(TEXT_COLUMNS))
