"""How near decoding on a GPU comes to the memory roof, beside its peers, in under ten minutes.

    make bench-gpu                     # or: python benchmarks/bench_gpu.py --seconds 540 --out FOLDER/gpu
    python benchmarks/bench_gpu.py --only checks
    python benchmarks/bench_gpu.py --device cpu --shapes tiny --batches 1,2 --contexts 64   # tries the program

Models of 1 B and 8 B shapes are made on the device from the bundled pair. A cell is a model, a number of rows in
flight and a length of prompts; a task is one side of a cell. Tasks run in a process of their own, the most telling
first, until all are done or the time is up; the results are written behind every task. A task that hangs or breaks its
process is named with its error, and a fresh process does the rest.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu import plan, report
from gpu.process import WORKER, MeasuringProcess
from gpu.shapes import SHAPES

HERE = Path(__file__).resolve().parent
_KINDS = ("cells", "checks")
_LEAST_SECONDS = 20.0
"""With less time left no fresh process is started."""
_START_SECONDS = 120.0
"""For the imports of a process and its first answer."""


class Run:
    """One run: its document, which is written behind every answer, and what is still to be done."""

    def __init__(self, options: argparse.Namespace, command: str, worker: Sequence[str] = WORKER) -> None:
        self._options, self._worker = options, worker
        self._started = time.time()
        self._deadline = self._started + options.seconds
        self._todo = plan.schedule(
            options.shapes if "cells" in options.only else [],
            options.batches,
            options.contexts,
            options.sides,
            plan.CHECKS if "checks" in options.only else [],
        )
        self._under_way: dict[str, Any] | None = None
        self._ended: list[tuple[plan.Task, bool]] = []
        self._warmed: list[str] = []
        self._limit = 0.0
        self._last_words = ""
        self._out: Path | None = options.out
        self.document: dict[str, Any] = {
            "recipe": {
                "benchmark": "gpu",
                "dtype": options.dtype,
                "acceptance": options.acceptance,
                "new_tokens": options.new_tokens,
                "rounds": options.rounds,
                "seconds": options.seconds,
                "parameters": {
                    name: {role: getattr(SHAPES[name], role).parameters for role in ("target", "draft")}
                    for name in options.shapes
                },
            },
            "command": command,
            "date": datetime.date.today().isoformat(),
            "hardware": {},
            "roof": {},
            "seconds": 0.0,
            "results": [],
            "not_reached": [],
        }

    def go(self) -> None:
        """Processes one after another until nothing is left to do, or no time."""
        num_silent = 0
        while self._todo and time.time() < self._deadline - _LEAST_SECONDS:
            before = len(self._todo)
            self._one_process()
            self._leave_out_what_breaks()
            # A process that ends before its first task would end so again.
            num_silent = num_silent + 1 if len(self._todo) == before else 0
            if num_silent == 2:
                break
        reason = "no time: the run had ended"
        if num_silent == 2:
            reason = f"the processes that measure did not start{self._why()}"
        self.document["results"] += [task.record() | {"status": "left out", "reason": reason} for task in self._todo]
        self._todo = []
        self._write()

    @property
    def out(self) -> Path:
        """The JSON file; its name is known when the device is."""
        if self._out is None:
            name = re.sub(r"[^A-Za-z0-9]+", "-", str(self.document["hardware"].get("device", "unknown"))).strip("-")
            self._out = HERE / "results" / f"gpu_{name.lower()}_{self.document['date']}.json"
        return self._out.with_suffix(".json")

    def _one_process(self) -> None:
        options = self._options
        orders = {
            "device": options.device,
            "dtype": options.dtype,
            "acceptance": options.acceptance,
            "new_tokens": options.new_tokens,
            "rounds": options.rounds,
            "check_tokens": options.check_tokens,
            "check_rows": options.check_rows,
            "deadline": self._deadline,
            "roof": self.document["roof"] or None,
            "warmed": self._warmed,
            "tasks": [task.record() for task in self._todo],
        }
        self._expect(None, min(_START_SECONDS, self._deadline - time.time()))
        reason = "its process ended"
        with MeasuringProcess(orders, self._worker) as process:  # killed also where this process is told to end
            try:
                while (answer := process.answer(self._limit)) is not None:
                    self._take(answer)
            except TimeoutError:
                reason = "it did not end in its time, and its process was killed"
        self._last_words, code = process.last_words, process.exit_code
        if self._under_way is not None and "side" in self._under_way:
            task = plan.Task(**{key: value for key, value in self._under_way.items() if key != "name"})
            self._keep(task.record() | {"status": "failed", "reason": f"{reason} (exit code {code}){self._why()}"})
            self._ended[-1] = task, True
        elif code == plan.BROKEN_EXIT and self._ended:
            self._ended[-1] = self._ended[-1][0], True

    def _leave_out_what_breaks(self) -> None:
        """What takes a way of the engine on which two tasks in a row broke their process."""
        for task in list(self._todo):
            if alike := plan.lost_alike(task, self._ended):
                names = " and ".join(one.name for one in alike)
                reason = f"the last two tasks like it broke their process ({names})"
                self._keep(task.record() | {"status": "left out", "reason": reason})

    def _why(self) -> str:
        """What the process that measures said last, where it said anything."""
        return f", with the last words {self._last_words[:200]!r}" if self._last_words else ""

    def _take(self, answer: dict[str, Any]) -> None:
        """One line of the process that measures."""
        if "hello" in answer:
            self.document["hardware"] = answer["hello"]
            self._write()
        elif "begin" in answer:
            self._expect(answer["begin"], answer["limit_seconds"])
            if "warming" in answer["begin"]:
                self._warmed.append(answer["begin"]["warming"])  # once, whatever becomes of it
            print(f"{time.time() - self._started:5.0f} s  {answer['begin']['name']}", flush=True)
        elif "roof" in answer:
            self.document["roof"] = answer["roof"]
            self._under_way = None
            self._write()
        elif "result" in answer:
            self._under_way = None
            self._keep(answer["result"])

    def _expect(self, task: dict[str, Any] | None, seconds: float) -> None:
        """What is under way, and for how long it may be."""
        self._under_way, self._limit = task, time.time() + seconds

    def _keep(self, result: dict[str, Any]) -> None:
        task = plan.Task(**{name: result[name] for name in ("model", "batch", "context", "side", "check")})
        self._todo.remove(task)
        if result["status"] != "left out":
            self._ended.append((task, False))
        self.document["results"].append(result)
        if result["status"] == "measured" and not task.check:
            over = report.over_roof(result)
            roof = "" if over is None else f", {over:.2f} of the roof"
            print(f"         {result['tokens_per_second']:.1f} tokens/s{roof}", flush=True)
        elif result["status"] == "failed":
            print(f"         failed: {result['reason']}", flush=True)
        self._write()

    def _write(self) -> None:
        """A file that is replaced whole: whoever ends this run finds the last state."""
        self.document["seconds"] = round(time.time() - self._started, 1)
        self.document["not_reached"] = [task.record() for task in self._todo]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.out, json.dumps(self.document, indent=1) + "\n"),
            (self.out.with_suffix(".md"), report.render(self.document)),
        ):
            part = path.with_name(f"{path.name}.part")
            part.write_text(text)
            part.replace(path)


def _numbers(text: str) -> list[int]:
    return [int(value) for value in text.split(",")]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540.0, help="budget of the whole run (default: 540)")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, float32 on cpu")
    parser.add_argument("--shapes", default="8B,1B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batches", type=_numbers, default=[*plan.BATCHES], help="rows in flight")
    parser.add_argument("--contexts", type=_numbers, default=[*plan.CONTEXTS], help="tokens of each prompt")
    parser.add_argument("--sides", default="", help=f"a subset, split by ';': {'; '.join(plan.SIDES)}")
    parser.add_argument("--only", default=",".join(_KINDS), help=f"of {', '.join(_KINDS)}")
    parser.add_argument("--acceptance", default="0.8", help="of a synthetic draft; 'own' takes the taught one's")
    parser.add_argument("--new-tokens", type=int, default=96, help="tokens of each row (default: 96)")
    parser.add_argument("--rounds", type=int, default=40, help="fewest rounds of the engine that are timed (40)")
    parser.add_argument("--check-tokens", type=int, default=24, help="tokens of each row of a check")
    parser.add_argument("--check-rows", type=int, default=32, help="rows of the bfloat16 check")
    parser.add_argument("--out", type=Path, help="JSON file; the report is written beside it")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    chosen = [side.strip() for side in options.sides.split(";") if side.strip()]
    options.sides = [side for side in plan.SIDES if side in chosen] if chosen else [*plan.SIDES]
    options.shapes, options.only = options.shapes.split(","), options.only.split(",")
    for name, given, known in (
        ("--sides", chosen, plan.SIDES), ("--shapes", options.shapes, SHAPES), ("--only", options.only, _KINDS),
    ):  # fmt: skip
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"{name}: there is no {', '.join(unknown)}; there are: {'; '.join(known)}")
    try:
        is_share = options.acceptance == "own" or 0.0 < float(options.acceptance) < 1.0
    except ValueError:
        is_share = False
    if not is_share:
        parser.error(f"--acceptance {options.acceptance}: give 'own', or a share between 0 and 1")
    return options


def command_of(arguments: list[str]) -> str:
    """The command line without the place that the results go to."""
    kept = list(arguments)
    while "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return shlex.join(["python", "benchmarks/bench_gpu.py", *kept])


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; 1 where nothing could be measured."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = sys.argv[1:] if arguments is None else arguments
    run = Run(parse(given), command_of(given))
    run.go()
    print(f"\n{report.render(run.document)}\nwritten: {run.out} and {run.out.stem}.md")
    # Once more at the end, which is what a log that was cut keeps.
    cells = report.cells_of(run.document["results"])
    print("\n".join(f"- {aim}: {verdict}" for aim, verdict in report.aims(cells, run.document["recipe"]["acceptance"])))
    return 0 if any(result["status"] == "measured" for result in run.document["results"]) else 1


if __name__ == "__main__":
    sys.exit(main())
