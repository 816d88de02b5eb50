"""Whole jobs as real processes, in a place of their own, and the judgement of what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from outputs import CREDENTIALS, Output, part_keys, read_rows

ROOT = Path(__file__).resolve().parents[2]
DATASET = ROOT / "examples" / "prompts.parquet"
NUM_ROWS = 48
SHARD_ROWS = 4
NUM_PARTS = NUM_ROWS // SHARD_ROWS
DEADLINE_SECONDS = 300.0
TEXT_OPTIONS = ["--limit", str(NUM_ROWS), "--max-new-tokens", "16", "--ignore-eos", "--temperature", "0.8"]
OPTIONS = [*TEXT_OPTIONS, "--shard-rows", str(SHARD_ROWS), "--batch-size", "4"]
TEXT_COLUMNS = [
    "row_id", "sample_index", "id", "prompt", "status", "completion", "completion_token_ids", "finish_reason",
    "error_code", "num_prompt_tokens", "num_completion_tokens", "row_seed",
]  # fmt: skip
"""What must be the same whatever happened; the speculation counters need not be."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


@dataclass
class Place:
    """A folder for commands to run in, with a home, a current directory and temporary files of its own.

    Attributes:
        endpoint: the S3 endpoint of commands started here; None without one.
    """

    root: Path
    endpoint: str | None = None
    temporary: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sf", dir="/tmp")))
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("home", "cwd"):
            (self.root / name).mkdir(parents=True)

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("SPECBATCH_", "RAY_", "AWS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        store = {} if self.endpoint is None else {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": self.endpoint}
        return {**kept, **store, "HOME": str(self.root / "home"), "TMPDIR": str(self.temporary)}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start ``specbatch`` with some more environment variables."""
        process = subprocess.Popen(
            [sys.executable, "-m", "specbatch", *arguments],
            cwd=self.root / "cwd",
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, **variables: str) -> Ended:
        return finish(self.start(*arguments, **variables))

    def submit(self, output: Output, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Start the job of these tests."""
        return self.start("submit", str(DATASET), *OPTIONS, "--output", output.uri, *options, **variables)

    def run_submit(self, output: Output, *options: str, seconds: float = DEADLINE_SECONDS, **variables: str) -> Ended:
        return finish(self.submit(output, *options, **variables), seconds)

    def processes(self, command: str = "") -> list[int]:
        """Process ids of what was started here, however far down, whose command line holds a text."""
        mark, found = f"HOME={self.root / 'home'}".encode(), []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes() and command.encode() in (path.parent / "cmdline").read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return sorted(found)

    def workers(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return self.processes("ray::Worker")

    def close(self) -> None:
        """Kill what is left and remove the temporary files."""
        for pid in self.processes():
            kill(pid)
        for process in self._started:
            process.communicate()
        shutil.rmtree(self.temporary, ignore_errors=True)


def finish(process: subprocess.Popen[str], seconds: float = DEADLINE_SECONDS) -> Ended:
    """Wait until a command has ended."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {seconds:.0f} s\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = DEADLINE_SECONDS
) -> None:
    """Until a condition holds; fails at once when the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, f"ended too early: {finish(process)}"  # type: ignore[arg-type]
        time.sleep(0.02)


def wait_for_parts(output: Output, number: int, process: subprocess.Popen[str]) -> dict[str, bytes]:
    """Until there are some parts; gives them."""
    wait_until(lambda: len(part_keys(output)) >= number, process)
    return read_parts(output)


def read_parts(output: Output) -> dict[str, bytes]:
    return {key: output.read(key) for key in part_keys(output)}


def read_run(output: Output, epoch: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(output.read(f"_specbatch/runs/{epoch}.json"))
    return record


def check_finished(place: Place, output: Output, reference: pa.Table, *, without: frozenset[int] = frozenset()) -> None:
    """The promise: each row once, equal to the undisturbed run, and ``verify`` says so.

    Args:
        without: row ids that are error rows here and are left out of the comparison of texts.
    """
    table = read_rows(output)
    assert table.column("row_id").to_pylist() == list(range(NUM_ROWS)), "not every row exactly once, in order"
    keep = [row_id not in without for row_id in range(NUM_ROWS)]
    assert table.select(TEXT_COLUMNS).filter(keep).equals(reference.select(TEXT_COLUMNS).filter(keep))
    verified = place.run("verify", output.uri)
    assert verified.code == 0, verified
    assert output.read("_SUCCESS")


def check_kept(output: Output, kept: dict[str, bytes]) -> None:
    """Parts that existed are the same bytes still."""
    assert {key: output.read(key) for key in kept} == kept, "a finished part was changed or lost"
