"""The process that runs one night: ``specbatch submit``, in a session of its own, with its words kept in a file.

The daemon holds neither Ray nor torch; what a night needs of memory goes with its process.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from specbatch.jobs.output.lease import process_started
from specbatch.jobs.schedules.nights import Night
from specbatch.jobs.schedules.schedule import Schedule, job_text
from specbatch.schemas.errors import ErrorCode

MAX_LOG_BYTES = 1 << 20
_CUT = b"... (the beginning is left out)\n"
_HELD = re.compile(rb'\b%s: ([^;"\r\n]+)' % ErrorCode.JOB_HELD.value.encode())

CommandOf = Callable[[Schedule, Night, Path], list[str]]
"""The command line of a night, given its job file."""


def submit_command(schedule: Schedule, night: Night, job_file: Path) -> list[str]:
    """``specbatch submit`` of one night, by the interpreter that runs this.

    Error rows do not fail a night: its exit code is 0 with them, and their number is in its report.
    """
    command = [sys.executable, "-m", "specbatch", "submit", "--config", str(job_file)]
    command += ["--logical-date", night.planned, "--timezone", schedule.timezone]
    has_own_rule = "row_errors_ok" in (schedule.job.get("execution") or {})
    return command if has_own_rule else [*command, "--row-errors-ok"]


class Child:
    """A running night. ``close`` removes its folder once it has ended.

    Args:
        environment: of the process.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, schedule: Schedule, night: Night, command_of: CommandOf, environment: Mapping[str, str]) -> None:
        assert night.job is not None, "a night is begun before it is run"
        self._folder = Path(tempfile.mkdtemp(prefix="specbatch-night-"))
        self._log = self._folder / "night.log"
        try:
            job_file = self._folder / f"{schedule.name}.yaml"
            job_file.write_text(job_text(night.job), encoding="utf-8")
            self._process = self._start(command_of(schedule, night, job_file), environment)
        except OSError:
            self.close()
            raise
        self.pid = self._process.pid
        self.started = process_started(self.pid)

    def _start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,  # nothing that lies in the folder of the daemon may be imported by the night
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the keys of a terminal reach the daemon alone, which passes them on once
            )

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self, number: signal.Signals) -> None:
        """Pass a signal on: the first one has the run finish its shards, a second one ends it."""
        if self._process.poll() is None:
            os.kill(self.pid, number)

    def log(self) -> bytes:
        """What it printed so far, of a long one the end."""
        size = self._log.stat().st_size
        with self._log.open("rb") as file:
            if size <= MAX_LOG_BYTES:
                return file.read()
            file.seek(size - MAX_LOG_BYTES)
            return _CUT + file.read(MAX_LOG_BYTES).partition(b"\n")[2]

    def close(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def who_holds(log: bytes) -> str:
    """What a run said of the one that holds its output, without what to do about it; empty where it said nothing.

    Args:
        log: what the run printed, in plain lines or as JSON.
    """
    said = _HELD.findall(log)
    return said[-1].decode("utf-8", "replace") if said else ""
