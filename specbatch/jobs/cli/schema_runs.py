"""Documents of runs and of ``doctor`` that the code puts together by hand, declared for their JSON schemas.

Those that are a dataclass or a pydantic model as they stand are not here; ``schema_documents`` takes them directly.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from specbatch.schemas import manifest as stored
from specbatch.schemas.run import ProgressDocument


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
    """How far the run is; at most one every two seconds, and one for the first row and every change of state."""

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
