"""The simulator catches the protocol with each safeguard taken out, within the number of seeds that it says."""

from __future__ import annotations

import pytest

from .run import report
from .safeguards import WEAKENED, Weakened


@pytest.mark.parametrize("weakened", WEAKENED, ids=lambda weakened: weakened.name)
def test_a_missing_safeguard_is_caught(weakened: Weakened) -> None:
    """And as what it is: as a broken rule, not as a program that fails in some other way."""
    for seed in range(weakened.seeds):
        outcome = weakened.run(seed)
        if outcome.violation is not None:
            assert outcome.rule in weakened.rules, report(outcome, weakened.layer, last=80)
            return
    pytest.fail(f"{weakened.name}: not caught within {weakened.seeds} seeds")
