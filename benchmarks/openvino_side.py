"""OpenVINO GenAI as a side: a worker process in an environment of its own, spoken to in JSON lines."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import Measured, Run
from workload import Row

from specbatch.schemas.canonical import sha256_file

CACHE = Path.home() / ".cache" / "specbatch"
DEFAULT_PYTHON = CACHE / "openvino" / "bin" / "python"
"""Where ``make bench-openvino`` puts the environment."""

DRAFT_LENGTHS = (2, 3, 4, 5)
SETTINGS = {"split_fuse": True, "batched_tokens": 256, "hint": "LATENCY"}
"""Measured best on 2 cores: the throughput hint, and prompts in phases of their own, are both slower."""

_WORKER = Path(__file__).resolve().parent / "peer_openvino.py"


def converted(python: Path, model: Path) -> Path:
    """The OpenVINO form of a model folder; made once for the same weights, and kept."""
    out = CACHE / "openvino-models" / sha256_file(model / "model.safetensors")[:16]
    if not (out / "openvino_model.xml").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            made = Path(folder) / "model"
            done = subprocess.run([python, _WORKER, "convert", model, made], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"OpenVINO could not convert {model.name}: {done.stderr[-2000:]}")
            made.rename(out)
    return out


class OpenVino:
    """One worker process. Use as a context manager."""

    def __init__(self, python: Path, threads: int) -> None:
        self._python, self._threads = python, threads
        self.versions: dict[str, str] = {}

    def __enter__(self) -> OpenVino:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [self._python, _WORKER, "serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def load(self, target: Path, draft: Path | None, cap: int) -> None:
        """Make the pipelines for a cap, the plain one and the one with a draft."""
        request = {"target": str(target), "draft": str(draft) if draft else None, "cap": cap, "threads": self._threads}
        self.versions = self._ask({"do": "load", **request, "settings": SETTINGS})

    def runs(self, draft_lengths: Sequence[int]) -> dict[str, Run]:
        """One candidate for each draft length; 0 is the plain pipeline."""
        return {f"K={k}" if k else "": self._run(k) for k in draft_lengths}

    def _run(self, num_draft_tokens: int) -> Run:
        def measure(rows: Sequence[Row]) -> Measured:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(list(rows), file)
                file.flush()
                answer = self._ask({"do": "run", "rows": file.name, "num_draft_tokens": num_draft_tokens})
            ids = tuple(tuple(row) for row in answer["token_ids"])
            return Measured(answer["seconds"], ids, {"rows_in_flight": answer["rows_in_flight"]})

        return measure

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the OpenVINO worker ended: {self._errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
