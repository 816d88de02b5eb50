"""``_specbatch/submissions/<n>.json`` and ``<n>-end.json``: that a job was handed to Ray Jobs, and how that ended."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

SUBMISSION_FORMAT = "specbatch/submission/1"
SUBMISSION_END_FORMAT = "specbatch/submission-end/1"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SubmissionDocument(_Document):
    """A job handed to Ray Jobs. It holds no secret: credentials are those of the cluster's nodes.

    Attributes:
        number: from 1, in its output.
        submission_id: the name of the job in Ray Jobs; the same for one number, so that a repeated request starts
            nothing twice.
        epoch_before: the last run that had begun when it was submitted; 0 where none had.
        version: of specbatch, whose code goes along.
        spec: all settings, as they were resolved where it was submitted.
    """

    format: str
    number: int
    submission_id: str
    address: str
    submitted_at: str
    host: str
    version: str
    epoch_before: int
    spec: dict[str, Any]


class SubmissionEnd(_Document):
    """How the driver of a submission ended: its exit code, and the error where there was one."""

    format: str
    number: int
    exit_code: int
    code: str | None
    message: str
    host: str
    ended_at: str
