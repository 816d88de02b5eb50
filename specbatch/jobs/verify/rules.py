"""The second opinion on what the identity says about every part: columns, seeds, compression, row groups.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from specbatch.jobs.verify.files import Unsound
from specbatch.jobs.verify.plan import JOB_NAME
from specbatch.jobs.verify.seeds import SeedRules, in_parts, seed_rules

_MAX_PREFIX = 64
_COMPRESSIONS = {
    "zstd": {"ZSTD"},
    "snappy": {"SNAPPY"},
    "gzip": {"GZIP"},
    "lz4": {"LZ4", "LZ4_RAW"},
    "none": {"UNCOMPRESSED"},
}


@dataclass(frozen=True, slots=True)
class PartRules:
    """What the identity says about every part.

    Attributes:
        plan: plan digest P.
        seeds: how the seed of each sample comes about; None leaves the seeds unchecked.
        num_samples: results of each row.
        has_logprobs: whether there is a column of logprobs.
        prefix: stands before the names of the result columns.
        has_duplicates: whether there is a column that marks duplicates.
        compression: of every column; None where the job asked for none in particular.
        row_group_rows: most results of a row group; None for any number.
        fields: the identity.
    """

    plan: str
    seeds: SeedRules | None
    num_samples: int = 1
    has_logprobs: bool = False
    prefix: str = ""
    has_duplicates: bool = False
    compression: str | None = None
    row_group_rows: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def seeds_in(self, names: list[str]) -> SeedRules | None:
        """The rules of seeds for a part with these columns; None where they cannot be checked."""
        rules = None if self.seeds is None else in_parts(self.seeds, self.fields, names)
        return rules if rules is not None and rules.is_known else None


def part_rules(job: dict[str, Any], problems: list[str]) -> PartRules:
    """What job.json says about its parts; a job written before samples and logprobs existed has one and none."""
    fields = job["identity"]["fields"]
    generation, output = fields.get("generation"), fields.get("output")
    settings = generation if isinstance(generation, dict) else {}
    form = output if isinstance(output, dict) else {}
    num_samples, prefix = settings.get("num_samples", 1), form.get("prefix", "")
    seeds = seed_rules(fields)
    if seeds is None:
        problems.append("job.json: the identity names no seed")
    if type(num_samples) is not int or num_samples < 1:
        raise Unsound(f"{JOB_NAME}: the number of samples is {str(num_samples)[:40]!r}")
    if not isinstance(prefix, str) or len(prefix) > _MAX_PREFIX:
        raise Unsound(f"{JOB_NAME}: the prefix of the columns is {str(prefix)[:40]!r}")
    compression, row_group_rows = form.get("compression"), form.get("row_group_rows")
    return PartRules(
        plan=job["identity"]["P"],
        seeds=seeds,
        num_samples=num_samples,
        has_logprobs=settings.get("logprobs") is True,
        prefix=prefix,
        has_duplicates=form.get("dedupe") == "mark",
        compression=compression if isinstance(compression, str) else None,
        row_group_rows=row_group_rows if type(row_group_rows) is int else None,
        fields=fields,
    )


def check_form(parquet: Any, name: str, rules: PartRules) -> Iterator[str]:
    """Compression and row groups, where the job asked for some."""
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        if rules.row_group_rows is not None and group.num_rows > rules.row_group_rows:
            yield f"{name}: row group {index} has {group.num_rows:,} rows; {rules.row_group_rows:,} were asked for"
        if rules.compression is None or group.num_rows == 0:
            continue
        used = {group.column(column).compression for column in range(group.num_columns)}
        if other := used - _COMPRESSIONS.get(rules.compression, set()):
            yield f"{name}: row group {index} is compressed by {min(other).lower()}, not by {rules.compression}"
