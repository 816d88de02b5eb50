"""The report for people: plain text that fits 80 columns, without colour and without terminal escapes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from specbatch.jobs import formatting as fmt
from specbatch.jobs.comparison import REGRESSION_BELOW, Comparison
from specbatch.schemas.manifest import Manifest, ModelRecord, Speedup

WIDTH = 80
_LABEL_WIDTH = 20
_BAR_WIDTH = 30
_NAME_WIDTH = 22
_DRAFT_WIDTH = 14


def render_human(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison | None) -> str:
    """One output in full, or several as a table with what follows from it."""
    if comparison is None:
        output, manifest = manifests[0]
        lines = _one(output, manifest)
    else:
        lines = _side_by_side(manifests, comparison)
    return "\n".join(lines) + "\n"


def describe_speedup(speedup: Speedup) -> str:
    """The measured speed-up in one sentence that also says when there was none."""
    if speedup.ratio is None:
        return f"no speed-up measured: {speedup.note}"
    ratio = f"{speedup.ratio:.2f}x"
    if speedup.low is None or speedup.high is None:
        evidence = f"({speedup.note or 'no interval'})"
        if speedup.ratio < 1:
            return f"speculation seems to have made this job slower: {ratio} of {speedup.baseline} {evidence}"
        return f"about {ratio} over {speedup.baseline} {evidence}"
    rounds = fmt.plural(speedup.num_plain_rounds, "plain round")
    evidence = f"(95 % interval {speedup.low:.2f} to {speedup.high:.2f}, {rounds}, prefill apart)"
    if speedup.low <= 1 <= speedup.high:
        return f"no clear difference: {ratio} against {speedup.baseline} {evidence}"
    if speedup.ratio < 1:
        return f"speculation made this job slower: {ratio} of {speedup.baseline} {evidence}"
    return f"{ratio} over {speedup.baseline} {evidence}"


def describe_speculation(manifest: Manifest) -> str:
    """The K that was asked for: ``off``, ``4``, ``auto``."""
    return fmt.clean(manifest.observed.execution.get("speculation", "?"), 12)


def num_workers(manifest: Manifest) -> int:
    """Workers that were asked for in the last run; processes that replaced dead ones do not count."""
    asked = manifest.observed.execution.get("workers")
    return asked if isinstance(asked, int) else len(manifest.observed.memory)


def draft_name(manifest: Manifest) -> str:
    draft = manifest.models.draft
    return "none" if draft is None else fmt.clean(draft.name)


def _one(output: str, manifest: Manifest) -> list[str]:
    sections = [
        [f"specbatch report  {fmt.clean(output)}", *_headline(manifest)],
        ["Speculation", *_speculation(manifest)],
        [f"Where the time went ({_device_seconds(manifest)})", *_seconds(manifest)],
        ["Memory per worker", *_memory(manifest)],
        ["Models and machine", *_models(manifest), *_machine(manifest)],
        ["Results", *_results(output, manifest)],
    ]
    lines: list[str] = []
    for section in sections:
        lines += [*section, ""]
    return lines[:-1]


def _headline(manifest: Manifest) -> list[str]:
    counts, tokens = manifest.commit.counts, manifest.commit.tokens
    throughput = manifest.observed.throughput
    errors = "no errors"
    if counts.errors:
        by_code = ", ".join(f"{fmt.clean(code)} {fmt.count(n)}" for code, n in sorted(counts.errors_by_code.items()))
        errors = f"{fmt.plural(counts.errors, 'error')} ({by_code})"
    samples = f" with {fmt.plural(counts.results, 'result')}" if counts.results != counts.rows else ""
    runs = manifest.observed.runs
    repeated = f" over {fmt.plural(runs, 'run')}" if runs > 1 else ""
    return [
        *_item("rows", f"{fmt.count(counts.rows)}{samples}: {fmt.count(counts.ok)} ok, {errors}"),
        *_item("output tokens", f"{fmt.count(tokens.completion)} (prompts: {fmt.count(tokens.prompt)})"),
        *_item(
            "throughput",
            f"{fmt.rate(throughput.output_tokens_per_second)} tokens/s, {fmt.rate(throughput.rows_per_second)} rows/s",
        ),
        *_item(
            "wall time",
            f"{fmt.seconds(throughput.wall_seconds)} decoding, {fmt.seconds(throughput.total_seconds)} in all"
            f"{repeated}, {fmt.plural(num_workers(manifest), 'worker')}, {fmt.percent(throughput.idle_share)} idle",
        ),
    ]


def _speculation(manifest: Manifest) -> list[str]:
    acceptance, tokens = manifest.commit.acceptance, manifest.commit.tokens
    lines = _item("K", f"{describe_speculation(manifest)}, draft {draft_name(manifest)}")
    if acceptance.rate is not None:
        lines += _item(
            "acceptance",
            f"{fmt.percent(acceptance.rate)} of the draft tokens "
            f"({fmt.count(tokens.accepted)} of {fmt.count(tokens.draft)})",
        )
    if acceptance.mean_emitted is not None:
        accepted = ""
        if acceptance.mean_accepted is not None:
            accepted = f"; {acceptance.mean_accepted:.2f} accepted where the row speculated"
        lines += _item("tokens per round", f"{acceptance.mean_emitted:.2f} per row{accepted}")
    if len(manifest.observed.k_share) > 1:
        shares = sorted(manifest.observed.k_share.items(), key=lambda item: int(item[0]))
        lines += _item("drafts per step", ", ".join(f"{k}: {fmt.percent(share)}" for k, share in shares))
    lines += _item("measured speed-up", describe_speedup(manifest.observed.speedup))
    if acceptance.by_position:
        lines += _item("accepted by draft position", "", pad=False)
        lines += [
            f"    {position:>4}  {fmt.bar(share, _BAR_WIDTH)}  {fmt.percent(share):>7}"
            for position, share in enumerate(acceptance.by_position, start=1)
        ]
    return lines


def _device_seconds(manifest: Manifest) -> str:
    total = sum(manifest.commit.seconds.model_dump().values())
    return f"sum over workers: {fmt.seconds(total)}"


def _seconds(manifest: Manifest) -> list[str]:
    phases: dict[str, float] = manifest.commit.seconds.model_dump()
    total = sum(phases.values()) or 1.0
    return [
        f"    {name:<8}{fmt.bar(value / total, _BAR_WIDTH)}  {fmt.percent(value / total):>7}  {fmt.seconds(value):>9}"
        for name, value in phases.items()
    ]


def _memory(manifest: Manifest) -> list[str]:
    if not manifest.observed.memory:
        return ["  not recorded"]
    keys = ("target_bytes", "draft_bytes", "target_kv_bytes", "draft_kv_bytes", "process_bytes")
    titles = ("target", "draft", "target KV", "draft KV", "process")
    lines = [f"  {'worker':<8} {'device':<8}" + "".join(f"{title:>11}" for title in titles)]
    for item in manifest.observed.memory:
        worker, device = (fmt.clean(item.get(key, "?"), 8) for key in ("worker", "device"))
        lines.append(f"  {worker:<8} {device:<8}" + "".join(f"{fmt.size(_number(item.get(key))):>11}" for key in keys))
    return lines


def _models(manifest: Manifest) -> list[str]:
    draft = manifest.models.draft
    return [
        *_item("target", _model(manifest.models.target)),
        *_item("draft", "none" if draft is None else _model(draft)),
    ]


def _model(model: ModelRecord) -> str:
    revision = f" at {fmt.clean(model.revision, 16)}" if model.revision else ""
    return f"{fmt.clean(model.name)}{revision}, {fmt.parameters(model.parameters)} parameters"


def _machine(manifest: Manifest) -> list[str]:
    observed = manifest.observed
    return [
        *_item("hardware", _pairs(observed.hardware)),
        *_item("execution", _pairs(observed.execution)),
        *_item("versions", _pairs(observed.versions)),
    ]


def _results(output: str, manifest: Manifest) -> list[str]:
    root = fmt.clean(output).rstrip("/")
    return [f"  {root}/data/*.parquet  ({fmt.plural(len(manifest.commit.parts), 'part')})", f"  {root}/manifest.json"]


def _side_by_side(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison) -> list[str]:
    names = [_short_name(output) for output, _ in manifests]
    header = (
        f"     {'output':<{_NAME_WIDTH}} {'draft':<{_DRAFT_WIDTH}} {'K':>4} {'tokens/s':>9} {'vs [1]':>7} {'accept':>7}"
    )
    lines = ["specbatch report  side by side", "", header]
    for index, (_, manifest) in enumerate(manifests):
        ratio = comparison.ratios[index]
        draft = draft_name(manifest).rsplit("/", 1)[-1]
        lines.append(
            f"{f'[{index + 1}]':>4} {names[index]:<{_NAME_WIDTH}} {fmt.clean(draft, _DRAFT_WIDTH):<{_DRAFT_WIDTH}} "
            f"{describe_speculation(manifest)[:4]:>4} "
            f"{fmt.rate(manifest.observed.throughput.output_tokens_per_second):>9} "
            f"{'-' if ratio is None else f'{ratio:.2f}x':>7} {fmt.percent(manifest.commit.acceptance.rate):>7}"
            f"{'  slower' if index in comparison.regressions else ''}"
        )
    lines.append("")
    for index, (output, manifest) in enumerate(manifests):
        lines += _item(f"[{index + 1}]", fmt.clean(output), width=6)
        lines += _item("", _short_facts(manifest), width=6)
        measured = "" if manifest.observed.speedup.ratio is None else "measured in the job: "
        lines += _item("", f"{measured}{describe_speedup(manifest.observed.speedup)}", width=6)
    lines.append("")
    return lines + [line for text in conclusions(manifests, comparison) for line in _wrap(text)]


def conclusions(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison) -> list[str]:
    """What the comparison says, one sentence each: the fastest, regressions, same text or not, caveats."""
    names = [f"[{index + 1}] {_short_name(output)}" for index, (output, _) in enumerate(manifests)]
    speeds = [manifest.observed.throughput.output_tokens_per_second for _, manifest in manifests]
    best = comparison.fastest
    others = ", ".join(
        f"{_times(speeds[best], speeds[index])} {names[index]}" for index in range(len(names)) if index != best
    )
    sentences = [f"Fastest: {names[best]} with {fmt.rate(speeds[best])} tokens/s, {others}."]
    for index in comparison.regressions:
        ratio = comparison.ratios[index]
        assert ratio is not None
        sentences.append(
            f"Slower: {names[index]} reached {100 * ratio:.0f} % of the throughput of {names[0]} "
            f"(flagged below {100 * REGRESSION_BELOW:.0f} %)."
        )
    if comparison.same_text:
        sentences.append("Same text by contract: S is equal in all of them.")
    else:
        fields = ", ".join(fmt.clean(field, 40) for field in comparison.differences[:8]) or "unknown fields"
        more = len(comparison.differences) - 8
        sentences.append(f"Not the same job: S differs in {fields}{f' and {more} more' if more > 0 else ''}.")
    sentences += [f"Note: {fmt.clean(caveat)}." for caveat in comparison.caveats]
    return sentences


def _times(fast: float, slow: float) -> str:
    if slow <= 0:
        return "against nothing from"
    quotient = fast / slow
    return f"{100 * (quotient - 1):.1f} % faster than" if quotient < 1.1 else f"{quotient:.2f} times the speed of"


def _short_facts(manifest: Manifest) -> str:
    counts, throughput, acceptance = manifest.commit.counts, manifest.observed.throughput, manifest.commit.acceptance
    emitted = "" if acceptance.mean_emitted is None else f", {acceptance.mean_emitted:.2f} tokens per row and round"
    errors = f", {fmt.plural(counts.errors, 'error')}" if counts.errors else ""
    return (
        f"{fmt.plural(counts.rows, 'row')}{errors}, {fmt.plural(manifest.commit.tokens.completion, 'token')} "
        f"in {fmt.seconds(throughput.wall_seconds)}{emitted}"
    )


def _short_name(output: str) -> str:
    return fmt.clean(output.rstrip("/").rsplit("/", 1)[-1] or output, _NAME_WIDTH)


def _item(label: str, value: str, *, width: int = _LABEL_WIDTH, pad: bool = True) -> list[str]:
    """``  label   value``, the value wrapped under itself; a long word stays whole, so that paths can be copied."""
    if not pad:
        return [f"  {label}"]
    lead = f"  {label}".ljust(width)
    return _wrap(value, lead, " " * width) or [lead.rstrip()]


def _wrap(text: str, lead: str = "", indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _pairs(values: dict[str, Any]) -> str:
    """``cores 2, memory 8.2 GB, gpus none``: a record on one line, nested values left to the JSON form."""
    facts = []
    for key, value in values.items():
        name = fmt.clean(key)
        if name.endswith("_bytes"):
            facts.append(f"{name.removesuffix('_bytes').replace('_', ' ')} {fmt.size(_number(value))}")
        elif isinstance(value, list):
            facts.append(f"{name} {' + '.join(fmt.clean(item, 60) for item in value) or 'none'}")
        elif not isinstance(value, dict):
            facts.append(f"{name.replace('_', ' ')} {fmt.clean(value, 60)}")
    return ", ".join(facts) or "not recorded"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
