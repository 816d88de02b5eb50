"""Replay one seed, or run many: ``python -m tests.simulation.run --seed 7`` prints its trace and its verdict."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time

from .scenario import LAYERS, Outcome
from .world import run_seed


def trace_digest(outcome: Outcome) -> str:
    """One word for a whole history."""
    return hashlib.sha256("\n".join(outcome.trace).encode()).hexdigest()


def report(outcome: Outcome, layer: str, last: int | None = None) -> str:
    """Scenario, trace, verdict, and how to see it again."""
    seed = outcome.scenario.seed
    lines = [str(outcome.scenario), *outcome.trace[-last if last else 0 :]]
    lines.append(f"verdict: {outcome.violation or 'sound'}")
    lines.append(f"again: python -m tests.simulation.run --layer {layer} --seed {seed}")
    return "\n".join(lines)


def main() -> int:
    """0 if every run was sound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", choices=LAYERS, default="store")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--count", type=int, default=1, help="how many seeds; more than one prints no traces of sound runs"
    )
    parser.add_argument("--digest", action="store_true", help="print the digest of each trace instead of the trace")
    options = parser.parse_args()
    started = time.perf_counter()
    num_bad = num_events = 0
    for seed in range(options.seed, options.seed + options.count):
        outcome = run_seed(seed, options.layer)
        num_bad += outcome.violation is not None
        num_events += len(outcome.trace)
        if options.digest:
            sys.stdout.write(f"{seed} {trace_digest(outcome)}\n")
        elif options.count == 1 or outcome.violation is not None:
            sys.stdout.write(report(outcome, options.layer) + "\n")
    if options.count > 1 and not options.digest:
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{options.count} seeds, {num_bad} not sound, {num_events} trace lines, {seconds:.1f} s\n")
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
