"""Sums over the rows of an output, and what footers and manifest must say when these are the sums.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specbatch.jobs.verify.files import Unsound, parse_json
from specbatch.jobs.verify.plan import PlannedShard
from specbatch.jobs.verify.rules import PartRules

COUNTS = (
    "num_prompt_tokens",
    "num_completion_tokens",
    "num_spec_steps",
    "num_plain_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
)
"""The count columns; the first two are sums of a part's statistics, the others of its counters."""


@dataclass(slots=True)
class Totals:
    """Sums over rows, in the words of a part's footer; ``near_ties`` and ``seconds`` are the footer's own.

    ``failed`` has the code of every failed (row, sample); ``last_row_id`` is that of the last result. Entry i of the
    lengths counts the ok results whose length in tokens has i binary digits; ``has_lengths``: every footer says them.
    """

    num_rows: int = 0
    num_results: int = 0
    num_ok: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    errors_by_code: dict[str, int] = field(default_factory=dict)
    acceptance_histogram: list[int] = field(default_factory=list)
    draft_length_histogram: list[int] = field(default_factory=list)
    num_near_ties: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[tuple[int, int], str] = field(default_factory=dict)
    last_row_id: int = -1
    prompt_lengths: list[int] = field(default_factory=list)
    completion_lengths: list[int] = field(default_factory=list)
    num_cut: int = 0
    has_lengths: bool = True

    def add(self, other: Totals) -> None:
        """Adds the sums of other rows."""
        self.num_rows += other.num_rows
        self.num_results += other.num_results
        self.num_ok += other.num_ok
        self.num_near_ties += other.num_near_ties
        self.failed |= other.failed
        self.last_row_id = other.last_row_id
        for name, count in other.counts.items():
            self.counts[name] += count
        for code, count in other.errors_by_code.items():
            self.errors_by_code[code] = self.errors_by_code.get(code, 0) + count
        for phase, seconds in other.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        self.acceptance_histogram = _add_lists(self.acceptance_histogram, other.acceptance_histogram)
        self.draft_length_histogram = _add_lists(self.draft_length_histogram, other.draft_length_histogram)
        self.prompt_lengths = _add_lists(self.prompt_lengths, other.prompt_lengths)
        self.completion_lengths = _add_lists(self.completion_lengths, other.completion_lengths)
        self.num_cut += other.num_cut
        self.has_lengths = self.has_lengths and other.has_lengths


def check_footer(
    metadata: dict[bytes, bytes], shard: PlannedShard, rules: PartRules, totals: Totals, problems: list[str]
) -> None:
    """The footer must name this shard and say the sums of its rows; its near ties and seconds are taken over."""
    name = f"{shard.name}: the footer"
    footer = parse_json(metadata.get(b"specbatch", b""), name)
    expected = {
        "format": "specbatch/part/1",
        "plan": rules.plan,
        "shard": shard.index,
        "row_start": shard.row_start,
        "row_stop": shard.row_stop,
    }
    for key, value in expected.items():
        if footer.get(key) != value:
            problems.append(f"{name} says {key} {str(footer.get(key))[:40]!r}, not {value!r}")
    if footer.get("prefix", "") != rules.prefix:
        problems.append(f"{name} says prefix {str(footer.get('prefix'))[:40]!r}, not {rules.prefix!r}")
    stats = footer.get("stats")
    counters = stats.get("counters") if isinstance(stats, dict) else None
    seconds = stats.get("seconds") if isinstance(stats, dict) else None
    if not (isinstance(stats, dict) and isinstance(counters, dict) and isinstance(seconds, dict)):
        raise Unsound(f"{name} has no statistics")
    said = {
        "num_rows": stats.get("num_rows"),
        "num_results": stats.get("num_results"),
        "num_ok": stats.get("num_ok"),
        "errors_by_code": stats.get("errors_by_code"),
        **{key: stats.get(key) for key in COUNTS[:2]},
        **{key: counters.get(key) for key in COUNTS[2:]},
        "acceptance_histogram": counters.get("acceptance_histogram"),
        "draft_length_histogram": counters.get("draft_length_histogram"),
    }
    found: dict[str, Any] = {
        "num_rows": totals.num_rows,
        "num_results": totals.num_results,
        "num_ok": totals.num_ok,
        "errors_by_code": [list(item) for item in sorted(totals.errors_by_code.items())],
        **totals.counts,
        "acceptance_histogram": totals.acceptance_histogram,
        "draft_length_histogram": totals.draft_length_histogram,
    }
    lengths = {name: getattr(totals, name) for name in ("prompt_lengths", "completion_lengths", "num_cut")}
    totals.has_lengths = all(name in stats for name in lengths)
    if totals.has_lengths:  # parts of an older version do not say them
        said |= {name: stats[name] for name in lengths}
        found |= lengths
    for key, value in found.items():
        if said[key] != value:
            problems.append(f"{name} says {key} {str(said[key])[:60]}; its rows give {str(value)[:60]}")
    near_ties = stats.get("num_near_ties")
    if type(near_ties) is not int or near_ties < 0:
        problems.append(f"{name} has no number of near ties")
        near_ties = 0
    totals.num_near_ties = near_ties
    totals.seconds = {str(key): float(value) for key, value in seconds.items() if isinstance(value, int | float)}
    if len(totals.seconds) != len(seconds) or any(value < 0 for value in totals.seconds.values()):
        problems.append(f"{name} has seconds that are no durations")


def expected_commit(totals: Totals) -> dict[str, Any]:
    """The manifest's commit by dotted name, from sums over the rows."""
    counts = totals.counts
    accepted, drafted = counts["num_accepted_draft_tokens"], counts["num_draft_tokens"]
    num_spec, num_plain = counts["num_spec_steps"], counts["num_plain_steps"]
    hits, lengths = totals.acceptance_histogram, totals.draft_length_histogram
    proposed_at = [sum(lengths[position:]) for position in range(1, len(lengths)) if sum(lengths[position:])]
    return {
        "counts.rows": totals.num_rows,
        "counts.results": totals.num_results,
        "counts.ok": totals.num_ok,
        "counts.errors": totals.num_results - totals.num_ok,
        "counts.errors_by_code": totals.errors_by_code,
        "tokens.prompt": counts["num_prompt_tokens"],
        "tokens.completion": counts["num_completion_tokens"],
        "tokens.draft": drafted,
        "tokens.accepted": accepted,
        "near_ties": totals.num_near_ties,
        "acceptance.rate": accepted / drafted if drafted else None,
        "acceptance.mean_accepted": accepted / num_spec if num_spec else None,
        "acceptance.mean_emitted": counts["num_completion_tokens"] / (num_spec + num_plain)
        if num_spec + num_plain
        else None,
        "acceptance.histogram": hits,
        "acceptance.by_position": [sum(hits[n:]) / count for n, count in enumerate(proposed_at, start=1)],
        **{f"seconds.{phase}": value for phase, value in totals.seconds.items()},
        **_expected_lengths(totals),
    }


def _expected_lengths(totals: Totals) -> dict[str, Any]:
    """What the commit says of lengths; older parts do not say enough for it."""
    if not totals.has_lengths:
        return {}
    return {
        "lengths.prompt": totals.prompt_lengths,
        "lengths.completion": totals.completion_lengths,
        "lengths.num_cut": totals.num_cut,
    }


def _add_lists(first: list[int], second: list[int]) -> list[int]:
    size = max(len(first), len(second))
    return [sum(values) for values in zip(_padded(first, size), _padded(second, size), strict=True)]


def _padded(values: list[int], size: int) -> list[int]:
    return values + [0] * (size - len(values))
