"""Documents of ``--format json`` before a run that the code puts together by hand, declared for their JSON schemas.

Those that are a dataclass or a pydantic model as they stand are not here; ``schema_documents`` takes them directly.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from specbatch.jobs.profiles.forecast import Forecast
from specbatch.jobs.profiles.store import Profile
from specbatch.schemas import manifest as stored


class Setting(BaseModel):
    """One setting.

    Attributes:
        value: as in a job file.
        origin: ``default``, an option, an environment variable, ``--set``, a file, or ``argument``.
    """

    value: Any
    origin: str


class SettingsDocument(BaseModel):
    """Every setting by its path."""

    format: Literal["specbatch/settings/1"]
    settings: dict[str, Setting]


class PlannedFile(BaseModel):
    name: str
    path: str
    rows: int
    bytes: int


class PlannedShard(BaseModel):
    shard: int
    row_start: int
    row_stop: int


class ShortIdentity(BaseModel):
    """S names what decides the text and the files, P the plan too."""

    S: str
    P: str


class UsedProfile(BaseModel):
    """The profile that a job begins with.

    Attributes:
        batch_size: taken from it; null where the settings name one.
        notes: in which way the job differs from what was measured.
    """

    key: str
    made_at: str
    path: str
    batch_size: int | None
    notes: list[str]


class PlanDocument(BaseModel):
    """What a job would do, with everything resolved.

    Attributes:
        state: ``new``, ``complete``, or how far the job is.
        unwritable: why nothing can be written to the output, as a look from here finds; null where nothing speaks
            against it, for a complete job, and on S3.
        execution: how it would run here; free to change on resume.
        memory: the ledger with and without the draft; null where the memory cannot be seen from here.
        scan: lengths and errors of prompts, from a sample or from all; null under ``--scan none``.
        profile, forecast: null where this pair was not calibrated on this machine.
    """

    format: Literal["specbatch/plan-summary/1"]
    output: str
    state: str
    unwritable: str | None
    identity: ShortIdentity
    settings: dict[str, Setting]
    execution: dict[str, Any]
    memory: dict[str, Any] | None
    models: stored.Models
    inputs: list[PlannedFile]
    rows: int
    scan: dict[str, Any] | None
    profile: UsedProfile | None
    forecast: Forecast | None
    shards: list[PlannedShard]


class PreviewedRow(BaseModel):
    """One result.

    Attributes:
        prompt: the text as it went to the tokenizer; null where the row gave none.
    """

    row_id: int
    sample_index: int
    row_seed: int
    prompt: str | None
    status: Literal["ok", "error"]
    completion: str | None
    completion_token_ids: list[int] | None
    finish_reason: str
    error_code: str | None
    error_message: str | None
    num_prompt_tokens: int
    num_completion_tokens: int
    acceptance_rate: float | None
    mean_accepted: float | None


class PreviewDocument(BaseModel):
    """The first rows of a job, decoded."""

    format: Literal["specbatch/preview/1"]
    rows: list[PreviewedRow]
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    acceptance_rate: float | None
    mean_accepted: float | None
    note: str | None


class SpeedCell(BaseModel):
    """Speed at one batch size and one K."""

    batch_size: int
    draft_length: int
    tokens_per_second: float
    relative_error: float


class DraftVerdict(BaseModel):
    """Whether the draft is worth its memory.

    Attributes:
        first_agreement: share of first guesses that the target would have said; null without a draft.
        best: fastest with the draft. plain: fastest without.
        text: the same in words.
    """

    is_worth: bool
    first_agreement: float | None
    best: SpeedCell | None
    plain: SpeedCell
    text: list[str]


class CalibrationDocument(BaseModel):
    """What ``calibrate`` measured, and what follows from it.

    Attributes:
        acceptance: by draft position, the share of rounds that accept this far.
        scatter: of the times of equal rounds, as a share of their median.
    """

    format: Literal["specbatch/calibration/1"]
    key: str
    profile: Profile
    acceptance: list[float]
    table: list[SpeedCell]
    scatter: float
    verdict: DraftVerdict
    forecast: Forecast
    rows: int
    saved: list[str]
