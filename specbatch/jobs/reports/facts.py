"""Single statements about a manifest, in words: the same in every form of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.normalise import QUARANTINED_FIELD
from specbatch.schemas.manifest import Cost, Manifest, ModelRecord, Speedup

LENGTH_QUANTILES = (0.5, 0.95)


def describe_speedup(speedup: Speedup) -> str:
    """The measured speed-up in one sentence that also says when there was none."""
    baseline, note = fmt.clean(speedup.baseline), fmt.clean(speedup.note or "no interval")
    if speedup.ratio is None:
        return f"no speed-up measured: {note}"
    ratio = f"{speedup.ratio:.2f}x"
    if speedup.low is None or speedup.high is None:
        evidence = f"({note})"
        if speedup.ratio < 1:
            return f"speculation seems to have made this job slower: {ratio} of {baseline} {evidence}"
        return f"about {ratio} over {baseline} {evidence}"
    rounds = fmt.plural(speedup.num_plain_rounds, "plain round")
    evidence = f"(95 % interval {speedup.low:.2f} to {speedup.high:.2f}, {rounds}, prefill apart)"
    if speedup.low <= 1 <= speedup.high:
        return f"no clear difference: {ratio} against {baseline} {evidence}"
    if speedup.ratio < 1:
        return f"speculation made this job slower: {ratio} of {baseline} {evidence}"
    return f"{ratio} over {baseline} {evidence}"


def explain_speedup(speedup: Speedup) -> str:
    """How the speed-up was measured; empty where it was not."""
    if speedup.ratio is None:
        return ""
    num_rounds = speedup.num_plain_rounds + speedup.num_spec_rounds
    return (
        f"{fmt.plural(speedup.num_plain_rounds, 'round')} in {fmt.count(num_rounds)}, "
        "drawn by lot, decoded plainly on the same rows at the same batch; the ratio is of output tokens per second, "
        "the interval a block bootstrap; rounds that also read prompts are left out"
    )


def describe_speculation(manifest: Manifest) -> str:
    """The K that was asked for: ``off``, ``4``, ``auto``."""
    return fmt.clean(manifest.observed.execution.get("speculation", "?"), 12)


def num_workers(manifest: Manifest) -> int:
    """Workers that were asked for in the last run; processes that replaced dead ones do not count."""
    asked = manifest.observed.execution.get("workers")
    return asked if isinstance(asked, int) else len(manifest.observed.memory)


def draft_name(manifest: Manifest) -> str:
    """The draft's name, or ``none``."""
    draft = manifest.models.draft
    return "none" if draft is None else fmt.clean(draft.name)


def describe_model(model: ModelRecord) -> str:
    """Name, revision and size."""
    revision = f" at {fmt.clean(model.revision, 16)}" if model.revision else ""
    quantization = f", {describe_quantization(model)}" if model.quantization else ""
    return f"{fmt.clean(model.name)}{revision}, {fmt.parameters(model.parameters)} parameters{quantization}"


def describe_quantization(model: ModelRecord) -> str:
    """How the weights are quantized, in a few words; empty for dense ones."""
    if not model.quantization:
        return ""
    method, applied = (fmt.clean(str(model.quantization.get(name, "?")), 30) for name in ("method", "applied"))
    config = model.quantization.get("config")
    kinds = [config.get(name) for name in ("quant_type", "bnb_4bit_quant_type", "format")] if config else []
    named = [fmt.clean(kind, 30) for kind in kinds if isinstance(kind, str)]
    whole = ", made whole on loading" if model.quantization.get("weights") == "dequantized" else ""
    return f"quantized {applied} by {' '.join([method, *named])}{whole}"


def short_name(output: str, max_length: int = 40) -> str:
    """The last part of an output's name."""
    return fmt.clean(output.rstrip("/").rsplit("/", 1)[-1] or output, max_length)


def span(manifest: Manifest) -> tuple[str, str] | None:
    """Start of the first run and end of the last, ISO 8601 in UTC; None in manifests that do not say it."""
    history = manifest.observed.history
    return (fmt.iso(history[0].started_at), fmt.iso(history[-1].ended_at)) if history else None


def skipped_files(manifest: Manifest) -> list[tuple[str, str]]:
    """Names and codes of input files that were left out because they could not be read."""
    listed = manifest.identity.fields.get(QUARANTINED_FIELD)
    pairs = listed if isinstance(listed, list) else []
    return [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, list) and len(pair) == 2]


def error_rate(manifest: Manifest) -> float:
    """Share of error results."""
    counts = manifest.commit.counts
    return counts.errors / counts.results if counts.results else 0.0


def cost_per_million(manifest: Manifest) -> float | None:
    """Cost of a million output tokens; None without a price, or without tokens."""
    cost, tokens = manifest.observed.cost, manifest.commit.tokens.completion
    return cost.total / tokens * 1e6 if cost is not None and cost.total is not None and tokens else None


def describe_cost(cost: Cost | None) -> str:
    """Device-hours, and the money where there was a price."""
    if cost is None:
        return "not recorded"
    hours = f"{fmt.rate(cost.device_hours)} device-hours"
    if cost.total is None or cost.price_per_device_hour is None:
        return f"{hours} (no price given: --price-per-device-hour)"
    return f"{money(cost.total)} for {hours} at {money(cost.price_per_device_hour)}"


def money(value: float) -> str:
    """An amount in the user's currency, which nobody told us."""
    return f"{value:,.2f}" if value >= 0.995 else f"{value:.3g}"


def length_range(digits: int) -> str:
    """The lengths of entry ``digits`` of a length histogram: ``0``, ``1``, ``2-3``, ``4-7``."""
    if digits < 2:
        return str(digits)
    return f"{1 << (digits - 1):,}-{(1 << digits) - 1:,}"


def length_quantile(histogram: list[int], share: float) -> str:
    """The range in which this quantile of the lengths lies; ``-`` where there are none."""
    total, seen = sum(histogram), 0
    for digits, count in enumerate(histogram):
        seen += count
        if seen and seen >= share * total:
            return length_range(digits)
    return "-"


def pairs(values: Mapping[str, Any]) -> str:
    """``cores 2, memory 8.2 GB, gpus none``: a record on one line, nested values left to the JSON form."""
    facts = []
    for key, value in values.items():
        name = fmt.clean(key)
        if value is None:
            continue
        if name.endswith("_bytes"):
            facts.append(f"{name.removesuffix('_bytes').replace('_', ' ')} {fmt.size(number(value))}")
        elif isinstance(value, list):
            facts.append(f"{name} {' + '.join(fmt.clean(item, 60) for item in value) or 'none'}")
        elif not isinstance(value, dict):
            facts.append(f"{name.replace('_', ' ')} {fmt.clean(value, 60)}")
    return ", ".join(facts) or "not recorded"


def number(value: object) -> float:
    """A number from a record; 0 for anything else."""
    return float(value) if isinstance(value, int | float) else 0.0
