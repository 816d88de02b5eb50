"""The engine against itself without a draft and against its peers, all in one run.

    make bench            # or: python benchmarks/bench_engine.py --caps 1,4 --sides plain,auto --repeats 1

The target is the bundled one inflated to about 120 M parameters, so that a forward has the cost of a real model;
acceptance stays the pair's own. A cap is the most rows in flight, the same for every side. Sides alternate within each
repeat, every other repeat in reverse; figures are medians; the tokens of every side are compared with those of plain
decoding. A peer's settings are chosen by a short pass of each before the first repeat.

Results are kept in one JSON file by cap, so that a run can be split: a cap that is measured again replaces its entry.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_report as report
import peers
import torch
from openvino_side import DEFAULT_PYTHON, DRAFT_LENGTHS, OpenVino, converted
from peers import Measured, Run
from workload import ROOT, Row, load_rows, num_rows, tuning_rows, write_random_draft

from specbatch.jobs.planning.machine import count_cores, describe_hardware
from specbatch.specdec.inflate import inflate
from specbatch.specdec.models.folders import locate_model

TAUGHT, STRANGER = "code-pair/draft-taught", "code-pair/draft-stranger"


@dataclass(frozen=True, slots=True)
class Models:
    """Folders of the run."""

    target: Path
    taught: Path
    untaught: Path
    random: Path


def candidates(models: Models, cap: int, openvino: OpenVino | None, wanted: list[str]) -> dict[str, dict[str, Run]]:
    """By side: the settings to try."""
    made = {
        report.PLAIN: lambda: peers.engine(models.target, None, "off", cap),
        report.AUTO: lambda: peers.engine(models.target, models.taught, "auto", cap),
        report.UNTAUGHT: lambda: peers.engine(models.target, models.untaught, "auto", cap),
        report.RANDOM: lambda: peers.engine(models.target, models.random, "auto", cap),
        report.GENERATE: lambda: peers.padded_generate(models.target, cap),
        report.GENERATE_BATCH: lambda: peers.continuous_batching(models.target, cap),
    }
    if cap == 1:
        made[report.ASSISTED] = lambda: peers.assisted(models.target, models.taught)
    if openvino is not None:
        made[report.OPENVINO] = lambda: openvino.runs((0,))
        made[report.OPENVINO_DRAFT] = lambda: openvino.runs(DRAFT_LENGTHS)
    return {side: make() for side, make in made.items() if side in wanted}


def choose(settings: dict[str, Run], rows: list[Row], cap: int) -> tuple[str, Run]:
    """The fastest setting in a short pass, after one batch that warms up."""
    seconds = {}
    for name, run in settings.items():
        run(rows[:cap])
        seconds[name] = run(rows).seconds if len(settings) > 1 else 0.0
    best = min(seconds, key=seconds.__getitem__)
    return best, settings[best]


def agreement(ours: Measured, plain: Measured) -> tuple[float, float]:
    """Share of rows that are equal to plain decoding, and of tokens that stand before a row's first difference."""
    same_rows = same_tokens = 0
    for left, right in zip(ours.token_ids, plain.token_ids, strict=True):
        pairs = list(zip(left, right, strict=False))
        equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        same_tokens += equal
        same_rows += left == right
    return same_rows / len(plain.token_ids), same_tokens / sum(len(ids) for ids in plain.token_ids)


