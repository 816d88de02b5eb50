"""Counters and seconds. Additive numbers only: every ratio is computed where it is read.

Glossary: a *round* is one target forward over the batch. A row takes part in a round as a *spec step* (it
proposed one or more draft tokens) or as a *plain step* (it proposed none). *Accepted* tokens are draft tokens
that were committed. The *bonus* token is the target's own draw behind the last accepted draft.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from specbatch.schemas.canonical import sum_histograms


@dataclass(frozen=True, slots=True)
class SpecCounters:
    """Acceptance bookkeeping of one sequence, or the sum over many.

    For one sequence: ``sum(acceptance_histogram) == num_spec_steps``,
    ``sum(i * h[i]) == num_accepted_draft_tokens``, ``sum(k * d[k]) == num_draft_tokens`` and
    ``num_completion_tokens == num_plain_steps + num_spec_steps + num_accepted_draft_tokens - e`` with e = 1 if and
    only if the last token is an accepted draft.

    Attributes:
        num_spec_steps: rounds in which the row proposed at least one draft token.
        num_plain_steps: rounds without a proposal; the forward that ends prefill counts as one.
        num_draft_tokens: proposed tokens, those behind a committed terminator left out.
        num_accepted_draft_tokens: proposed tokens that were committed.
        acceptance_histogram: entry i counts the spec steps that accepted i drafts.
        draft_length_histogram: entry k counts the spec steps that proposed k drafts (entry 0 stays 0).
    """

    num_spec_steps: int = 0
    num_plain_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    acceptance_histogram: tuple[int, ...] = ()
    draft_length_histogram: tuple[int, ...] = ()

    @staticmethod
    def total(parts: Iterable[SpecCounters]) -> SpecCounters:
        """Sum over sequences."""
        items = list(parts)  # one or more for every row of a job: lists are summed faster than generators
        return SpecCounters(
            num_spec_steps=sum([item.num_spec_steps for item in items]),
            num_plain_steps=sum([item.num_plain_steps for item in items]),
            num_draft_tokens=sum([item.num_draft_tokens for item in items]),
            num_accepted_draft_tokens=sum([item.num_accepted_draft_tokens for item in items]),
            acceptance_histogram=sum_histograms([item.acceptance_histogram for item in items]),
            draft_length_histogram=sum_histograms([item.draft_length_histogram for item in items]),
        )


@dataclass(frozen=True, slots=True)
class PhaseSeconds:
    """Wall seconds of one worker by phase; phases do not overlap, but ``load`` and ``write`` may overlap decoding."""

    propose: float = 0.0
    score: float = 0.0
    accept: float = 0.0
    host: float = 0.0
    prefill: float = 0.0
    load: float = 0.0
    write: float = 0.0

    def __add__(self, other: PhaseSeconds) -> PhaseSeconds:
        return PhaseSeconds(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: PhaseSeconds) -> PhaseSeconds:
        return PhaseSeconds(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class PartStats:
    """What one part says about its rows: integers are sums over its rows, seconds are the worker's share.

    Attributes:
        errors_by_code: pairs (error code, rows), sorted by code.
        num_near_ties: tokens that were decided by canonical evaluation because two scores nearly tied.
        prompt_lengths, completion_lengths: entry i counts the ok results whose length in tokens has i binary digits;
            empty in parts of an older version.
        num_cut: ok results that ended because they had as many tokens as they were allowed.
    """

    num_rows: int = 0
    num_results: int = 0
    num_ok: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_near_ties: int = 0
    errors_by_code: tuple[tuple[str, int], ...] = ()
    counters: SpecCounters = field(default_factory=SpecCounters)
    seconds: PhaseSeconds = field(default_factory=PhaseSeconds)
    prompt_lengths: tuple[int, ...] = ()
    completion_lengths: tuple[int, ...] = ()
    num_cut: int = 0

    @property
    def num_errors(self) -> int:
        return self.num_results - self.num_ok

    def __add__(self, other: PartStats) -> PartStats:
        errors: dict[str, int] = {}
        for code, count in (*self.errors_by_code, *other.errors_by_code):
            errors[code] = errors.get(code, 0) + count
        return replace(
            self,
            num_rows=self.num_rows + other.num_rows,
            num_results=self.num_results + other.num_results,
            num_ok=self.num_ok + other.num_ok,
            num_prompt_tokens=self.num_prompt_tokens + other.num_prompt_tokens,
            num_completion_tokens=self.num_completion_tokens + other.num_completion_tokens,
            num_near_ties=self.num_near_ties + other.num_near_ties,
            errors_by_code=tuple(sorted(errors.items())),
            counters=SpecCounters.total((self.counters, other.counters)),
            seconds=self.seconds + other.seconds,
            prompt_lengths=sum_histograms((self.prompt_lengths, other.prompt_lengths)),
            completion_lengths=sum_histograms((self.completion_lengths, other.completion_lengths)),
            num_cut=self.num_cut + other.num_cut,
        )


def length_histogram(lengths: Iterable[int]) -> tuple[int, ...]:
    """Entry i: how many of these lengths (in tokens, 0 or more) have i binary digits: 0, 1, 2-3, 4-7, 8-15, ..."""
    by_digits: Counter[int] = Counter()
    for length, count in Counter(lengths).items():
        by_digits[length.bit_length()] += count
    return tuple(by_digits[digits] for digits in range(max(by_digits, default=-1) + 1))


def accepted_by_position(counters: SpecCounters) -> tuple[int, ...]:
    """Entry j: spec steps whose draft at position j (0-based) was accepted; derived from the acceptance histogram."""
    histogram = counters.acceptance_histogram
    return tuple(sum(histogram[j + 1 :]) for j in range(len(histogram) - 1))


def proposed_by_position(counters: SpecCounters) -> tuple[int, ...]:
    """Entry j: spec steps that proposed a draft at position j (0-based)."""
    histogram = counters.draft_length_histogram
    return tuple(sum(histogram[j + 1 :]) for j in range(len(histogram) - 1))
