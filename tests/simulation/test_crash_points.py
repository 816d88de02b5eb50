"""A small job is killed before and after each of its writes, and its recovery before and after each of its own."""

from __future__ import annotations

import functools

import pytest

from .network import Fault, PlannedCrashes
from .run import report
from .scenario import LAYERS, Layer, Outcome, Scenario
from .world import World

SIDES = (Fault.DIE_BEFORE, Fault.DIE_AFTER)


def run(layer: Layer, *crashes: tuple[int, Fault]) -> tuple[Outcome, int, int]:
    """One run with these crashes; how many writes it made, and how many crashes are left."""
    scenario = Scenario(seed=1, layer=layer, num_rows=5, cuts=(3,), num_workers=1)
    faults = PlannedCrashes(crashes)
    outcome = World(scenario, faults=faults).run()
    return outcome, faults.num_writes, faults.num_crashes_left


@functools.cache
def num_writes(layer: Layer, *crashes: tuple[int, Fault]) -> int:
    """Writes behind the last of these crashes."""
    return run(layer, *crashes)[1]


def check(layer: Layer, *crashes: tuple[int, Fault]) -> None:
    outcome, _, num_left = run(layer, *crashes)
    assert outcome.violation is None, f"crashes {crashes}\n{report(outcome, layer, last=120)}"
    assert num_left == 0, crashes


@pytest.mark.parametrize("layer", LAYERS)
def test_the_job_writes_what_it_should(layer: Layer) -> None:
    outcome, count, _ = run(layer)
    assert outcome.violation is None
    assert 10 <= count <= 30, "else the enumeration is not of a small job"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_crash_at_each_write(layer: Layer) -> None:
    """Faults 2, 3, 22 and 23 (L1): 2N runs."""
    for number in range(1, num_writes(layer) + 1):
        for side in SIDES:
            check(layer, (number, side))


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name.lower())
@pytest.mark.parametrize("layer", LAYERS)
def test_a_second_crash_at_each_write_of_the_recovery(layer: Layer, side: Fault) -> None:
    """Faults 2, 3, 22 and 23, twice (L1): 4N² runs in all."""
    for first in range(1, num_writes(layer) + 1):
        crash = (first, side)
        for second in range(1, num_writes(layer, crash) + 1):
            for second_side in SIDES:
                check(layer, crash, (second, second_side))
