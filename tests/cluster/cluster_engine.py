"""The engine of the cluster tests: the small fake one, slow enough to be broken in the middle of a job."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from fake_engine import FakeEngine

from specbatch.schemas.messages import WorkerConfig
from specbatch.specdec.output import SequenceOutput

HANG = b"hang"
HURRY_SECONDS = 0.005


class ClusterEngine(FakeEngine):
    """The first process that decodes the prompt ``hang`` stays in native code and keeps the interpreter to itself.

    After a number of rows steps take ten times as long, so that no worker ends the job before another is ready. Once
    there is a file ``hurry`` in the folder, every step is short: the scenario has seen what it waited for.
    """

    def step(self) -> list[SequenceOutput]:
        if self._step_seconds > HURRY_SECONDS and (Path(os.environ["CLUSTER_FOLDER"]) / "hurry").exists():
            self._step_seconds = HURRY_SECONDS
        elif self._step_seconds > HURRY_SECONDS and len(self.log) > int(os.environ["CLUSTER_NUM_QUICK_ROWS"]):
            self._step_seconds = 10 * float(os.environ["CLUSTER_STEP_SECONDS"])
        if any(bytes(row.prompt_ids) == HANG for row in self._active):
            try:
                os.close(os.open(Path(os.environ["CLUSTER_FOLDER"]) / "hung", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return super().step()
            ctypes.PyDLL(None).sleep(3600)
        return super().step()


def make(config: WorkerConfig) -> ClusterEngine:
    return ClusterEngine(config, step_seconds=float(os.environ["CLUSTER_STEP_SECONDS"]))
