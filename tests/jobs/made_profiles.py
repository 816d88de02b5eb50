"""Profiles for tests, without measuring anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specbatch.jobs.profiles.store import (
    PROFILE_FORMAT,
    Circumstances,
    PositionRecord,
    Profile,
    StepRecord,
    TrialRecord,
)

HERE = Circumstances(
    target_sha256="a" * 64,
    draft_sha256="b" * 64,
    dtype="float32",
    device="cpu",
    device_name="A processor",
    num_threads=2,
    version="1.2.3",
)


def make_step(batch_size: int, draft_length: int, *, seconds: float, num_rounds: int = 16) -> StepRecord:
    """A cell whose rounds had all their rows."""
    return StepRecord(
        batch_size=batch_size,
        draft_length=draft_length,
        num_rounds=num_rounds,
        rows=batch_size,
        seconds=seconds,
        spread=0.02,
    )


def make_trial(lengths: Sequence[tuple[int, bool]] = ((100, True),), **fields: Any) -> TrialRecord:
    """A trial of a batch of 8 that went as the table says."""
    given = {
        "batch_size": 8,
        "speculation": "auto",
        "seconds": 10.0,
        "load_seconds": 0.0,
        "prefill_seconds": 0.0,
        "num_prompt_tokens": 100,
        "num_completion_tokens": 100,
        "overhead": 1.0,
        "speed_error": 0.0,
    }
    return TrialRecord(lengths=tuple(lengths), **{**given, **fields})


def make_profile(
    *,
    steps: Sequence[StepRecord] = (make_step(8, 0, seconds=0.1),),
    acceptance: Sequence[PositionRecord] = (),
    trial: TrialRecord | None = None,
    draft_bytes: int = 0,
    circumstances: Circumstances = HERE,
) -> Profile:
    """A profile with what a test is about."""
    return Profile(
        format=PROFILE_FORMAT,
        made_at="2026-01-02T03:04:05+00:00",
        circumstances=circumstances,
        target="target",
        draft="draft",
        draft_bytes=draft_bytes,
        inputs_sha256="c" * 64,
        generation={"max_new_tokens": 128},
        acceptance=tuple(acceptance),
        steps=tuple(steps),
        trial=trial or make_trial(),
    )