def bench_cap(sides: dict[str, dict[str, Run]], rows: list[Row], cap: int, repeats: int) -> dict[str, Any]:
    """All sides at one cap."""
    short = tuning_rows(rows, cap)
    chosen = {side: choose(settings, short, cap) for side, settings in sides.items()}
    load = os.getloadavg()[0]
    measured: dict[str, list[Measured]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in list(sides) if repeat % 2 == 0 else reversed(sides):
            measured[side].append(chosen[side][1](rows))
            print(f"cap {cap} repeat {repeat}: {side}: {measured[side][-1].tokens_per_second:.1f} tokens/s", flush=True)
    plain = measured[report.PLAIN][0]
    entries = {}
    for side, passes in measured.items():
        same_rows, same_tokens = agreement(passes[0], plain)
        entries[side] = {
            "tokens_per_second": statistics.median(each.tokens_per_second for each in passes),
            "seconds": [round(each.seconds, 3) for each in passes],
            "setting": chosen[side][0],
            "same_rows": same_rows,
            "same_tokens": same_tokens,
            "details": passes[0].details,
        }
    return {
        "cap": cap,
        "rows": len(rows),
        "tokens": sum(wanted for _, wanted in rows),
        "repeats": repeats,
        "load_average_before": round(load, 2),
        "sides": entries,
        "ratios": report.ratios({side: [each.seconds for each in passes] for side, passes in measured.items()}),
    }


def earlier(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """What earlier runs of the same recipe left in the results file."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"recipe": recipe, "results": []}
    if document.get("recipe") != recipe:
        raise SystemExit(f"{path.name} holds results of another recipe; give another --out or move it away")
    return document


def keep(path: Path, entry: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """Put one cap into the results file, beside the caps of earlier runs."""
    document = earlier(path, recipe)
    others = [result for result in document["results"] if result["cap"] != entry["cap"]]
    document["results"] = sorted([*others, entry], key=lambda result: int(result["cap"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{describe(document)}\n\n{report.render(document['results'])}\n")
    return document


def describe(document: dict[str, Any]) -> str:
    """Recipe of the table in a few lines."""
    recipe = document["recipe"]
    hardware = recipe["hardware"]
    peer_versions: dict[str, str] = next((r["openvino"] for r in document["results"] if r.get("openvino")), {})
    versions = ", ".join(f"{k} {v}" for k, v in (recipe["versions"] | peer_versions).items())
    return (
        f"float32 target of {recipe['target_parameters'] / 1e6:.0f} M parameters, greedy; a cap is the most rows in "
        f"flight.\nCompletion lengths: log-normal, median 64, sigma 0.7, from 8 to 256, seed {recipe['seed']}; end of "
        f"sequence ignored. {recipe['threads']} threads.\nCommands: "
        + "; ".join(dict.fromkeys(f"`{result['command']}` ({result['date']})" for result in document["results"]))
        + f".\nHardware: {hardware['cpu']}, {hardware['cores']} cores. Versions: {versions}, "
        f"Python {recipe['python']}."
    )


def command(arguments: list[str]) -> str:
    """The recipe's command line: without the options that name places on this machine."""
    kept = list(arguments)
    for option in ("--out", "--openvino-python"):
        while option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return shlex.join(["python", "benchmarks/bench_engine.py", *kept])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options; ``--sides`` are checked here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--caps", default="1,4,8,16,32,64", help="rows in flight")
    parser.add_argument("--rows", type=int, help="rows of a pass (default: by cap)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default="", help=f"a subset, split by ';': {'; '.join(report.SIDES)}")
    parser.add_argument("--openvino-python", type=Path, default=DEFAULT_PYTHON, help="made by `make bench-openvino`")
    parser.add_argument("--parameters", type=int, default=120_000_000)
    parser.add_argument("--untaught", default=STRANGER, help="a draft of the same vocabulary that should not pay")
    parser.add_argument("--threads", type=int, default=count_cores(), help="arithmetic threads of every side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file; the table is written beside it")
    options = parser.parse_args(arguments)
    chosen = [side.strip() for side in options.sides.split(";") if side.strip()]
    unknown = set(chosen) - set(report.SIDES)
    if unknown:
        parser.error(f"--sides: there is no {', '.join(sorted(unknown))}")
    options.sides = [report.PLAIN, *(side for side in chosen if side != report.PLAIN)] if chosen else [*report.SIDES]
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    options = parse(arguments)
    threads = options.threads
    torch.set_num_threads(threads)
    hardware = describe_hardware()
    today = datetime.date.today().isoformat()
    out = options.out or ROOT / "benchmarks" / "results" / f"engine_{hardware['cores']}-cores_{today}.json"
    wants_openvino = any(side in options.sides for side in (report.OPENVINO, report.OPENVINO_DRAFT))
    has_openvino = wants_openvino and options.openvino_python.is_file()
    if wants_openvino and not has_openvino:
        print("OpenVINO GenAI is left out: there is no environment for it; `make bench-openvino` makes one")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        models = Models(
            Path(folder) / "target",
            locate_model(TAUGHT).path,
            locate_model(options.untaught).path,
            Path(folder) / "random",
        )
        shape = inflate("code-pair/target", models.target, options.parameters)
        write_random_draft(TAUGHT, models.random, options.seed)
        openvino = None
        if has_openvino:
            python = options.openvino_python
            openvino_pair = converted(python, models.target), converted(python, models.taught)
            openvino = stack.enter_context(OpenVino(python, threads))
        recipe = {
            "benchmark": "engine",
            "hardware": hardware,
            "threads": threads,
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in ("specbatch", "torch", "transformers")},
            "target_parameters": shape.parameters,
            "seed": options.seed,
        }
        document = earlier(out, recipe)  # refuses before anything is measured
        for cap in (int(value) for value in options.caps.split(",")):
            rows = load_rows(models.target, options.rows or num_rows(cap), options.seed)
            if openvino is not None:
                openvino.load(*openvino_pair, cap)
            entry = bench_cap(candidates(models, cap, openvino, options.sides), rows, cap, options.repeats)
            entry |= {
                "command": command(arguments if arguments is not None else sys.argv[1:]),
                "date": today,
                "openvino": openvino.versions if openvino is not None else {},
            }
            document = keep(out, entry, recipe)
    print(f"\n{describe(document)}\n\n{report.render(document['results'])}\n\nwritten: {out} and {out.stem}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
