"""The process that measures, from outside: orders go in once, answers come line by line, and it may be killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
WORKER = (sys.executable, "-m", "gpu.worker")
_END_SECONDS = 10.0
"""Between its last word and its end."""


class MeasuringProcess:
    """One process; as a context it is dead behind it, whatever happened.

    Attributes:
        last_words: the last line that it complained with.
        exit_code: once it has ended; below 0 where a signal ended it.

    Args:
        orders: what it is to measure, as ``gpu.worker`` reads it.
        command: the program.
    """

    def __init__(self, orders: Mapping[str, Any], command: Sequence[str] = WORKER) -> None:
        self.last_words = ""
        self.exit_code: int | None = None
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process = subprocess.Popen(command, env=_environ(), text=True, **pipes)
        requests, lines, complaints = self._process.stdin, self._process.stdout, self._process.stderr
        assert requests is not None
        assert lines is not None
        assert complaints is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which its first answer tells
            requests.write(json.dumps(orders))
            requests.close()
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()
        self._overhearing = threading.Thread(target=self._overhear, args=(complaints,), daemon=True)
        self._overhearing.start()

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.exit_code = self._process.wait()
        self._overhearing.join(timeout=1.0)

    def answer(self, until: float) -> dict[str, Any] | None:
        """What it says next; None where it has ended.

        Raises:
            TimeoutError: it said nothing until then (``time.time()``), or does not end.
        """
        try:
            line = self._answers.get(timeout=max(until - time.time(), 0.1))
            if line is None:
                self._process.wait(timeout=_END_SECONDS)
                return None
        except (queue.Empty, subprocess.TimeoutExpired):
            raise TimeoutError from None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._answers.put(line)
        self._answers.put(None)

    def _overhear(self, complaints: Iterable[str]) -> None:
        for line in complaints:
            sys.stderr.write(line)
            self.last_words = line.strip() or self.last_words


def _environ() -> dict[str, str]:
    """Nothing is looked for on a hub: there may be no network, and waiting for one would cost the run."""
    paths = [str(BENCHMARKS.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
