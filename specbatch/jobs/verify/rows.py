"""The second opinion on one part: its rows are exactly the planned ones, each sample once, and their books add up.

Part of ``verify``, which shares no code with the writers. Everything is vectorised over batches of rows.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from specbatch.jobs.verify.columns import (
    Ints,
    Lists,
    Mask,
    by_digits,
    equals,
    ints,
    is_null,
    segment_sums,
    value_counts,
)
from specbatch.jobs.verify.files import Unsound
from specbatch.jobs.verify.parquet import open_untrusted
from specbatch.jobs.verify.plan import PlannedShard
from specbatch.jobs.verify.rules import PartRules, check_form
from specbatch.jobs.verify.seeds import SeedRules, check_seeds
from specbatch.jobs.verify.totals import COUNTS, Totals, check_footer

_BATCH_ROWS = 1 << 16
_TEXT = ("status", "completion", "finish_reason", "error_code", "error_message")
_LISTS = ("completion_token_ids", "acceptance_histogram", "draft_length_histogram")
_TYPES: dict[str, Callable[[pa.DataType], bool]] = {
    "row_id": pa.types.is_int64,
    "sample_index": pa.types.is_int32,
    "row_seed": pa.types.is_int64,
    "min_margin": pa.types.is_float32,
    **dict.fromkeys(COUNTS, pa.types.is_int32),
    **dict.fromkeys(_TEXT, lambda kind: pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)),
    **dict.fromkeys(_LISTS, lambda kind: pa.types.is_list(kind) and pa.types.is_int32(kind.value_type)),
}
_LOGPROBS_TYPE: dict[str, Callable[[pa.DataType], bool]] = {
    "logprobs": lambda kind: pa.types.is_list(kind) and pa.types.is_float32(kind.value_type)
}
_DUPLICATES_TYPE: dict[str, Callable[[pa.DataType], bool]] = {"duplicate_of": pa.types.is_int64}
_LOGPROB_ROUNDING = 1e-3
_MAY_BE_NULL = frozenset(
    {
        "completion",
        "completion_token_ids",
        "error_code",
        "error_message",
        "min_margin",
        *_LOGPROBS_TYPE,
        *_DUPLICATES_TYPE,
    }
)


def check_part(data: bytes | mmap.mmap, shard: PlannedShard, rules: PartRules, problems: list[str]) -> Totals:
    """Checks one part; what is wrong is appended to ``problems`` with the part's name.

    Returns:
        The sums over its rows.

    Raises:
        Unsound: it cannot be read as a part at all.
    """
    parquet = open_untrusted(data, shard.name, dictionary_columns=[rules.prefix + name for name in _TEXT])
    names = parquet.schema_arrow.names
    types = _types(rules)
    for name in {*_LOGPROBS_TYPE, *_DUPLICATES_TYPE} - set(types):
        if rules.prefix + name in names:
            raise Unsound(f"{shard.name} has a column {rules.prefix + name} that the job did not ask for")
    for name, is_right in types.items():
        column = rules.prefix + name
        if names.count(column) != 1:
            raise Unsound(f"{shard.name} has {names.count(column)} columns {column}")
        if not is_right(parquet.schema_arrow.field(column).type):
            raise Unsound(f"{shard.name}: column {column} has type {parquet.schema_arrow.field(column).type}")
    seeds = rules.seeds_in(names)
    for column in seeds.columns if seeds is not None else ():
        if names.count(column) != 1:
            raise Unsound(f"{shard.name} has {names.count(column)} columns {column}")
    problems += check_form(parquet, shard.name, rules)
    num_planned = shard.num_results(rules.num_samples)
    if parquet.metadata.num_rows != num_planned:
        raise Unsound(f"{shard.name} holds {parquet.metadata.num_rows:,} rows; {num_planned:,} are planned")

    totals = Totals()
    findings: dict[str, tuple[int, int]] = {}
    try:
        wanted = [*(rules.prefix + name for name in types), *(seeds.columns if seeds is not None else ())]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
            first_result = totals.num_results
            row_ids, samples = shard.expected(rules.num_samples, first_result, first_result + batch.num_rows)
            columns = {name: batch.column(rules.prefix + name) for name in types}
            if seeds is not None:
                bad = _check_seeds(seeds, batch, columns, row_ids, samples)
                _note(findings, "row_seed does not follow from the job's seed", bad, row_ids)
            for what, bad in _check_batch(columns, row_ids, samples, rules, totals):
                _note(findings, what, bad, row_ids)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unsound(f"{shard.name} cannot be read: {str(error).splitlines()[0][:200]}") from error
    for what, (first, count) in findings.items():
        where = f"row {first}" if count == 1 else f"{count:,} rows, the first at {first}"
        problems.append(f"{shard.name}: {what} ({where})")
    check_footer(parquet.metadata.metadata or {}, shard, rules, totals, problems)
    return totals


def _types(rules: PartRules) -> dict[str, Callable[[pa.DataType], bool]]:
    logprobs = _LOGPROBS_TYPE if rules.has_logprobs else {}
    return {**_TYPES, **logprobs, **(_DUPLICATES_TYPE if rules.has_duplicates else {})}


def _note(findings: dict[str, tuple[int, int]], what: str, bad: Mask, row_ids: Ints) -> None:
    if bad.any():
        first, count = findings.get(what, (int(row_ids[int(bad.argmax())]), 0))
        findings[what] = (first, count + int(bad.sum()))


def _check_seeds(
    seeds: SeedRules, batch: pa.RecordBatch, columns: dict[str, pa.Array], row_ids: Ints, samples: Ints
) -> Mask:
    return check_seeds(
        seeds,
        ints(columns["row_seed"]),
        row_ids,
        samples,
        ids=None if seeds.id_column is None else batch.column(seeds.id_column),
        own=None if seeds.own_column is None else batch.column(seeds.own_column),
        codes=columns["error_code"].to_pylist() if seeds.columns else None,
    )


def _check_batch(
    columns: dict[str, pa.Array], row_ids: Ints, samples: Ints, rules: PartRules, totals: Totals
) -> Iterator[tuple[str, Mask]]:
    """Yields (what is wrong, at which results) and adds the batch to the totals.

    Args:
        columns: without the prefix of their names.
        row_ids, samples: which results the batch must hold.
    """
    for name, column in columns.items():
        if name not in _MAY_BE_NULL and column.null_count:
            raise Unsound(f"rows from {int(row_ids[0])}: {name} has empty cells")
    counts = {name: ints(columns[name]) for name in COUNTS}
    ids = Lists.of(columns["completion_token_ids"])
    accepted = Lists.of(columns["acceptance_histogram"])
    drafted = Lists.of(columns["draft_length_histogram"])
    ok = equals(columns["status"], "ok")
    error = ~ok

    yield "row_id is not the planned one", ints(columns["row_id"]) != row_ids
    yield "sample_index is not the planned one", ints(columns["sample_index"]) != samples
    if rules.has_duplicates:
        first = ints(pc.fill_null(columns["duplicate_of"], -1))
        marked = ~is_null(columns["duplicate_of"])
        yield "duplicate_of names no row before this one", marked & ((first < 0) | (first >= row_ids))
    yield "status is neither ok nor error", error & ~equals(columns["status"], "error")

    stopped = equals(columns["finish_reason"], "stop") | equals(columns["finish_reason"], "length")
    yield "an ok row without completion or token ids", ok & (is_null(columns["completion"]) | ids.null)
    yield "an ok row with an error", ok & ~(is_null(columns["error_code"]) & is_null(columns["error_message"]))
    yield "an ok row that neither stopped nor reached its length", ok & ~stopped
    yield (
        "an error row with completion, token ids or margin",
        error & ~(is_null(columns["completion"]) & ids.null & is_null(columns["min_margin"])),
    )
    yield (
        "an error row without error code",
        error & (is_null(columns["error_code"]) | equals(columns["error_code"], "")),
    )
    yield "an error row whose finish_reason is not error", error & ~equals(columns["finish_reason"], "error")
    worked = sum(counts[name] for name in COUNTS[1:]) + accepted.sum + drafted.sum
    yield "an error row with counters", error & (worked != 0)

    if rules.has_logprobs:
        yield from _check_logprobs(columns["logprobs"], error, counts["num_completion_tokens"])

    negative = np.any([values < 0 for values in counts.values()], axis=0)
    yield "a negative count", negative | accepted.negative | drafted.negative | ids.negative
    yield "num_completion_tokens is not the number of token ids", counts["num_completion_tokens"] != ids.length
    steps, proposed = counts["num_spec_steps"], counts["num_draft_tokens"]
    hits = counts["num_accepted_draft_tokens"]
    yield "acceptance_histogram does not sum to num_spec_steps", accepted.sum != steps
    yield "acceptance_histogram does not give num_accepted_draft_tokens", accepted.moment != hits
    yield "draft_length_histogram does not sum to num_spec_steps", drafted.sum != steps
    yield "draft_length_histogram does not give num_draft_tokens", drafted.moment != proposed
    yield "more drafts accepted than proposed", hits > proposed
    last_accepted = counts["num_plain_steps"] + steps + hits - counts["num_completion_tokens"]
    yield "the steps do not give num_completion_tokens", ok & (last_accepted != 0) & (last_accepted != 1)

    totals.add(
        Totals(
            num_rows=int((np.diff(row_ids, prepend=totals.last_row_id) != 0).sum()),
            last_row_id=int(row_ids[-1]),
            failed=_failures(columns["error_code"], error, row_ids, samples),
            num_results=len(row_ids),
            num_ok=int(ok.sum()),
            prompt_lengths=by_digits(counts["num_prompt_tokens"][ok]),
            completion_lengths=by_digits(counts["num_completion_tokens"][ok]),
            num_cut=int(equals(columns["finish_reason"], "length").sum()),
            counts={name: int(values.sum()) for name, values in counts.items()},
            errors_by_code=value_counts(columns["error_code"].filter(pa.array(error))),
            acceptance_histogram=accepted.by_entry(),
            draft_length_histogram=drafted.by_entry(),
        )
    )


def _check_logprobs(column: pa.ListArray, error: Mask, num_tokens: Ints) -> Iterator[tuple[str, Mask]]:
    """One number for each token, none above 0: they are logarithms of probabilities."""
    if column.values.null_count:
        raise Unsound("logprobs has empty entries")
    length = ints(pc.fill_null(pc.list_value_length(column), 0))
    yield "an ok row without logprobs", ~error & is_null(column)
    yield "an error row with logprobs", error & ~is_null(column)
    yield "logprobs are not one for each token", ~error & (length != num_tokens)
    values = column.flatten().to_numpy(zero_copy_only=False)
    wrong = (~(values <= _LOGPROB_ROUNDING)).astype(np.int64)  # what is not a number is not below either
    yield "a logprob above 0", segment_sums(wrong, np.cumsum(length), length) > 0


def _failures(codes: pa.DictionaryArray, error: Mask, row_ids: Ints, samples: Ints) -> dict[tuple[int, int], str]:
    """(row, sample) -> code of the results that failed."""
    where = np.flatnonzero(error)
    texts = codes.take(pa.array(where)).to_pylist()
    pairs = zip(row_ids[where].tolist(), samples[where].tolist(), strict=True)
    return dict(zip(pairs, map(str, texts), strict=True))
