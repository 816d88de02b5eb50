"""The plan: which rows of which file belong to which shard. Written once, never changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from specbatch.schemas.canonical import canonical_json

PLAN_DIGEST_LENGTH = 16


@dataclass(frozen=True, slots=True)
class InputFile:
    """One pinned input file.

    Attributes:
        name: the name that enters the job's identity (path relative to the dataset argument).
        path: where workers read it (absolute local path or URI).
        size_bytes: file size when pinned.
        footer_sha256: hex SHA-256 of the Parquet footer when pinned.
        row_group_rows: rows of each row group, in file order.
    """

    name: str
    path: str
    size_bytes: int
    footer_sha256: str
    row_group_rows: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(self.row_group_rows)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows [row_start, row_stop) of one file; its first row has ``row_id`` = ``first_row_id``.

    Attributes:
        samples: which samples of each of these rows, ascending; None for all of the job. Only amendments name any.
    """

    path: str
    size_bytes: int
    footer_sha256: str
    row_start: int
    row_stop: int
    first_row_id: int
    samples: tuple[int, ...] | None = None

    @property
    def num_rows(self) -> int:
        return self.row_stop - self.row_start


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work and of commit: some segments in the order of their row ids.

    Between segments there is no gap, but in amendments, whose shards pick out the rows that failed.
    """

    index: int
    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def row_start(self) -> int:
        """First ``row_id`` of the shard."""
        return self.segments[0].first_row_id

    @property
    def row_stop(self) -> int:
        """One past the last ``row_id`` of the shard."""
        return self.segments[-1].first_row_id + self.segments[-1].num_rows


def plan_digest(identity_sha256: str, shards: tuple[Shard, ...]) -> str:
    """P: the first 16 hex digits of SHA-256 over the identity S and the shard table.

    Paths are left out on purpose: S names the inputs by content, and a dataset that moved is the same dataset.
    """
    digest = hashlib.sha256(identity_sha256.encode("ascii"))
    for shard in shards:
        rows = [
            [s.footer_sha256, s.row_start, s.row_stop, s.first_row_id, *([] if s.samples is None else [s.samples])]
            for s in shard.segments
        ]
        digest.update(canonical_json([shard.index, rows]))
    return digest.hexdigest()[:PLAN_DIGEST_LENGTH]


def part_name(shard_index: int, plan: str) -> str:
    """Path of a shard's part below the output: ``data/part-<shard>-<P>.parquet``."""
    return f"data/part-{shard_index:06d}-{plan}.parquet"
