"""``calibrate`` on the real engine: a table of step times by batch size and K, then a trial as a job would run it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specbatch.jobs.calibration.policies import FULL_ROWS, Onlooker, SweepPolicy
from specbatch.jobs.profiles.store import PositionRecord, StepRecord
from specbatch.jobs.profiles.table import summarise_rounds
from specbatch.schemas.sampling import SamplingParams
from specbatch.schemas.spec import Coupling, GenerationSpec, Speculation
from specbatch.specdec.engine import Engine
from specbatch.specdec.loading import Pair
from specbatch.specdec.policy.controller import Policy, make_policy
from specbatch.specdec.rows.batch import POSITIONS_STEP
from specbatch.workers.prompts import PreparedRow

_PASSES = 2
_ENOUGH_ROUNDS = 16
_FEWEST_NEW_TOKENS = 32
"""Completions of the table are allowed to be this long: of shorter ones hardly a round is full."""
_FEWEST_ROUNDS = 2
"""Rounds of a cell that the table takes; a single one may be a hiccup."""
_PATIENCE_SECONDS = 20.0
"""What a batch size may take beyond its share until every K has had a turn."""
_SPEED_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """Rows decoded as a job would.

    Attributes:
        lengths: tokens of each row that began, and whether it ended by itself.
        is_cut: the time was over before all rows had ended.
        draft_bytes: weights and caches of the draft.
    """

    seconds: float
    prefill_seconds: float
    num_rows: int
    num_prompt_tokens: int
    num_completion_tokens: int
    lengths: tuple[tuple[int, bool], ...]
    speed_error: float
    is_cut: bool
    draft_bytes: int


def measure_steps(
    pair: Pair,
    rows: Sequence[PreparedRow],
    generation: GenerationSpec,
    *,
    batch_sizes: Sequence[int],
    draft_lengths: Sequence[int],
    seconds: float,
    say: Callable[[str], None],
) -> tuple[tuple[StepRecord, ...], tuple[PositionRecord, ...]]:
    """Times of rounds by batch size and K, and acceptance by position over all of them.

    Args:
        rows: decoded again and again, at least one.
        draft_lengths: the K, 0 among them. batch_sizes: ascending.
        seconds: for all of it together; a slow pair takes longer, so that every K has a turn at every batch size.
    """
    params = generation.sampling_params(seed=0)
    params = replace(params, max_new_tokens=max(params.max_new_tokens, _FEWEST_NEW_TOKENS))
    policies = {batch_size: SweepPolicy(draft_lengths, batch_size) for batch_size in batch_sizes}
    share = seconds / len(batch_sizes) / _PASSES
    # More than one pass: what the machine does beside this then falls on no batch size alone.
    for number, (batch_size, policy) in itertools.product(range(1, _PASSES + 1), policies.items()):
        say(f"measuring batch {batch_size}, K {', '.join(map(str, draft_lengths))} (pass {number} of {_PASSES})")
        engine = _engine(pair, policy, batch_size, generation.coupling)
        requests = enumerate(itertools.cycle(rows))
        started = time.perf_counter()
        while not _is_enough(policy, time.perf_counter() - started, share, number):
            # Many rows at once: while prompts are read, rounds are no measure of a round.
            if engine.num_active + engine.num_queued < FULL_ROWS * batch_size:
                for key, row in itertools.islice(requests, batch_size - engine.num_active - engine.num_queued):
                    _submit(engine, key, row, params)
            engine.step()
        engine.cancel_all()
    steps = [
        summarise_rounds(batch_size, length, rounds)
        for batch_size, policy in policies.items()
        for length, rounds in sorted(policy.rounds.items())
        if len(rounds) >= _FEWEST_ROUNDS
    ]
    return tuple(steps), _added([policy.acceptance for policy in policies.values()])


def measure_trial(
    pair: Pair,
    rows: Sequence[PreparedRow],
    generation: GenerationSpec,
    *,
    batch_size: int,
    speculation: Speculation,
    seconds: float,
) -> Trial:
    """Decode rows once each, as a worker would, until all have ended or the time is over."""
    policy = Onlooker(make_policy(speculation, has_draft=pair.draft is not None, has_suffix=True))
    engine = _engine(
        pair, policy, batch_size, generation.coupling, has_suffix=policy.uses_suffix, has_profile=speculation == "auto"
    )
    before = engine.seconds.prefill
    params = generation.sampling_params(seed=0)
    for key, row in enumerate(rows):
        _submit(engine, key, row, params)
    lengths: list[tuple[int, bool]] = []
    num_done = 0
    started = time.perf_counter()
    while (engine.num_queued or engine.num_active) and time.perf_counter() - started < seconds:
        for output in engine.step():
            num_done += 1
            if output.error_code is None and output.token_ids:
                lengths.append((len(output.token_ids), output.finish_reason == "stop"))
    elapsed, num_active, memory = time.perf_counter() - started, engine.num_active, engine.memory()
    num_begun = num_done + num_active
    num_tokens = sum(length for length, _ in lengths)
    if num_active:
        # Of the rows in flight the tokens are known together: each counts with their mean.
        committed = sum(tokens for _, tokens in policy.rounds) + num_begun  # rounds do not count first tokens
        partial = min(max((committed - num_tokens) // num_active, 1), generation.max_new_tokens)
        lengths += [(partial, False)] * num_active
        num_tokens += partial * num_active
        engine.cancel_all()
    return Trial(
        seconds=elapsed,
        prefill_seconds=engine.seconds.prefill - before,
        num_rows=num_begun,
        num_prompt_tokens=sum(len(row.prompt_ids) for row in rows[:num_begun]),
        num_completion_tokens=num_tokens,
        lengths=tuple(lengths),
        speed_error=speed_error(policy.rounds),
        is_cut=num_begun < len(rows) or num_active > 0,
        draft_bytes=memory.draft_bytes + memory.draft_kv_bytes,
    )


def speed_error(rounds: Sequence[tuple[float, int]]) -> float:
    """Relative standard error of the tokens per second of rounds (seconds, tokens), by the scatter of equal stretches.

    The last stretch is left out: there the batch runs empty, which a forecast counts for itself.
    """
    size = len(rounds) // _SPEED_BLOCKS
    if size == 0:
        return 0.0
    speeds = []
    for block in range(_SPEED_BLOCKS - 1):
        taken = rounds[block * size : (block + 1) * size]
        speeds.append(sum(tokens for _, tokens in taken) / max(sum(seconds for seconds, _ in taken), 1e-9))
    mean = sum(speeds) / len(speeds)
    variance = sum((speed - mean) ** 2 for speed in speeds) / (len(speeds) - 1)
    return math.sqrt(variance / len(speeds)) / mean if mean else 0.0


def _engine(
    pair: Pair,
    policy: Policy,
    batch_size: int,
    coupling: Coupling,
    *,
    has_suffix: bool = False,
    has_profile: bool = False,
) -> Engine:
    """A new engine on the loaded pair. Nothing that another one has read or said is known to it."""
    for decoder in (pair.target, pair.draft):
        if decoder is not None:
            decoder.cache.resize(batch_size, POSITIONS_STEP)
    return Engine(
        pair.target,
        pair.draft if policy.uses_model else None,
        pair.tokenizer,
        eos_ids=pair.eos_ids,
        policy=policy,
        max_batch_size=batch_size,
        max_sequence_tokens=pair.max_sequence_tokens,
        max_kv_tokens=pair.max_kv_tokens,
        coupling=coupling,
        has_suffix=has_suffix,
        has_profile=has_profile,
    )


def _is_enough(policy: SweepPolicy, elapsed: float, share: float, number: int) -> bool:
    if elapsed > share:
        return policy.has_tried_all or elapsed > share + _PATIENCE_SECONDS
    return policy.num_full_rounds >= _ENOUGH_ROUNDS * number // _PASSES


def _submit(engine: Engine, key: int, row: PreparedRow, params: SamplingParams) -> None:
    own = params if row.params is None else row.params.apply(params)
    engine.submit(key, row.prompt_ids, own.with_seed(row.seed))


def _added(found: Sequence[Sequence[PositionRecord]]) -> tuple[PositionRecord, ...]:
    """Sums by position."""
    return tuple(
        PositionRecord(reached=sum(each.reached for each in column), accepted=sum(each.accepted for each in column))
        for column in (
            [records[place] for records in found if place < len(records)]
            for place in range(max(map(len, found), default=0))
        )
    )
