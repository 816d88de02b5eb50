"""Run the test suite in two processes: what starts a Ray in one, everything else in the other.

    python infra/run_tests.py [ARGUMENTS OF PYTEST]

Tests with a Ray mostly wait: for its processes, for a lease, for a worker that is taken for dead. Two of them at once
would meet limits of time that are meant for one. They end first, and some folders follow them where no arguments say
which tests are wanted. The output of the second process is shown when both have ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS_OUT = "not chaos and not long"
NO_TESTS = 5
BEHIND_RAY = ("tests/simulation", "tests/storage", "tests/workers")
# Threads that wait for each other's turn would take the cores from the other process, and tiny models need no two.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def command(marks: str, arguments: Sequence[str]) -> list[str]:
    """Pytest for the tests with these marks."""
    return [sys.executable, "-m", "pytest", "-m", f"{ALWAYS_OUT} and {marks}", *arguments]


def outcome(*codes: int) -> int:
    """0 where some tests ran and all passed. A process that a signal ended has a code below 0, and has failed."""
    failed = [abs(code) for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


def main() -> int:
    """Run both; 0 if both passed."""
    arguments = sys.argv[1:]
    behind = () if arguments else BEHIND_RAY
    single = {**os.environ, **ONE_THREAD}
    with tempfile.TemporaryFile() as kept:
        other = subprocess.Popen(
            command("not ray", [*arguments, *(f"--ignore={folder}" for folder in behind)]), cwd=ROOT, env=single,
            stdin=subprocess.DEVNULL, stdout=kept, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            codes = [subprocess.run(command("ray", arguments), cwd=ROOT, check=False).returncode]
            if behind:
                codes.append(subprocess.run(command("not ray", behind), cwd=ROOT, env=single, check=False).returncode)
            codes.append(other.wait())
        finally:
            if other.poll() is None:  # interrupted
                other.terminate()
                other.wait()
            kept.seek(0)
            sys.stdout.write(kept.read().decode("utf-8", "replace"))
            sys.stdout.flush()
    return outcome(*codes)


if __name__ == "__main__":
    sys.exit(main())
