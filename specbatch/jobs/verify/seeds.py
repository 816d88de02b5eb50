"""The second opinion on the seeds of rows: made anew from the job's seed, the rows' ids, and seeds that rows name.

Part of ``verify``, which shares no code with the writers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BAD_IDS = frozenset({"ROW_ID_NULL", "ROW_ENCODING"})
_BAD_PARAMS = "ROW_PARAMS"


@dataclass(frozen=True, slots=True)
class SeedRules:
    """How seeds come about, and where what they are made of stands.

    Attributes:
        id_column: under ``by`` id; None where the table at hand lacks it.
        own_column: where rows may name their own seed; None where they cannot.
        is_known: whether the table at hand tells all that seeds are made of.
    """

    job_seed: int
    by: Literal["row", "id"] = "row"
    id_column: str | None = None
    own_column: str | None = None
    is_known: bool = True

    @property
    def columns(self) -> list[str]:
        """What is read of the table at hand."""
        return [name for name in (self.id_column, self.own_column) if name is not None]


def seed_rules(fields: dict[str, Any]) -> SeedRules | None:
    """The rules of a job, with the names of the dataset's columns; None where the identity names no seed."""
    generation, prompt, output = (_section(fields, name) for name in ("generation", "prompt", "output"))
    seed = generation.get("seed")
    if type(seed) is not int:
        return None
    by_id = generation.get("seed_by") == "id"
    return SeedRules(
        job_seed=seed,
        by="id" if by_id else "row",
        id_column=str(output.get("id_column")) if by_id else None,
        own_column="seed" if prompt.get("row_params") is True else None,
    )


def in_parts(rules: SeedRules, fields: dict[str, Any], names: list[str]) -> SeedRules:
    """The rules for a part, whose columns may be renamed, or fewer than the dataset's."""
    output = _section(fields, "output")
    kept = output.get("keep_columns")
    new = new_names(output)

    def find(old: str) -> tuple[str | None, bool]:
        """The name there, and whether that is all that can be known."""
        if isinstance(kept, list) and old not in kept:
            return None, False
        name = new.get(old, old)
        return (name, True) if name in names else (None, True)

    is_known = True
    id_column, own_column = rules.id_column, rules.own_column
    if id_column is not None:
        id_column, _ = find(id_column)
        is_known = id_column is not None
    if own_column is not None:
        own_column, is_seen = find(own_column)
        is_known = is_known and is_seen
    return replace(rules, id_column=id_column, own_column=own_column, is_known=is_known)


def new_names(output: dict[str, Any]) -> dict[str, str]:
    """Old name -> new name of the columns that a job renames."""
    pairs = output.get("rename")
    texts = [pair for pair in pairs if isinstance(pair, str)] if isinstance(pairs, list) else []
    return {old: new for old, _, new in (text.partition("=") for text in texts)}


def check_seeds(
    rules: SeedRules,
    found: Ints,
    row_ids: Ints,
    samples: Ints,
    *,
    ids: pa.Array | None = None,
    own: pa.Array | None = None,
    codes: list[str | None] | None = None,
) -> Mask:
    """Where a seed does not follow from what it is made of.

    Args:
        found: the seeds that are to be checked.
        ids, own: the columns that the rules name, one cell for each result.
        codes: error code of each result; may be left out where rows name no seeds.
    """
    if rules.by == "row" and own is None:
        differs: Mask = found != row_seeds(rules.job_seed, row_ids, samples)
        return differs
    keys = [None] * len(found) if ids is None else id_texts(ids)
    named = [None] * len(found) if own is None else _numbers(own)
    wrong = np.zeros(len(found), dtype=np.bool_)
    results = zip(found.tolist(), row_ids.tolist(), samples.tolist(), strict=True)
    for place, (seed, row_id, sample) in enumerate(results):
        code = None if codes is None else codes[place]
        key = keys[place] if rules.by == "id" else None
        by_job = _by_job(rules.job_seed, row_id if key is None else key, sample)
        number = named[place] if code != _BAD_PARAMS else None
        allowed = {by_job if number is None else _by_row(number, sample)}
        if code in _BAD_IDS:  # which hides whether the row's own seed could be read
            allowed.add(by_job)
        wrong[place] = seed not in allowed
    return wrong


def row_seeds(job_seed: int, row_ids: Ints, samples: Ints) -> Ints:
    """Low 63 bits of BLAKE2b-64 over domain, job seed, "row", row and sample, each behind its length."""
    prefix = _state("specbatch/row/1", job_seed, "row")
    seeds = np.empty(len(row_ids), dtype=np.int64)
    suffixes = [_counted(sample) for sample in range(int(samples.max(initial=0)) + 1)]
    for index, (row_id, sample) in enumerate(zip(row_ids.tolist(), samples.tolist(), strict=True)):
        state = prefix.copy()
        state.update(_counted(row_id) + suffixes[sample])
        seeds[index] = _low(state)
    return seeds


def id_texts(ids: pa.Array) -> list[str | None]:
    """The texts of ids, as seeds are made of them; None for what is no id."""
    if isinstance(ids, pa.ChunkedArray):
        return [text for chunk in ids.chunks for text in id_texts(chunk)]
    if pa.types.is_dictionary(ids.type):
        distinct = id_texts(ids.dictionary)
        return [None if index is None else distinct[index] for index in ids.indices.to_pylist()]
    if pa.types.is_string(ids.type):
        ids = ids.cast(pa.binary())
    elif pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.large_binary())
    elif pa.types.is_string_view(ids.type):
        ids = ids.cast(pa.binary_view())
    return [_id_text(value) for value in ids.to_pylist()]


def _id_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return None if value is None else str(value)


def _numbers(own: pa.Array) -> list[int | None]:
    """Seeds that rows name; what is none makes the row an error, which its code says."""
    found: list[int | None] = []
    for value in own.to_pylist():
        try:
            number = None if value is None else int(value)
        except (ValueError, OverflowError, TypeError, ArithmeticError):
            number = None
        found.append(number)
    return found


def _by_job(job_seed: int, key: int | str, sample: int) -> int:
    kind = "id" if isinstance(key, str) else "row"
    state = _state("specbatch/row/1", job_seed, kind)
    state.update(_counted(key) + _counted(sample))
    return _low(state)


def _by_row(seed: int, sample: int) -> int:
    """The seed that a row names is that of its first sample; those of the others are derived from it."""
    return seed if sample == 0 else _low(_state("specbatch/prompt/1", seed, sample))


def _state(*fields: int | str) -> hashlib.blake2b:
    state = hashlib.blake2b(digest_size=8)
    for field in fields:
        state.update(_counted(field))
    return state


def _low(state: hashlib.blake2b) -> int:
    return int.from_bytes(state.digest(), "little") & 0x7FFF_FFFF_FFFF_FFFF


def _counted(value: int | str) -> bytes:
    text = str(value).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text


def _section(fields: dict[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, dict) else {}
