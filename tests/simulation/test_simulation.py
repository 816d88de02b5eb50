"""The commit protocol under thousands of histories: whatever dies, every row has exactly one result.

SPECBATCH_SIM_SEEDS=100000 pytest tests/simulation -m chaos          # many more
python -m tests.simulation.run --layer store --seed 7                # one again, with its trace
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from specbatch.jobs.verify.verify import verify_output

from .network import S3_FAULTS, STORE_FAULTS, Fault
from .run import report, trace_digest
from .scenario import LAYERS, Layer, Outcome, scenario_of
from .world import run_seed

ROOT = Path(__file__).resolve().parents[2]
NUM_SEEDS: dict[Layer, int] = {"store": 600, "s3": 300}
CHAOS_SEEDS = int(os.environ.get("SPECBATCH_SIM_SEEDS", "20000"))
BLOCKS = 10


def check(outcome: Outcome) -> None:
    """Fail with everything that is needed to see it again."""
    if outcome.violation is not None:
        pytest.fail(report(outcome, outcome.scenario.layer, last=120), pytrace=False)


def check_block(layer: Layer, first: int, count: int) -> Counter[Fault]:
    met: Counter[Fault] = Counter()
    for seed in range(first, first + count):
        outcome = run_seed(seed, layer)
        check(outcome)
        met.update(outcome.faults_met)
    return met


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_no_history_breaks_the_promise(layer: Layer) -> None:
    """Faults 1-4, 12, 13, 15, 18, 20, 22-24, 26-30, 33, 34, 39, 43, 44, 47; and each kind of fault was met."""
    met = check_block(layer, 0, NUM_SEEDS[layer])
    assert set(met) == (STORE_FAULTS if layer == "store" else S3_FAULTS)


@pytest.mark.chaos
@pytest.mark.timeout(0)
@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("layer", LAYERS)
def test_no_history_of_many_breaks_the_promise(layer: Layer, block: int) -> None:
    """The same with other seeds and more of them."""
    count = CHAOS_SEEDS // BLOCKS
    check_block(layer, 1_000_000 + block * count, count)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_seed_is_one_history(layer: Layer) -> None:
    """The same seed gives the same trace, here and in a process that hashes otherwise."""
    traces = [run_seed(seed, layer).trace for seed in (3, 4, 3)]
    assert traces[0] == traces[2] != traces[1]
    answer = subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", "--layer", layer, "--seed", "3", "--digest"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    digest = hashlib.sha256("\n".join(traces[0]).encode()).hexdigest()
    assert answer.stdout.split() == ["3", digest]
    assert trace_digest(run_seed(3, layer)) == digest


@pytest.mark.parametrize("seed", [seed for seed in range(40) if not scenario_of(seed, "store").reuse][:20])
def test_the_verifier_agrees(seed: int, tmp_path: Path) -> None:
    """What a disturbed job leaves is sound to ``verify``, which shares no code with writer and checker."""
    outcome = run_seed(seed)
    check(outcome)
    for key, data in outcome.objects.items():
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    verdict = verify_output(str(tmp_path))
    assert verdict.state == "sound", verdict.problems
