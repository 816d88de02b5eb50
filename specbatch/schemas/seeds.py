"""Seeds of rows: the only source of randomness in a job.

``row_seed`` is written to every result row, and is the ``seed`` of the row's ``SamplingParams``: the engine
alone can reproduce any row of a job from it.
"""

from __future__ import annotations

import hashlib

_ROW_DOMAIN = b"specbatch/row/1"
_PROMPT_DOMAIN = b"specbatch/prompt/1"
_LOW_63_BITS = (1 << 63) - 1


def _digest_63(domain: bytes, *fields: int | str) -> int:
    """Low 63 bits of BLAKE2b-64 over length-prefixed fields; the prefix keeps ("ab","c") from ("a","bc")."""
    state = hashlib.blake2b(digest_size=8)
    for field in (domain, *(str(field).encode("utf-8") for field in fields)):
        state.update(len(field).to_bytes(8, "little"))
        state.update(field)
    return int.from_bytes(state.digest(), "little") & _LOW_63_BITS


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
    return _digest_63(_ROW_DOMAIN, job_seed, kind, key, sample_index)


def prompt_seed(seed: int, prompt_index: int) -> int:
    """Seed of prompt ``prompt_index`` when one ``SamplingParams`` serves many prompts; prompt 0 keeps ``seed``."""
    return seed if prompt_index == 0 else _digest_63(_PROMPT_DOMAIN, seed, prompt_index)
