"""Run the test suite in two processes: what starts a Ray in one, everything else in the other.

    python infra/run_tests.py [ARGUMENTS OF PYTEST]

Tests with a Ray mostly wait: for its processes, for a lease, for a worker that is taken for dead. Two of them at once
would meet limits of time that are meant for one, so all of them run in one process, which shows them as they run.
Everything else is cut into pieces that wait in one line, the longest first. The other process takes one after another,
the first does when its Ray tests have ended, so that both end at about the same time on any machine. The pieces are
shown when all have ended. With arguments nothing is cut.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALWAYS_OUT = "not chaos and not long"
NO_TESTS = 5
LINE = (
    "tests/specdec",
    "tests/jobs",
    "tests",
    "tests/storage",
    "tests/specdec/kernels",
    "tests/workers",
    "tests/simulation",
)
"""The longest first. A folder that stands in the line is left out of every other piece."""
# Threads that wait for each other's turn would take the cores from the other process, and tiny models need no two. Jobs
# have as many as there are cores: theirs go to sleep soon (docs/tuning.md).
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SOON_ASLEEP = {"GOMP_SPINCOUNT": "1000"}


def pieces() -> list[list[str]]:
    """Arguments of pytest for each piece of the line: every test is in exactly one."""
    inside = {folder: [other for other in LINE if Path(other).parent.is_relative_to(folder)] for folder in LINE}
    return [[folder, *(f"--ignore={other}" for other in others)] for folder, others in inside.items()]


def command(marks: str, arguments: Sequence[str]) -> list[str]:
    """Pytest for the tests with these marks."""
    return [sys.executable, "-m", "pytest", "-m", f"{ALWAYS_OUT} and {marks}", *arguments]


def outcome(*codes: int) -> int:
    """0 where some tests ran and all passed. A process that a signal ended has a code below 0, and has failed."""
    failed = [abs(code) for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


class Line:
    """Pieces of the suite that wait for one of two processes."""

    def __init__(self, waiting: Sequence[Sequence[str]]) -> None:
        self._waiting = deque(waiting)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._kept = tempfile.TemporaryDirectory()
        self._shown: list[Path] = []
        self._lock = threading.Lock()
        self.codes: list[int] = []

    def work(self) -> None:
        """Run pieces, one after another, until none waits."""
        while (process := self._begin()) is not None:
            code = process.wait()
            with self._lock:
                self._running.remove(process)
                self.codes.append(code)

    def _begin(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if not self._waiting:
                return None
            arguments = self._waiting.popleft()
            self._shown.append(Path(self._kept.name) / str(len(self._shown)))
            with self._shown[-1].open("wb") as file:
                process = subprocess.Popen(
                    command("not ray", arguments), cwd=ROOT, env={**os.environ, **SOON_ASLEEP, **ONE_THREAD},
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self._running.add(process)
            return process

    def end(self) -> None:
        """End what still runs, and show what all pieces said."""
        with self._lock:
            self._waiting.clear()
            for process in self._running:
                process.terminate()
                process.wait()
        for path in self._shown:
            sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        sys.stdout.flush()
        self._kept.cleanup()


def main() -> int:
    """Run both; 0 if both passed."""
    arguments = sys.argv[1:]
    line = Line([arguments] if arguments else pieces())
    other = threading.Thread(target=line.work, daemon=True)
    other.start()
    try:
        environment = {**os.environ, **SOON_ASLEEP}
        code = subprocess.run(command("ray", arguments), cwd=ROOT, env=environment, check=False).returncode
        line.work()
        other.join()
    finally:  # interrupted, too
        line.end()
    return outcome(code, *line.codes)


if __name__ == "__main__":
    sys.exit(main())
