"""After a crash the counters are the same too, where nothing but the draft model proposes and K is fixed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from outputs import LocalOutput, read_rows
from whole_jobs import NUM_ROWS, Place, check_kept, finish, kill, read_parts, wait_for_parts, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

FIXED = ["--speculation", "3", "--logprobs"]
LOGPROB_TOLERANCE = 1e-4
APART = ["logprobs", "min_margin"]
"""Columns of floating-point sums, which round by the shape of the batch."""


@pytest.fixture
def expected(place: Place, tmp_path: Path) -> pa.Table:
    """The rows of a run that nobody disturbed."""
    undisturbed = LocalOutput(tmp_path / "undisturbed")
    ended = place.run_submit(undisturbed, *FIXED)
    assert ended.code == 0, ended
    return read_rows(undisturbed)


@pytest.mark.long
def test_the_counters_of_a_killed_job_at_a_fixed_k(place: Place, output: LocalOutput, expected: pa.Table) -> None:
    """Coordinator killed, then worker killed: every column equal."""
    kept = _begin_and_kill(place, output)
    process = place.submit(output, *FIXED)
    wait_for_parts(output, len(kept) + 2, process)
    for worker in place.workers():
        kill(worker)
    ended = finish(process)
    assert ended.code == 0, ended
    check_kept(output, kept)
    _check_same(read_rows(output), expected)


@pytest.mark.long
def test_the_counters_do_not_depend_on_the_batch(place: Place, output: LocalOutput, expected: pa.Table) -> None:
    """Begun with four rows in flight, killed, resumed with nine in two workers."""
    _begin_and_kill(place, output)
    ended = place.run("resume", output.uri, "--batch-size", "9", "--workers", "2")
    assert ended.code == 0, ended
    _check_same(read_rows(output), expected)


def _begin_and_kill(place: Place, output: LocalOutput) -> dict[str, bytes]:
    """The parts of a run whose coordinator was killed in the middle."""
    process = place.submit(output, *FIXED)
    wait_for_parts(output, 2, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not place.workers(), seconds=60)
    return read_parts(output)


def _check_same(table: pa.Table, expected: pa.Table) -> None:
    assert table.column("row_id").to_pylist() == list(range(NUM_ROWS))
    assert sum(table.column("num_draft_tokens").to_pylist()) > 0, "nothing was proposed: this test would show nothing"
    assert table.drop_columns(APART).equals(expected.drop_columns(APART))
    pairs = zip(table.column("logprobs").to_pylist(), expected.column("logprobs").to_pylist(), strict=True)
    apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    assert apart <= LOGPROB_TOLERANCE, f"logprobs are {apart} apart"
