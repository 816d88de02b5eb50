"""Ratios, the targets they are held against, and the Markdown of ``bench_engine.py``."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

PLAIN, AUTO = "plain", "auto"
UNTAUGHT, RANDOM = "auto, untaught draft", "auto, random draft"
GENERATE, GENERATE_BATCH, ASSISTED = "generate", "generate_batch", "generate, assistant"
OPENVINO, OPENVINO_DRAFT = "OpenVINO", "OpenVINO, draft"
SIDES = (PLAIN, AUTO, UNTAUGHT, RANDOM, GENERATE, GENERATE_BATCH, ASSISTED, OPENVINO, OPENVINO_DRAFT)

MOST_PROBING = 0.01
"""Share of the time that forwards of a draft that does not pay may take behind the first 5 % of a pass."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Speed of one side over that of the fastest of others, with the least it must reach at each cap."""

    name: str
    over: str
    under: tuple[str, ...]
    targets: dict[int, float]


_ALL = (1, 4, 8, 16, 32, 64)
RATIOS = (
    Ratio("auto / plain", AUTO, (PLAIN,), {1: 1.4, 4: 1.6, 8: 1.8, 16: 1.1, 32: 0.98, 64: 0.98}),
    Ratio("untaught / plain", UNTAUGHT, (PLAIN,), dict.fromkeys(_ALL, 0.97)),
    Ratio("random / plain", RANDOM, (PLAIN,), dict.fromkeys(_ALL, 0.97)),
    Ratio("plain / generate", PLAIN, (GENERATE,), dict.fromkeys((8, 16, 32), 2.0)),
    Ratio("plain / generate_batch", PLAIN, (GENERATE_BATCH,), dict.fromkeys((8, 16, 32), 1.3)),
    Ratio("auto / generate, assistant", AUTO, (ASSISTED,), {1: 1.3}),
    Ratio("auto / better OpenVINO", AUTO, (OPENVINO, OPENVINO_DRAFT), dict.fromkeys((4, 8, 16), 1.0)),
)


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Ratios of median speeds; ``least`` and ``most`` are those of single repeats.

    Args:
        seconds: seconds of every repeat by side; all sides decode the same tokens.
    """
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    found = {}
    for ratio in RATIOS:
        present = [side for side in ratio.under if side in seconds]
        if ratio.over not in seconds or not present:
            continue
        best = min(present, key=middle.__getitem__)
        each = [theirs / ours for theirs, ours in zip(seconds[best], seconds[ratio.over], strict=True)]
        found[ratio.name] = {"ratio": middle[best] / middle[ratio.over], "least": min(each), "most": max(each)}
    return found


def mark(value: float, target: float | None) -> str:
    """A target beside the figure, and whether it is met."""
    if target is None:
        return ""
    return f", ≥ {target:g} met" if value >= target else f", **short of {target:g}**"


def render(results: list[dict[str, Any]]) -> str:
    """Markdown: speeds, ratios with their targets, then what lies behind them."""
    results = sorted(results, key=lambda result: result["cap"])
    parts = [_speeds(results), _ratios(results), _behind(results)]
    return "\n\n".join(parts)


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _speeds(results: list[dict[str, Any]]) -> str:
    names = [side for side in SIDES if any(side in result["sides"] for result in results)]
    lines = [
        [str(result["cap"]), str(result["rows"])]
        + [f"{result['sides'][name]['tokens_per_second']:.0f}" if name in result["sides"] else "" for name in names]
        for result in results
    ]
    return "Output tokens per second, medians:\n\n" + _table(["cap", "rows", *names], lines)


def _ratios(results: list[dict[str, Any]]) -> str:
    names = [ratio for ratio in RATIOS if any(ratio.name in result["ratios"] for result in results)]
    lines = []
    for result in results:
        line = [str(result["cap"])]
        for ratio in names:
            found = result["ratios"].get(ratio.name)
            target = ratio.targets.get(result["cap"])
            line.append(
                f"{found['ratio']:.2f} ({found['least']:.2f}–{found['most']:.2f}){mark(found['ratio'], target)}"
                if found
                else ""
            )
        lines.append(line)
    note = "Ratios of the medians (smallest and largest of single repeats), and the target where there is one:"
    return f"{note}\n\n" + _table(["cap", *(ratio.name for ratio in names)], lines)


def _behind(results: list[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        for name, side in result["sides"].items():
            same = f"{side['same_rows']:.1%} / {side['same_tokens']:.1%}"
            line = [str(result["cap"]), name, side["setting"], same]
            details = side["details"]
            if name in (AUTO, UNTAUGHT, RANDOM):
                late = details["late_draft_time_share"]
                line += [f"{details['draft_step_share']:.1%}", f"{details['acceptance']:.2f}"]
                line.append(f"{details['draft_time_share']:.1%} / {late:.1%}")
                if name == RANDOM:
                    line[-1] += f", ≤ {MOST_PROBING:.0%} met" if late <= MOST_PROBING else ", **not off**"
            lines.append(line + [""] * (7 - len(line)))
    head = ["cap", "side", "setting (best of those tried)", "same as plain: rows / tokens"]
    head += ["steps with drafts of any drafter", "accepted", "time in the draft model: all / after the first 5 %"]
    return "Behind the figures:\n\n" + _table(head, lines)
