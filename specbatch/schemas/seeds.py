"""Seeds of rows: the only source of randomness in a job.

``row_seed`` is written to every result row, and is the ``seed`` of the row's ``SamplingParams``: the engine
alone can reproduce any row of a job from it.
"""

from __future__ import annotations

import functools
import hashlib

_ROW_DOMAIN = "specbatch/row/1"
_PROMPT_DOMAIN = "specbatch/prompt/1"
_LOW_63_BITS = (1 << 63) - 1
_LENGTHS = tuple(size.to_bytes(8, "little") for size in range(20))


def _digest_63(state: hashlib.blake2b, prefixed_fields: bytes) -> int:
    """Low 63 bits of BLAKE2b-64 behind these fields."""
    state.update(prefixed_fields)
    return int.from_bytes(state.digest(), "little") & _LOW_63_BITS


def _prefixed(field: int | str) -> bytes:
    """A field with its length before it, which keeps ("ab", "c") from ("a", "bc")."""
    data = str(field).encode("utf-8")
    return len(data).to_bytes(8, "little") + data


@functools.lru_cache(maxsize=64)
def _begun(*fields: int | str) -> hashlib.blake2b:
    """The digest behind these fields, to be copied: the rows of a job share them."""
    return hashlib.blake2b(b"".join(_prefixed(field) for field in fields), digest_size=8)


_sample = functools.lru_cache(maxsize=64)(_prefixed)


def row_seed(job_seed: int, key: int | str, sample_index: int) -> int:
    """Seed of one (row, sample).

    Args:
        job_seed: ``--seed`` of the job.
        key: the ``row_id``, or the row's id under ``--seed-by id``.
        sample_index: 0-based number of the sample of this row.

    Returns:
        An integer in [0, 2**63).
    """
    kind = "id" if isinstance(key, str) else "row"
    return _digest_63(_begun(_ROW_DOMAIN, job_seed, kind).copy(), _prefixed(key) + _sample(sample_index))


def row_seeds(job_seed: int, first_row_id: int, num_rows: int) -> list[int]:
    """``row_seed(job_seed, row_id, 0)`` of a run of rows, at half the price for each."""
    begun, sample = _begun(_ROW_DOMAIN, job_seed, "row"), _sample(0)
    seeds = []
    for row_id in range(first_row_id, first_row_id + num_rows):
        digits = b"%d" % row_id
        state = begun.copy()
        state.update(b"%b%b%b" % (_LENGTHS[len(digits)], digits, sample))
        seeds.append(int.from_bytes(state.digest(), "little") & _LOW_63_BITS)
    return seeds


def prompt_seed(seed: int, prompt_index: int) -> int:
    """Seed of prompt ``prompt_index`` when one ``SamplingParams`` serves many prompts; prompt 0 keeps ``seed``."""
    return (
        seed
        if prompt_index == 0
        else _digest_63(_begun(_PROMPT_DOMAIN).copy(), _prefixed(seed) + _prefixed(prompt_index))
    )
