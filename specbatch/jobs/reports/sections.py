"""A manifest as a report: key figures and sections. Pure; what an older manifest lacks is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports import facts
from specbatch.jobs.reports.model import Fact, Figure, Report, Section, Table
from specbatch.jobs.reports.pace import describe_pace
from specbatch.jobs.reports.surroundings import (
    describe_identity,
    describe_inputs,
    describe_machine,
    describe_parts,
    describe_reproduce,
    describe_runs,
    describe_workers,
)
from specbatch.jobs.reports.unfinished import Unfinished, describe_rest, where_errors_are
from specbatch.jobs.reports.verdict import errors_in_order, explain, forecast_seconds, judge
from specbatch.schemas.manifest import Manifest

PHASES = {
    "propose": "the draft proposes",
    "score": "the target checks",
    "accept": "draws and verdicts",
    "host": "bookkeeping and text",
    "prefill": "prompts are read",
    "load": "rows are loaded",
    "write": "parts are written",
}


def describe(
    output: str, manifest: Manifest, amendments: Sequence[Manifest] = (), unfinished: Unfinished | None = None
) -> Report:
    """The whole report of one job.

    Args:
        unfinished: of a job without a manifest; ``manifest`` then holds what is there so far.
    """
    sections = (
        *(() if unfinished is None else (describe_rest(unfinished),)),
        _result(manifest),
        _errors(manifest, unfinished),
        _speculation(manifest),
        _time(manifest),
        _lengths(manifest),
        _forecast(manifest, unfinished),
        _cost(manifest),
        describe_runs(manifest),
        describe_workers(manifest),
        describe_inputs(manifest),
        describe_parts(output, manifest, is_complete=unfinished is None),
        describe_machine(manifest),
        describe_identity(manifest),
        describe_reproduce(output, manifest),
    )
    return Report(
        output=fmt.clean(output),
        name=facts.short_name(output),
        span=" to ".join(facts.span(manifest) or ()),
        verdict=judge(manifest, amendments, unfinished),
        figures=tuple(_figures(manifest)),
        sections=tuple(section for section in sections if section.facts or section.tables),
        is_complete=unfinished is None,
        next_command="" if unfinished is None else unfinished.next_command,
        pace=describe_pace(manifest),
    )


def _figures(manifest: Manifest) -> Iterable[Figure]:
    commit, observed = manifest.commit, manifest.observed
    counts, acceptance, throughput = commit.counts, commit.acceptance, observed.throughput
    yield Figure(
        "Output tokens/s",
        fmt.rate(throughput.output_tokens_per_second),
        f"{fmt.rate(throughput.rows_per_second)} rows/s",
    )
    speedup = observed.speedup
    if speedup.ratio is None:
        yield Figure("Speed-up", "-", facts.describe_speedup(speedup))
    else:
        evidence = f"; {fmt.clean(speedup.note)}" if speedup.note else ""
        if speedup.low is not None and speedup.high is not None:
            evidence = f"; 95 % interval {speedup.low:.2f} to {speedup.high:.2f}"
        yield Figure("Speed-up", f"{speedup.ratio:.2f}x", f"over {fmt.clean(speedup.baseline)}{evidence}")
    yield Figure("Results", f"{fmt.count(counts.ok)} ok", fmt.plural(counts.errors, "error"))
    accepted = f"{fmt.count(commit.tokens.accepted)} of {fmt.count(commit.tokens.draft)} draft tokens"
    yield Figure("Acceptance", fmt.percent(acceptance.rate), accepted if acceptance.rate is not None else "no drafts")
    emitted = "-" if acceptance.mean_emitted is None else f"{acceptance.mean_emitted:.2f}"
    yield Figure("Tokens per round", emitted, "of one row; 1 without a draft")
    yield Figure(
        "Wall time", fmt.duration(throughput.total_seconds), f"{fmt.duration(throughput.wall_seconds)} of it decoding"
    )
    yield Figure("Output tokens", fmt.count(commit.tokens.completion), f"{fmt.count(commit.tokens.prompt)} in prompts")
    cost, per_million = observed.cost, facts.cost_per_million(manifest)
    if cost is not None and cost.total is not None and per_million is not None:
        yield Figure("Cost", facts.money(cost.total), f"{facts.money(per_million)} per million output tokens")
    elif cost is not None:
        yield Figure("Device-hours", fmt.rate(cost.device_hours), "no price given")


def _result(manifest: Manifest) -> Section:
    counts, tokens, throughput = manifest.commit.counts, manifest.commit.tokens, manifest.observed.throughput
    samples = f" with {fmt.plural(counts.results, 'result')}" if counts.results != counts.rows else ""
    errors = "no errors"
    if counts.errors:
        by_code = ", ".join(f"{fmt.clean(code)} {fmt.count(n)}" for code, n in sorted(counts.errors_by_code.items()))
        errors = f"{fmt.plural(counts.errors, 'error')} ({by_code})"
    runs = manifest.observed.runs
    repeated = f" over {fmt.plural(runs, 'run')}" if runs > 1 else ""
    found = [
        Fact("rows", f"{fmt.count(counts.rows)}{samples}: {fmt.count(counts.ok)} ok, {errors}"),
        Fact("output tokens", f"{fmt.count(tokens.completion)} (prompts: {fmt.count(tokens.prompt)})"),
        Fact(
            "throughput",
            f"{fmt.rate(throughput.output_tokens_per_second)} tokens/s, {fmt.rate(throughput.rows_per_second)} rows/s",
        ),
        Fact(
            "wall time",
            f"{fmt.duration(throughput.wall_seconds)} decoding, {fmt.duration(throughput.total_seconds)} in all"
            f"{repeated}, {fmt.plural(facts.num_workers(manifest), 'worker')}, "
            f"{fmt.percent(throughput.idle_share)} idle",
        ),
    ]
    span = facts.span(manifest)
    if span is not None:
        found.append(Fact("from, to", f"{span[0]}, {span[1]}"))
    return Section("result", "Result", tuple(found))


def _errors(manifest: Manifest, unfinished: Unfinished | None) -> Section:
    ordered, num_results = errors_in_order(manifest.commit.counts, unfinished)
    rows = tuple(
        (
            fmt.clean(code, 40),
            fmt.count(number),
            fmt.percent(number / num_results),
            *(() if unfinished is None else (where_errors_are(unfinished, code) or "-",)),
            *explain(code),
        )
        for code, number in ordered
    )
    where = () if unfinished is None else ("first rows",)
    header = ("code", "results", "share", *where, "what happened", "what to do")
    words = frozenset(range(3, len(header)))
    table = Table("Errors by code", header, rows, texts=words | {0}, codes=words - ({3} if where else set()))
    return Section("errors", "Errors", (), (table,) if rows else ())


def _speculation(manifest: Manifest) -> Section:
    acceptance, tokens, observed = manifest.commit.acceptance, manifest.commit.tokens, manifest.observed
    found = [Fact("K", f"{facts.describe_speculation(manifest)}, draft {facts.draft_name(manifest)}")]
    if acceptance.rate is not None:
        rate = f"{fmt.percent(acceptance.rate)} of the draft tokens "
        found.append(Fact("acceptance", f"{rate}({fmt.count(tokens.accepted)} of {fmt.count(tokens.draft)})"))
    if acceptance.mean_emitted is not None:
        accepted = ""
        if acceptance.mean_accepted is not None:
            accepted = f"; {acceptance.mean_accepted:.2f} accepted where the row speculated"
        found.append(Fact("tokens per round", f"{acceptance.mean_emitted:.2f} per row{accepted}"))
    found.append(Fact("measured speed-up", facts.describe_speedup(observed.speedup)))
    if explained := facts.explain_speedup(observed.speedup):
        found.append(Fact("how measured", explained))
    found.append(Fact("near ties", f"{fmt.count(manifest.commit.near_ties)} tokens decided by canonical evaluation"))
    if observed.draft_given_up is not None:
        given_up = observed.draft_given_up
        found.append(
            Fact(
                "draft given up",
                f"by {fmt.plural(given_up.workers, 'worker')}, first after {fmt.clock(given_up.at_seconds)}",
            )
        )
    tables = []
    if acceptance.by_position:
        tables.append(
            _share_table("Accepted by draft position", ("position", "accepted"), enumerate(acceptance.by_position, 1))
        )
    if total := sum(acceptance.histogram):
        histogram = ((i, count / total, fmt.count(count)) for i, count in enumerate(acceptance.histogram))
        tables.append(_share_table("Drafts accepted in a round", ("accepted", "share", "rounds"), histogram))
    if len(observed.k_share) > 1:
        shares = sorted((int(k), share) for k, share in observed.k_share.items())
        tables.append(_share_table("Drafts proposed in a round (K)", ("K", "share"), shares))
    return Section("speculation", "Speculation", tuple(found), tuple(tables))


def _share_table(
    title: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]], texts: frozenset[int] = frozenset({0})
) -> Table:
    """Rows of a name, a share of 0 to 1, and more cells."""
    listed = list(rows)
    return Table(
        title,
        header,
        tuple((str(name), fmt.percent(share), *(str(cell) for cell in more)) for name, share, *more in listed),
        ((1, tuple(share for _, share, *_ in listed)),),
        texts,
    )


def _time(manifest: Manifest) -> Section:
    phases: dict[str, float] = manifest.commit.seconds.model_dump()
    total = sum(phases.values())
    if not total:
        return Section("time", "Where the time went")
    rows = ((name, value / total, fmt.seconds(value), PHASES.get(name, "")) for name, value in phases.items())
    table = _share_table("Time by phase", ("phase", "share", "time", "what"), rows, texts=frozenset({0, 3}))
    found = Fact("sum over workers", f"{fmt.duration(total)} of device time")
    return Section("time", "Where the time went", (found,), (table,))


def _lengths(manifest: Manifest) -> Section:
    lengths, num_ok = manifest.commit.lengths, manifest.commit.counts.ok
    if lengths is None or not num_ok:
        return Section("lengths", "Lengths")
    size = max(len(lengths.prompt), len(lengths.completion))
    prompt = [*lengths.prompt, *([0] * size)][:size]
    completion = [*lengths.completion, *([0] * size)][:size]
    first = next((i for i in range(size) if prompt[i] or completion[i]), 0)
    rows = tuple((facts.length_range(i), fmt.count(prompt[i]), fmt.count(completion[i])) for i in range(first, size))
    most = max(*prompt, *completion, 1)
    bars = tuple(
        (column, tuple(count / most for count in counts[first:])) for column, counts in ((1, prompt), (2, completion))
    )
    medians = (facts.length_quantile(lengths.prompt, 0.5), facts.length_quantile(lengths.completion, 0.5))
    longest = (facts.length_quantile(lengths.prompt, 0.95), facts.length_quantile(lengths.completion, 0.95))
    return Section(
        "lengths",
        "Lengths in tokens",
        (
            Fact("prompts", f"median {medians[0]}, 95 % up to {longest[0]}"),
            Fact("completions", f"median {medians[1]}, 95 % up to {longest[1]}"),
            Fact("cut at the limit", f"{fmt.count(lengths.num_cut)} ({fmt.percent(lengths.num_cut / num_ok)})"),
        ),
        (Table("Results by length", ("tokens", "prompts", "completions"), rows, bars),),
    )


def _forecast(manifest: Manifest, unfinished: Unfinished | None) -> Section:
    forecast, observed = manifest.observed.forecast, manifest.observed
    if forecast is None:
        return Section("forecast", "Forecast")
    rows = []
    so_far = "actual" if unfinished is None else "so far"
    expected = forecast_seconds(forecast, "wall_seconds")
    if expected is not None:
        low, high = forecast_seconds(forecast, "low"), forecast_seconds(forecast, "high")
        between = f" ({fmt.duration(low)} to {fmt.duration(high)})" if low is not None and high is not None else ""
        actual = observed.throughput.total_seconds
        rows.append(
            ("wall time", f"{fmt.duration(expected)}{between}", fmt.duration(actual), f"{actual / expected:.2f}x")
        )
    cost = observed.cost
    for key, words, value, show in (
        ("completion_tokens", "output tokens", manifest.commit.tokens.completion, _whole),
        ("tokens_per_second", "output tokens/s", observed.throughput.output_tokens_per_second, fmt.rate),
        ("device_hours", "device-hours", cost.device_hours if cost else None, fmt.rate),
        ("cost", "cost", cost.total if cost else None, facts.money),
    ):
        guess = forecast_seconds(forecast, key)
        if guess is not None:
            ratio = "-" if value is None else f"{value / guess:.2f}x"
            rows.append((words, show(guess), "-" if value is None else show(value), ratio))
    header = ("figure", "forecast", so_far, f"{so_far} / forecast")
    title = f"Forecast and {so_far}"
    runs = f"{fmt.plural(observed.runs, 'run')}: starts, and rows that were decoded twice, count in all of them"
    facts_ = (Fact(so_far, f"of {runs}; the forecast is of one run without a break"),) if observed.runs > 1 else ()
    return Section("forecast", title, facts_ if rows else (), (Table(title, header, tuple(rows)),) if rows else ())


def _whole(value: float) -> str:
    return fmt.count(round(value))


def _cost(manifest: Manifest) -> Section:
    cost = manifest.observed.cost
    if cost is None:
        return Section("cost", "Cost")
    found = [Fact("cost", facts.describe_cost(cost))]
    per_million = facts.cost_per_million(manifest)
    if per_million is not None:
        found.append(Fact("per 1 M tokens", f"{facts.money(per_million)} (output tokens)"))
    if cost.device_hours > 0:
        each = manifest.commit.tokens.completion / cost.device_hours
        found.append(Fact("per device-hour", f"{fmt.count(round(each))} output tokens"))
    return Section("cost", "Cost", tuple(found))
