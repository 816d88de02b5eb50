"""A whole job through the Ray Jobs of a real cluster, with its dashboard and its token."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cluster_faults import end_all

from specbatch import load

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]

BIN = Path(sys.executable).parent
OPTIONS = ["--max-new-tokens", "12", "--temperature", "0.7", "--seed", "3", "--shard-rows", "4", "--row-errors-ok"]
TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Place:
    """A cluster, and a folder to work in."""

    folder: Path
    address: str

    def environment(self, *, with_token: bool = True) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECBATCH_", "RAY_"))}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")} if with_token else {}
        own = {"HOME": str(self.folder), "TMPDIR": str(self.folder), "CLUSTER_MARK": str(self.folder)}
        # `python` on the PATH of Ray's processes is the one that starts drivers.
        return {**kept, **own, **token, "PATH": f"{BIN}:{kept['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(self, *arguments: str, with_token: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "specbatch"), *arguments], cwd=self.folder, env=self.environment(with_token=with_token),
            capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip


@pytest.fixture
def place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="sbj", dir="/tmp"))
    (folder / "token").write_text(TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Place(folder, f"http://127.0.0.1:{port}")
    head = subprocess.Popen(
        [str(BIN / "ray"), "start", "--head", "--block", "--port=0", f"--dashboard-port={port}", "--num-cpus=2",
         f"--temp-dir={folder}/r", f"--object-store-memory={80 << 20}"],
        env=found.environment(), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not _answers(port):
            time.sleep(1)
        yield found
    finally:
        head.terminate()
        end_all(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_job_through_ray_jobs(place: Place) -> None:
    """The text of a job on this machine, its error rows and its exit code; found finished the next time."""
    prompts = [f"def f{row}(x):" for row in range(15)] + [None]
    pq.write_table(pa.table({"prompt": prompts}), place.folder / "prompts.parquet")
    refused = place.run("submit", "prompts.parquet", *OPTIONS, "--address", place.address, with_token=False)
    assert refused.returncode == 2
    assert "error: JOB_CLUSTER_DENIED" in refused.stderr
    there = ["submit", "prompts.parquet", "--output", "there", "--address", place.address, *OPTIONS]
    started = place.run(*there, "--no-wait", "--format", "json")
    assert started.returncode == 0, started.stderr
    name = json.loads(started.stdout)["submission_id"]
    followed = place.run(*there, "--no-row-errors-ok")
    assert f"{name} was submitted before and has not ended" in followed.stderr
    assert followed.returncode == 0, followed.stderr  # the settings are those of the first submit
    here = place.run("submit", "prompts.parquet", "--output", "here", *OPTIONS, with_token=False)
    assert here.returncode == 0, here.stderr
    found, expected = (load(place.folder / folder) for folder in ("there", "here"))
    for column in ("row_id", "status", "error_code", "completion_token_ids", "completion", "row_seed"):
        assert found.column(column) == expected.column(column), column
    assert found.column("status").to_pylist().count("error") == 1
    assert "run 1 ended: complete" in place.run("logs", "there").stdout
    assert "there: complete" in place.run("status", "there").stdout
    again = place.run(*there, "--no-row-errors-ok")
    assert again.returncode == 3
    assert "nothing was done" in again.stderr
    told = "".join(path.read_text() for path in (place.folder / "there/_specbatch").rglob("*.json*"))
    assert TOKEN not in told
    assert "asks for no token" not in told + followed.stderr
