"""The documents of ``--format json`` that the code puts together by hand, declared for their JSON schemas.

Those that are a dataclass or a pydantic model as they stand are not here; ``schema_documents`` takes them directly.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from specbatch.jobs.profiles.forecast import Forecast
from specbatch.jobs.profiles.store import Profile
from specbatch.jobs.reports.model import Verdict
from specbatch.schemas import manifest as stored
from specbatch.schemas.run import ProgressDocument


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
        execution: how it would run here; free to change on resume.
        memory: the ledger with and without the draft; null where the memory cannot be seen from here.
        scan: lengths and errors of prompts, from a sample or from all; null under ``--scan none``.
        profile, forecast: null where this pair was not calibrated on this machine.
    """

    format: Literal["specbatch/plan-summary/1"]
    output: str
    state: str
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


class OutcomeDocument(BaseModel):
    """How a run ended.

    Attributes:
        data: glob of the parts.
        was_complete: an earlier run had finished the job; this one did nothing.
        job_id, manifest, counts, throughput: null where the run was interrupted.
    """

    output: str
    data: str
    exit_code: int
    parts_done: int
    parts: int
    was_complete: bool
    job_id: str | None
    manifest: str | None
    counts: stored.Counts | None
    throughput: stored.Throughput | None


class ProgressEvent(ProgressDocument):
    """How far the run is; at most one every two seconds, and one for every change of state."""

    event: Literal["progress"]
    time: str


class NoteEvent(BaseModel):
    """A line for the user."""

    event: Literal["note"]
    time: str
    message: str


class EndEvent(OutcomeDocument):
    """The last line."""

    event: Literal["end"]
    time: str


class DoctorFinding(BaseModel):
    """One thing that was looked at.

    Attributes:
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    level: Literal["ok", "warn", "fail"]
    detail: str
    advice: str


class DoctorDocument(BaseModel):
    """What ``doctor`` found."""

    format: Literal["specbatch/doctor/1"]
    fit: bool
    findings: list[DoctorFinding]


class ReportPaths(BaseModel):
    data: str
    manifest: str


class AmendmentsSummary(BaseModel):
    """Counts with the amendments applied."""

    number: int
    counts: stored.Counts


class SkippedFile(BaseModel):
    """An input file that was left out because it could not be read: its name, and the code that says why."""

    name: str
    code: str


class ReportedOutput(stored.Commit, stored.Observed):
    """One job: what there is to say of it first, the sums of its parts, and what was observed while it ran.

    Attributes:
        command: that would run it again; null where the manifest is too old to know.
        amendments: only where there are any.
    """

    output: str
    job_id: str
    verdict: Verdict
    identity: ShortIdentity
    models: stored.Models
    num_parts: int
    parts_bytes: int
    error_rate: float
    cost_per_million_tokens: float | None
    skipped_files: list[SkippedFile]
    command: str | None
    paths: ReportPaths


class FigureChange(BaseModel):
    """One figure of one job against the base.

    Attributes:
        change: a share of the base, or a difference.
        noise: half width of the 95 % interval of the change.
    """

    output: str
    figure: str
    is_relative: bool
    base: float | None
    value: float | None
    change: float | None
    noise: float | None
    standing: Literal["worse", "better", "same", "noise", "unknown", "not comparable"]


class FigureThreshold(BaseModel):
    """From which change for the worse on a figure is flagged."""

    figure: str
    threshold: float
    rule: str


class ComparisonDocument(BaseModel):
    """Several jobs against the first, the base.

    Attributes:
        regressions: jobs with some figure that is worse.
        comparable: for each job whether models, prompts and sampling are those of the base.
    """

    base: str
    tokens_per_second_ratios: list[float | None]
    fastest: str
    regressions: list[str]
    same_text_by_contract: bool
    identity_differences: list[str]
    caveats: list[str]
    comparable: list[bool]
    changes: list[FigureChange]
    thresholds: list[FigureThreshold]


class ReportDocument(BaseModel):
    """One job or several.

    Attributes:
        comparison: null for one job.
    """

    format: Literal["specbatch/report/1"]
    outputs: list[ReportedOutput]
    comparison: ComparisonDocument | None
