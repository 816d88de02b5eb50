"""What a comparison says, in words and cells: the same in every form of the report. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.comparison import METRICS, REGRESSION_BELOW, Comparison, Delta, Metric
from specbatch.jobs.reports.facts import money, short_name
from specbatch.jobs.reports.model import Finding
from specbatch.jobs.reports.unfinished import Unfinished, ending_level
from specbatch.schemas.manifest import Manifest

Nights = Sequence[tuple[str, Manifest]]

NAME_WIDTH = 22
MARKS = {"worse": "worse", "better": "better", "noise": "within noise", "same": "", "unknown": ""}


def show_value(metric: Metric, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "-"
    if metric.key.endswith("_rate"):
        return fmt.percent(value)
    return fmt.rate(value) if metric.key == "output_tokens_per_second" else money(value)


def show_change(delta: Delta) -> str:
    """``+12.3 %`` of the base, or ``-1.2 pt``: points of a hundred."""
    if delta.change is None:
        return "-"
    return f"{100 * delta.change:+.1f} {'%' if delta.metric.is_relative else 'pt'}"


def show_noise(delta: Delta) -> str:
    """The half width of the change's interval; empty where nothing is known of it."""
    if not delta.noise:
        return ""
    return f"+-{100 * delta.noise:.1f} {'%' if delta.metric.is_relative else 'pt'}"


def thresholds() -> list[str]:
    """Which change of which figure is flagged, and why so much."""
    return [
        f"{metric.label}, {'less' if metric.more_is_better else 'more'} by more than {metric.reason}"
        for metric in METRICS
    ]


def conclusions(nights: Nights, comparison: Comparison, endings: Sequence[Unfinished | None]) -> list[str]:
    """What the comparison says, one sentence each: who is not complete and why, the fastest, regressions, caveats."""
    names = [f"[{index + 1}] {short_name(output, NAME_WIDTH)}" for index, (output, _) in enumerate(nights)]
    speeds = [manifest.observed.throughput.output_tokens_per_second for _, manifest in nights]
    best = comparison.fastest
    others = ", ".join(
        f"{_times(speeds[best], speeds[index])} {names[index]}" for index in range(len(names)) if index != best
    )
    sentences = [
        f"Not complete: {finding.title}: {finding.detail}; next: {finding.remedy.replace('`', '')}"
        for finding in not_complete(nights, endings)
    ]
    sentences += [f"Fastest: {names[best]} with {fmt.rate(speeds[best])} tokens/s, {others}."]
    sentences += _regressions(names, comparison)
    sentences += _noise(names, comparison)
    if comparison.same_text:
        sentences.append("Same text by contract: S is equal in all of them.")
    else:
        fields = ", ".join(fmt.clean(field, 40) for field in comparison.differences[:8]) or "unknown fields"
        more = len(comparison.differences) - 8
        sentences.append(f"Not the same job: S differs in {fields}{f' and {more} more' if more > 0 else ''}.")
    others_kind = [
        name for name, is_comparable in zip(names, comparison.is_comparable, strict=True) if not is_comparable
    ]
    if others_kind:
        sentences.append(
            f"Not comparable with {names[0]}: {', '.join(others_kind)}; models, prompts or sampling differ, "
            "so nothing of them is flagged."
        )
    return sentences + [f"Note: {fmt.clean(caveat)}." for caveat in comparison.caveats]


def not_complete(nights: Nights, endings: Sequence[Unfinished | None]) -> list[Finding]:
    """Each night that has no manifest: why, how far it came, and what to type next."""
    found = []
    for index, ((output, _), ending) in enumerate(zip(nights, endings, strict=True)):
        if ending is None:
            continue
        codes = " or ".join(str(code) for code in ending.exit_codes)
        title = f"[{index + 1}] {short_name(output, NAME_WIDTH)}{f' (exit {codes})' if codes else ''}"
        done = f"{fmt.count(ending.rows_done)} of {fmt.count(ending.num_rows)} rows, and its figures are of these"
        found.append(Finding(ending_level(ending), title, f"{ending.cause}; {done}", f"`{ending.next_command}`"))
    return found


def _regressions(names: Sequence[str], comparison: Comparison) -> list[str]:
    sentences = []
    for index in comparison.regressions:
        for delta in comparison.deltas[index]:
            if delta.standing != "worse" or delta.change is None:
                continue
            if delta.metric.key == "output_tokens_per_second":
                sentences.append(
                    f"Slower: {names[index]} reached {100 * (1 + delta.change):.0f} % of the throughput of {names[0]} "
                    f"(flagged below {100 * REGRESSION_BELOW:.0f} %)."
                )
            else:
                sentences.append(
                    f"Worse: {names[index]} has {delta.metric.label} {show_value(delta.metric, delta.value)} against "
                    f"{show_value(delta.metric, delta.base)} of {names[0]} ({show_change(delta)})."
                )
    return sentences


def _noise(names: Sequence[str], comparison: Comparison) -> list[str]:
    return [
        f"Not flagged: {delta.metric.label} of {names[index]} changed by {show_change(delta)}, "
        f"within the measured noise of {show_noise(delta)}."
        for index, found in enumerate(comparison.deltas)
        if comparison.is_comparable[index]
        for delta in found
        if delta.standing == "noise"
    ]


def _times(fast: float, slow: float) -> str:
    if slow <= 0:
        return "against nothing from"
    quotient = fast / slow
    return f"{100 * (quotient - 1):.1f} % faster than" if quotient < 1.1 else f"{quotient:.2f} times the speed of"
