"""The process that measures. It reads its orders from stdin and writes one JSON line for every step to stdout.

It is a process of its own because a fault on a device poisons the process that met it, and a peer may hang: whoever
started it ends it, notes the task that was under way, and starts another one for the rest.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import transformers

from gpu import continuous, engine_checks, engine_sides, peer_sides, peer_timing, plan, roof
from gpu.models import PAGE_SIZE, Pair, equal_rows, num_pages, prompts, release
from gpu.shapes import SHAPES
from specbatch import __version__

_SPARE_BYTES = 6 << 30
"""Workspace of forwards and kernels beside weights and caches."""
_FLOPS_SHARE, _LAYER_SECONDS, _PEER_LAYER_SECONDS = 0.2, 0.0007, 0.0015
"""For estimates: share of the measured FLOP/s that prefill reaches, and host seconds of one layer in one round."""
_COMPILE_SECONDS = 75.0
_CAPTURE_SECONDS, _DRAFT_SECONDS = 4.0, 5.0
"""The graphs of a side of the engine; and its profile and the making of a draft, where it has one."""
_WARM_SECONDS, _WARM_TOKENS, _WARM_ROUNDS = 180.0, 64, 4
"""Before the first task of a model: its making, and the compiling of some ten kernels for its shapes."""
_CHECK_SECONDS = 60.0
"""On a GPU a check stops by itself then, and says that it was not whole."""
_MOST_SHARE = 1 / 3
"""Of the time that is left, a task on a GPU may take no more, so that one that hangs does not cost the run."""
_LEAST_LIMIT_SECONDS = {"cuda": 100.0, "cpu": 300.0}
"""What any task may take, the making of its models among it, before it counts as hanging."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What to do. ``deadline`` is in seconds since the epoch; ``warmed`` are models whose kernels need no warming."""

    device: str
    dtype: str
    acceptance: str
    new_tokens: int
    check_tokens: int
    check_rows: int
    rounds: int
    deadline: float
    roof: dict[str, float] | None
    warmed: list[str]
    tasks: list[dict[str, Any]]


