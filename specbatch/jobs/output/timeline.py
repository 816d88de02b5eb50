"""Throughput, acceptance and K over the life of a job, in at most 200 buckets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from specbatch.schemas.manifest import TimelineBucket
from specbatch.schemas.run import BlockRecord, RunRecord

MAX_BUCKETS = 200
_MIN_BUCKET_SECONDS = 1.0


class _Placed(NamedTuple):
    """A block with the seconds [start, stop) since the start of the first run in which it was decoded."""

    start: float
    stop: float
    worker: tuple[int, int]
    block: BlockRecord


@dataclass(slots=True)
class _Bucket:
    """Sums over the parts of blocks that fall into one bucket."""

    tokens: float = 0.0
    rounds: float = 0.0
    spec_rounds: float = 0.0
    accepted: float = 0.0
    steps_by_k: list[float] = field(default_factory=list)
    workers: set[tuple[int, int]] = field(default_factory=set)

    def add(self, placed: _Placed, share: float) -> None:
        block = placed.block
        compared_rounds = block.num_spec_rounds + block.num_plain_rounds
        self.tokens += share * (block.num_spec_tokens + block.num_plain_tokens + block.num_mixed_tokens)
        self.rounds += share * (compared_rounds + block.num_mixed_rounds)
        # Mixed rounds speculate as the others about them do.
        spec_share = block.num_spec_rounds / compared_rounds if compared_rounds else 0.0
        self.spec_rounds += share * (block.num_spec_rounds + spec_share * block.num_mixed_rounds)
        self.accepted += share * block.num_accepted_draft_tokens
        lengths = block.draft_length_histogram
        self.steps_by_k += [0.0] * (len(lengths) - len(self.steps_by_k))
        for k, count in enumerate(lengths):
            self.steps_by_k[k] += share * count
        self.workers.add(placed.worker)

    def document(self, end_seconds: float, width: float) -> TimelineBucket:
        drafted = sum(k * count for k, count in enumerate(self.steps_by_k))
        num_steps = sum(self.steps_by_k)
        return {
            "seconds": round(end_seconds, 3),
            "tokens_per_second": round(self.tokens / width, 3),
            "tokens_per_round": round(self.tokens / self.rounds, 3) if self.rounds else 0.0,
            "spec_share": round(self.spec_rounds / self.rounds, 4) if self.rounds else 0.0,
            "workers": len(self.workers),
            "acceptance": round(self.accepted / drafted, 4) if drafted else None,
            "k_share": [round(count / num_steps, 4) for count in self.steps_by_k] if num_steps else None,
        }


def build_timeline(runs: Sequence[RunRecord]) -> list[TimelineBucket]:
    """Decoding over time: runs one after the other, all workers together.

    A block of rounds is spread evenly over the seconds that it took, so a block that is longer than a bucket
    does not show as a spike.

    Returns:
        At most 200 buckets of equal width: ``seconds`` (the bucket's end, since the first run's start),
        ``tokens_per_second``, ``tokens_per_round`` (all rows of a worker together), ``spec_share`` (share of the
        rounds that speculated), ``workers`` (how many decoded in it), ``acceptance`` (accepted of the draft tokens)
        and ``k_share`` (entry k: share of the rows' turns with k drafts). In a bucket without rounds the numbers are 0;
        the last two are None where nothing was drafted, or where the records are of an older version.
    """
    placed = _place(runs)
    if not placed:
        return []
    end = max(item.stop for item in placed)
    num_buckets = max(1, min(MAX_BUCKETS, math.ceil(end / _MIN_BUCKET_SECONDS)))
    width = end / num_buckets
    buckets = [_Bucket() for _ in range(num_buckets)]
    for item in placed:
        for index, share in _shares(item, width, num_buckets):
            buckets[index].add(item, share)
    return [bucket.document((index + 1) * width, width) for index, bucket in enumerate(buckets)]


def _shares(placed: _Placed, width: float, num_buckets: int) -> Iterator[tuple[int, float]]:
    """Buckets that a block touches, and the share of it that lies in each."""
    first = min(num_buckets - 1, int(placed.start / width))
    last = min(num_buckets - 1, int(placed.stop / width))
    for bucket in range(first, last + 1):
        overlap = min(placed.stop, (bucket + 1) * width) - max(placed.start, bucket * width)
        if overlap > 0:
            yield bucket, overlap / (placed.stop - placed.start)


def _place(runs: Sequence[RunRecord]) -> list[_Placed]:
    placed: list[_Placed] = []
    offset = 0.0
    for run in runs:
        for worker in run.workers:
            for block in worker.blocks:
                stop = offset + block.at_seconds
                start = max(offset, stop - block.spec_seconds - block.plain_seconds - block.mixed_seconds)
                if start < stop:
                    placed.append(_Placed(start, stop, (run.epoch, worker.worker), block))
        offset += run.total_seconds
    return placed
