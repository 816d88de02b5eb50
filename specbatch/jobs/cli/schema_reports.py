"""Documents of ``--format json`` of ``report`` that the code puts together by hand, declared for their JSON schemas.

Those that are a dataclass or a pydantic model as they stand are not here; ``schema_documents`` takes them directly.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from specbatch.jobs.cli.schema_before import ShortIdentity
from specbatch.jobs.reports.model import Verdict
from specbatch.schemas import manifest as stored


class ReportPaths(BaseModel):
    """Where results and manifest lie; ``manifest`` is null while there is none."""

    data: str
    manifest: str | None


class AmendmentsSummary(BaseModel):
    """Counts with the amendments applied."""

    number: int
    counts: stored.Counts


class SkippedFile(BaseModel):
    """An input file that was left out because it could not be read: its name, and the code that says why."""

    name: str
    code: str


class LogLineDocument(BaseModel):
    time: str
    level: str
    message: str


class UnfinishedDocument(BaseModel):
    """Why a job has no manifest, how far it came and what is left.

    Attributes:
        cause: in one clause.
        exit_codes: with which the command may have ended; empty where that is not known.
        epoch, outcome: of the last run; 0 and empty where none has begun.
        code, message: the error that ended it; null and empty where its log has none.
        rows_done, parts_done: those in parts. rows_in_flight: finished, and lost with the run.
        remaining_seconds: of a run that goes on; null where nothing is known of it. remaining_from: what that rests on.
        errors_by_code: of finished rows, those without a part too.
        error_rows: for each code the first ``row_id`` in the parts.
        log: the last warnings and errors.
    """

    standing: Literal["never begun", "running", "stopped", "failed", "lost", "not committed"]
    cause: str
    exit_codes: list[int]
    epoch: int
    outcome: str
    code: str | None
    message: str
    last_seen_at: str
    num_rows: int
    rows_done: int
    rows_in_flight: int
    num_rows_left: int
    num_parts: int
    parts_done: int
    remaining_seconds: float | None
    remaining_from: str
    errors_by_code: dict[str, int]
    error_rows: dict[str, list[int]]
    log: list[LogLineDocument]
    next_command: str


class ReportedOutput(stored.Commit, stored.Observed):
    """One job: what there is to say of it first, the sums of its parts, and what was observed while it ran.

    Attributes:
        command: that would run it again; null where the manifest is too old to know.
        amendments: only where there are any.
        unfinished: only of a job without a manifest; all figures are then of what is there so far.
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