class Worker:
    """Runs tasks one after another around at most one resident pair."""

    def __init__(self, orders: Orders, answer: Any) -> None:
        self._orders, self._answer = orders, answer
        self._device, self._dtype = torch.device(orders.device), getattr(torch, orders.dtype)
        self._pair: Pair | None = None
        self._plain_texts: dict[tuple[str, int, int], list[list[int]]] = {}
        self._roof = orders.roof or {}

    def run(self) -> None:
        """Say hello, measure the roof where that is still to be done, then every task."""
        self._say({"hello": self._hardware()})
        if not self._roof:
            self._say({"begin": {"name": "roof"}, "limit_seconds": 90.0})
            self._roof = roof.measure(self._device, self._dtype)
            release()
            self._say({"roof": self._roof})
        for record in self._orders.tasks:
            task = plan.Task(**record)
            left = self._orders.deadline - time.time()
            reason = self._reason_to_leave_out(task, left)
            if reason is not None:
                self._say({"result": record | {"status": "left out", "reason": reason}})
                continue
            if self._device.type == "cuda" and not task.check and task.model not in self._orders.warmed:
                self._warm(task.model, left)
                left = self._orders.deadline - time.time()
            limit = self._limit(task, left)
            self._say({"begin": record | {"name": task.name}, "limit_seconds": limit})
            self._say({"result": record | self._attempt(task, min(self._orders.deadline, time.time() + limit - 10.0))})

    def _warm(self, model: str, left: float) -> None:
        """Make a pair and let the target's kernels be compiled for it, with time of its own: no task may be blamed.

        Kernels stay on the disk, so that a process which comes later, or behind one that was killed here, finds them.
        What is wrong shows in the task, which goes the same way.
        """
        limit = min(_WARM_SECONDS, max(left, 0.0) + 15.0)
        self._say({"begin": {"name": f"{model}: its models and kernels", "warming": model}, "limit_seconds": limit})
        self._orders.warmed.append(model)
        rows, deadline = prompts(1, _WARM_TOKENS), time.time() + limit - 10.0
        try:
            pair = self._ready(model)
            engine_sides.measure(pair, 1, rows, plan.PLAIN, _WARM_ROUNDS, deadline, rounds=_WARM_ROUNDS)
            pair.fit_caches(1)
            release()
        except Exception:
            traceback.print_exc()

    def _attempt(self, task: plan.Task, deadline: float) -> dict[str, Any]:
        """One task; whatever it raises is its result."""
        started = time.time()
        try:
            outcome = {"status": "measured"} | (
                self._check(task, deadline) if task.check else self._cell(task, deadline)
            )
        except engine_sides.NotOfferedError as error:
            outcome = {"status": "left out", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {_one_line(error)}"}
            if isinstance(error, peer_timing.TooSlowError) or self._is_poisoned(error):
                # What hangs goes on in its thread, and a fault of the device stays: a fresh process does the rest.
                self._say({"result": task.record() | outcome})
                os._exit(plan.BROKEN_EXIT)
        release()
        return outcome | {"task_seconds": round(time.time() - started, 2)}

    def _cell(self, task: plan.Task, deadline: float) -> dict[str, Any]:
        pair = self._ready(task.model)
        rows = prompts(task.batch, task.context)
        what = pair, task.batch, rows, task.side, self._orders.new_tokens, deadline
        try:
            if task.side in plan.PEERS:
                figures, texts = peer_sides.measure(*what)
            else:
                figures, texts = engine_sides.measure(*what, rounds=self._orders.rounds)
        finally:
            pair.fit_caches(1)  # also where it failed: the next task must find the memory free
        if task.side == plan.PLAIN:
            self._plain_texts[task.cell] = texts
        plain = self._plain_texts.get(task.cell)
        return figures | {
            "roof_seconds": figures["round_bytes"] / self._roof["bytes_per_second"]
            if "round_bytes" in figures
            else None,
            "equal_rows": None if plain is None else equal_rows(texts, plain),
            "draft_agreement": pair.agreement.get(task.context),
        }

    def _check(self, task: plan.Task, deadline: float) -> dict[str, Any]:
        orders = self._orders
        if self._device.type == "cuda":
            deadline = min(deadline, time.time() + _CHECK_SECONDS)
        if task.check == "bfloat16":
            return engine_checks.bfloat16_rate(self._device, orders.check_tokens, orders.check_rows, deadline)
        return engine_checks.against_twin(self._device, task.check, orders.check_tokens, deadline)

    def _ready(self, model: str) -> Pair:
        if self._pair is None or self._pair.name != model:
            self._pair = None
            release()
            self._pair = Pair(model, self._orders.acceptance, self._device, self._dtype)
        return self._pair

    def _reason_to_leave_out(self, task: plan.Task, left: float) -> str | None:
        estimate = self._estimate(task)
        if left < estimate:
            return f"no time: it takes about {estimate:.0f} s, and {max(left, 0.0):.0f} s were left"
        if task.check or self._device.type != "cuda":
            return None
        needed, total = self._bytes(task), torch.cuda.get_device_properties(self._device).total_memory
        if needed > total:
            return f"no memory: it takes about {needed / 2**30:.0f} of {total / 2**30:.0f} GiB"
        return None

    def _models(self, task: plan.Task) -> tuple[roof.Model, roof.Model]:
        shapes, width = SHAPES[task.model], self._dtype.itemsize
        return roof.Model(shapes.target, width), roof.Model(shapes.draft, width)

    def _estimate(self, task: plan.Task) -> float:
        """Seconds that a task will take, roughly; of a device that is not CUDA nothing is known."""
        if self._device.type != "cuda":
            return 0.0
        if task.check:
            return _CHECK_SECONDS
        target, _ = self._models(task)
        orders = self._orders
        read = target.prefill_flops(task.batch, task.context) / (_FLOPS_SHARE * self._roof["flops_per_second"])
        tokens = task.batch * (task.context + orders.new_tokens)
        memory = roof.round_bytes(target, None, tokens, 0, 0) / self._roof["bytes_per_second"]
        if task.side in plan.PEERS:
            host = target.shape.layers * _PEER_LAYER_SECONDS
            reads, decodes = peer_sides.num_passes(task.side, task.model, task.batch, orders.new_tokens, self._device)
            compiling = _COMPILE_SECONDS * (task.side == plan.STATIC)
            return 2.0 + reads * read + decodes * orders.new_tokens * max(1.5 * memory, host) + compiling
        rounds = orders.rounds + max(orders.rounds, orders.new_tokens)
        round_seconds = max(1.5 * memory, target.shape.layers * _LAYER_SECONDS)
        drafting = 0.0 if task.side.startswith(plan.PLAIN) else _DRAFT_SECONDS
        return 2.0 + _CAPTURE_SECONDS + drafting + 1.5 * read + rounds * round_seconds

    def _limit(self, task: plan.Task, left: float) -> float:
        """Seconds after which a task counts as hanging, and is ended with its process."""
        estimate = self._estimate(task)
        if self._device.type != "cuda":
            return min(_LEAST_LIMIT_SECONDS["cpu"], max(left, 0.0) + 15.0)
        if task.check:
            return min(2 * _CHECK_SECONDS, max(left, 0.0) + 15.0)
        fair = max(1.5 * estimate + 30.0, _MOST_SHARE * left)
        return min(4 * estimate + _LEAST_LIMIT_SECONDS["cuda"], fair, max(left, 0.0) + 15.0)

    def _bytes(self, task: plan.Task) -> float:
        """Memory of a task: both copies of the weights, and what its caches are made for."""
        target, draft = self._models(task)
        weights = 2 * (target.weight_bytes + draft.weight_bytes)
        if task.side in plan.PEERS:
            cache = peer_sides.needed_bytes(task.side, target, task.batch, task.context, self._orders.new_tokens)
            return weights + cache + _SPARE_BYTES
        room = engine_sides.room_tokens(
            task.side, task.batch * task.context, self._orders.new_tokens, self._orders.rounds
        )
        tokens = (1 + num_pages(task.batch, task.context + room)) * PAGE_SIZE
        return weights + tokens * (target.kv_bytes + draft.kv_bytes) + _SPARE_BYTES

    def _hardware(self) -> dict[str, Any]:
        name = platform.processor() or platform.machine()
        memory = None
        if self._device.type == "cuda":
            properties = torch.cuda.get_device_properties(self._device)
            name, memory = properties.name, properties.total_memory
        return {
            "device": name,
            "memory_bytes": memory,
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
            "flash_kernels": continuous.flash_kernels(),
            "versions": {
                "specbatch": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "triton": _version_of("triton"),
                "cuda": torch.version.cuda,
                "python": platform.python_version(),
            },
        }

    def _is_poisoned(self, error: Exception) -> bool:
        """Whether the device has met a fault that no later call can leave behind."""
        if not isinstance(error, RuntimeError) or self._device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _say(self, line: dict[str, Any]) -> None:
        self._answer.write(json.dumps(line) + "\n")
        self._answer.flush()


def _version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def main() -> None:
    """Answers go to the real stdout; whatever libraries print goes to stderr."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    Worker(Orders(**json.load(sys.stdin)), answer).run()
    answer.close()
    os._exit(0)  # a thread that a library left behind must not hold it up


if __name__ == "__main__":
    main()
