"""The verdict on a night: what went wrong, how badly, and what to do about it. A pure function of the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.amended import amended_counts
from specbatch.jobs.reports.facts import num_workers, skipped_files
from specbatch.jobs.reports.model import LEVELS, Finding, Level, Verdict
from specbatch.jobs.reports.pace import judge_pace
from specbatch.jobs.reports.unfinished import (
    Unfinished,
    ending_findings,
    ending_headline,
    ending_level,
    where_errors_are,
)
from specbatch.schemas.error_texts import EXPLANATIONS
from specbatch.schemas.errors import ErrorCode
from specbatch.schemas.manifest import Counts, Manifest

MANY_ERRORS = 0.01
"""Share of results from which one error code is a problem: single bad rows are rarer than this."""
MANY_CUT = 0.2
"""Share of completions cut at their limit from which it is said."""
MANY_DEATHS = 5
"""Deaths of workers that are a problem where there were twice as many as workers."""
_MAX_CODES = 6
_MAX_FILES = 3


def judge(manifest: Manifest, amendments: Sequence[Manifest] = (), unfinished: Unfinished | None = None) -> Verdict:
    """What to say first: complete or why not, with errors, and everything that was not as it should be, worst first.

    Args:
        unfinished: of a job without a manifest; ``manifest`` then holds what is there so far.
    """
    counts = amended_counts(manifest, amendments) if amendments else manifest.commit.counts
    findings = [
        *_errors(counts, unfinished),
        *_skipped_files(manifest),
        *_workers(manifest),
        *_runs(manifest, unfinished),
        *_forecast(manifest),
        *judge_pace(manifest),
        *_speculation(manifest),
        *_cut(manifest),
        *_amendments(manifest, amendments),
    ]
    findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    if unfinished is not None:
        cause, *rest = ending_findings(unfinished)
        return Verdict(ending_level(unfinished), ending_headline(unfinished), (cause, *rest, *findings))
    worst = findings[0].level if findings else "good"
    return Verdict("good" if worst == "note" else worst, _headline(counts, findings), tuple(findings))


def explain(code: str) -> tuple[str, str]:
    """What a code means and what to do, with code between backquotes."""
    if code not in ErrorCode.__members__:
        return "a code that this version does not know", "read the `error_message` column of these rows"
    text = EXPLANATIONS[ErrorCode(code)]
    return text.meaning, text.remedy


def _headline(counts: Counts, findings: Sequence[Finding]) -> str:
    noun = "row" if counts.results == counts.rows else "result"
    if not counts.results:
        text = "Complete: the dataset has no rows"
    elif counts.errors:
        share = fmt.percent(counts.errors / counts.results)
        text = f"Complete, with {fmt.plural(counts.errors, f'error {noun}')} in {fmt.count(counts.results)} ({share})"
    else:
        text = f"Complete: {'the only' if counts.results == 1 else f'all {fmt.count(counts.results)}'} {noun}"
        text += " has a completion" if counts.results == 1 else "s have a completion"
    numbers = [
        fmt.plural(number, word)
        for word in ("problem", "warning")
        if (number := sum(finding.level == word for finding in findings))
    ]
    return f"{text}. {' and '.join(numbers)}." if numbers else f"{text}."


def errors_in_order(counts: Counts, unfinished: Unfinished | None) -> tuple[list[tuple[str, int]], int]:
    """Errors by code, the commonest first, and the number of results that they are a share of."""
    by_code, num_results = counts.errors_by_code, counts.results
    if unfinished is not None:
        by_code, num_results = dict(unfinished.errors_by_code), unfinished.num_judged
    return sorted(by_code.items(), key=lambda item: (-item[1], item[0])), max(num_results, 1)


def _errors(counts: Counts, unfinished: Unfinished | None) -> list[Finding]:
    ordered, num_results = errors_in_order(counts, unfinished)
    findings = []
    for code, number in ordered[:_MAX_CODES]:
        share = number / num_results
        meaning, remedy = explain(code)
        where = where_errors_are(unfinished, code) if unfinished is not None else ""
        level: Level = "problem" if share >= MANY_ERRORS else "warning"
        findings.append(
            Finding(
                level,
                f"{fmt.clean(code, 40)}: {fmt.plural(number, 'error')}",
                f"{fmt.percent(share)} of the results{f' ({where})' if where else ''}: {meaning}",
                remedy,
            )
        )
    if len(ordered) > _MAX_CODES:
        rest = sum(number for _, number in ordered[_MAX_CODES:])
        findings.append(Finding("warning", f"{fmt.plural(rest, 'error')} with other codes", "see Errors below"))
    return findings


def _skipped_files(manifest: Manifest) -> list[Finding]:
    skipped = skipped_files(manifest)
    if not skipped:
        return []
    named = "; ".join(f"{fmt.clean(name, 60)} ({fmt.clean(code, 40)})" for name, code in skipped[:_MAX_FILES])
    more = f"; and {len(skipped) - _MAX_FILES} more" if len(skipped) > _MAX_FILES else ""
    return [
        Finding(
            "problem",
            f"{fmt.plural(len(skipped), 'input file')} left out",
            f"{named}{more}: {explain(skipped[0][1])[0]}",
            "mend or replace what was left out, and submit it as a job of its own",
        )
    ]


def _workers(manifest: Manifest) -> list[Finding]:
    observed = manifest.observed
    findings = []
    if observed.quarantined:
        places = ", ".join(fmt.clean(place, 60) for place in observed.quarantined)
        findings.append(
            Finding(
                "problem",
                f"{fmt.plural(len(observed.quarantined), 'device')} taken out of service",
                f"{places} failed again and again and got no more work",
                "have it looked at before the next night",
            )
        )
    if observed.deaths or observed.restarts:
        number = max(observed.deaths, observed.restarts)
        reasons = _death_reasons(manifest)
        is_grave = number >= max(MANY_DEATHS, 2 * num_workers(manifest))
        findings.append(
            Finding(
                "problem" if is_grave else "warning",
                f"{fmt.plural(number, 'worker')} died, {fmt.count(observed.restarts)} started again",
                reasons or "their shards were decoded again; no result is lost",
                "`specbatch logs` has what they wrote" if reasons else "",
            )
        )
    if observed.preemptions:
        findings.append(
            Finding(
                "note",
                f"{fmt.plural(observed.preemptions, 'worker')} taken away",
                "machines that were preempted or lost; their shards were decoded elsewhere",
            )
        )
    return findings


def _death_reasons(manifest: Manifest) -> str:
    """The commonest reasons of deaths by what the runs said, with how often."""
    counts: dict[str, int] = {}
    for event in manifest.observed.events:
        who, separator, reason = event.text.partition(" died: ")
        if separator and who.startswith("worker "):
            counts[reason] = counts.get(reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:2]
    return "; ".join(f"{number} x {fmt.clean(reason)[:160]}" for reason, number in ordered)


def _runs(manifest: Manifest, unfinished: Unfinished | None) -> list[Finding]:
    observed = manifest.observed
    if observed.runs <= 1:
        return []
    outcomes = ", ".join(f"run {run.epoch} {fmt.clean(run.outcome, 20)}" for run in observed.history[:8])
    return [
        Finding(
            "warning",
            f"It took {fmt.plural(observed.runs, 'run')}{' so far' if unfinished is not None else ''}",
            outcomes or "earlier runs ended before the job was complete; what they finished was kept",
        )
    ]


def forecast_seconds(forecast: Mapping[str, Any] | None, key: str) -> float | None:
    """A number of seconds of a forecast; None where it has none."""
    value = forecast.get(key) if forecast is not None else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _forecast(manifest: Manifest) -> list[Finding]:
    forecast, actual = manifest.observed.forecast, manifest.observed.throughput.total_seconds
    expected = forecast_seconds(forecast, "wall_seconds")
    high = forecast_seconds(forecast, "high") or expected
    if expected is None or high is None or actual <= high:
        return []
    num_runs = manifest.observed.runs
    runs = f" in {fmt.plural(num_runs, 'run')}" if num_runs > 1 else ""
    return [
        Finding(
            "warning",
            f"{actual / expected:.2f} times the forecast",
            f"{fmt.duration(actual)}{runs} against {fmt.duration(expected)} expected, {fmt.duration(high)} at most",
            "look at pace and workers below; `specbatch calibrate` measures anew",
        )
    ]


def _speculation(manifest: Manifest) -> list[Finding]:
    observed = manifest.observed
    findings = []
    given_up = observed.draft_given_up
    rate = manifest.commit.acceptance.rate
    if given_up is not None:
        accepted = "" if rate is None else f"; {fmt.percent(rate)} of its tokens were accepted"
        findings.append(
            Finding(
                "warning",
                "The draft did not pay and was given up",
                f"by {fmt.plural(given_up.workers, 'worker')}, first {fmt.clock(given_up.at_seconds)} after the start "
                f"of the run{accepted}",
                "`specbatch calibrate` finds a draft that pays, or `--draft none`",
            )
        )
    speedup = observed.speedup
    if speedup.ratio is not None and speedup.high is not None and speedup.high < 1:
        findings.append(
            Finding(
                "warning",
                f"Speculation made it slower: {speedup.ratio:.2f}x",
                f"95 % interval {speedup.low or 0:.2f} to {speedup.high:.2f} against {fmt.clean(speedup.baseline)}",
                "`--speculation auto` stops by itself; another draft may pay",
            )
        )
    return findings


def _cut(manifest: Manifest) -> list[Finding]:
    lengths, num_ok = manifest.commit.lengths, manifest.commit.counts.ok
    if lengths is None or not num_ok or lengths.num_cut < MANY_CUT * num_ok:
        return []
    return [
        Finding(
            "note",
            f"{fmt.percent(lengths.num_cut / num_ok)} of the completions were cut at their limit",
            f"{fmt.count(lengths.num_cut)} of {fmt.count(num_ok)} have the finish reason length",
            "a larger `--max-new-tokens` (new output) if they should end by themselves",
        )
    ]


def _amendments(manifest: Manifest, amendments: Sequence[Manifest]) -> list[Finding]:
    if not amendments:
        return []
    before, counts = manifest.commit.counts.errors, amended_counts(manifest, amendments)
    return [
        Finding(
            "note",
            f"{fmt.plural(len(amendments), 'amendment')} applied",
            f"{fmt.count(counts.ok)} ok and {fmt.plural(counts.errors, 'error')} with them, "
            f"{fmt.plural(before, 'error')} without; all other figures are of the job itself",
        )
    ]
