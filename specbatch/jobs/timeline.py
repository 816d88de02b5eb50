"""Throughput over the life of a job, in at most 200 buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specbatch.schemas.run import BlockRecord, RunRecord

MAX_BUCKETS = 200
_MIN_BUCKET_SECONDS = 1.0


def build_timeline(runs: Sequence[RunRecord]) -> list[dict[str, float]]:
    """Decoding over time: runs one after the other, all workers together.

    A block of rounds is spread evenly over the seconds that it took, so a block that is longer than a bucket
    does not show as a spike.

    Returns:
        At most 200 buckets of equal width: ``seconds`` (the bucket's end, since the first run's start),
        ``tokens_per_second``, ``tokens_per_round`` (all rows of a worker together) and ``spec_share`` (share of the
        rounds that speculated); the last two are 0 in a bucket without rounds.
    """
    placed = _place(runs)
    if not placed:
        return []
    end = max(stop for _, stop, _ in placed)
    num_buckets = max(1, min(MAX_BUCKETS, math.ceil(end / _MIN_BUCKET_SECONDS)))
    width = end / num_buckets
    tokens = [0.0] * num_buckets
    rounds = [0.0] * num_buckets
    spec_rounds = [0.0] * num_buckets
    for start, stop, block in placed:
        first = min(num_buckets - 1, int(start / width))
        last = min(num_buckets - 1, int(stop / width))
        for bucket in range(first, last + 1):
            overlap = min(stop, (bucket + 1) * width) - max(start, bucket * width)
            share = overlap / (stop - start)
            compared_rounds = block.num_spec_rounds + block.num_plain_rounds
            tokens[bucket] += share * (block.num_spec_tokens + block.num_plain_tokens + block.num_mixed_tokens)
            rounds[bucket] += share * (compared_rounds + block.num_mixed_rounds)
            # Mixed rounds speculate as the others about them do.
            spec_share = block.num_spec_rounds / compared_rounds if compared_rounds else 0.0
            spec_rounds[bucket] += share * (block.num_spec_rounds + spec_share * block.num_mixed_rounds)
    return [
        {
            "seconds": round((bucket + 1) * width, 3),
            "tokens_per_second": round(tokens[bucket] / width, 3),
            "tokens_per_round": round(tokens[bucket] / rounds[bucket], 3) if rounds[bucket] else 0.0,
            "spec_share": round(spec_rounds[bucket] / rounds[bucket], 4) if rounds[bucket] else 0.0,
        }
        for bucket in range(num_buckets)
    ]


def _place(runs: Sequence[RunRecord]) -> list[tuple[float, float, BlockRecord]]:
    """Blocks with the seconds [start, stop) since the start of the first run in which they were decoded."""
    placed: list[tuple[float, float, BlockRecord]] = []
    offset = 0.0
    for run in runs:
        for worker in run.workers:
            for block in worker.blocks:
                stop = offset + block.at_seconds
                start = max(offset, stop - block.spec_seconds - block.plain_seconds - block.mixed_seconds)
                if start < stop:
                    placed.append((start, stop, block))
        offset += run.total_seconds
    return placed
