"""``manifest.json``: the commit of a job and what was observed while it ran."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MANIFEST_FORMAT = "specbatch/manifest/1"
JOB_FORMAT = "specbatch/job/1"
RUN_FORMAT = "specbatch/run/1"
PART_FORMAT = "specbatch/part/1"
CANCEL_FORMAT = "specbatch/cancel/1"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Identity(_Document):
    """S and P, and the fields that S is the digest of (canonical JSON, SHA-256)."""

    S: str
    P: str
    fields: dict[str, Any]


class ModelRecord(_Document):
    """One model as it was used. ``files`` maps file name to hex SHA-256."""

    name: str
    revision: str | None
    files: dict[str, str]
    parameters: int


class Models(_Document):
    target: ModelRecord
    draft: ModelRecord | None


class JobDocument(_Document):
    """``_specbatch/job.json``: what this output is, written once. ``spec`` is the first command's, without secrets."""

    format: str
    job_id: str
    created_at: str
    identity: Identity
    models: Models
    spec: dict[str, Any]


class CancelDocument(_Document):
    """``_specbatch/cancel-<epoch>.json``: the run of this epoch was asked to stop; by which process, and when."""

    format: str
    epoch: int
    requested_at: str
    host: str
    pid: int


class Counts(_Document):
    rows: int
    results: int
    ok: int
    errors: int
    errors_by_code: dict[str, int]


class Tokens(_Document):
    prompt: int
    completion: int
    draft: int
    accepted: int


class Acceptance(_Document):
    """Derived from the summed histograms.

    Attributes:
        rate: accepted / draft tokens; None where nothing was drafted.
        mean_accepted: accepted drafts per spec step.
        mean_emitted: tokens per round and row, spec and plain steps together, the bonus included.
        histogram: entry i counts the spec steps that accepted i drafts.
        by_position: entry j is accepted / proposed at draft position j.
    """

    rate: float | None
    mean_accepted: float | None
    mean_emitted: float | None
    histogram: list[int]
    by_position: list[float]


class Seconds(_Document):
    propose: float
    score: float
    accept: float
    host: float
    prefill: float
    load: float
    write: float


class PartRecord(_Document):
    path: str
    rows: int
    bytes: int
    sha256: str


class Commit(_Document):
    """A pure function of the plan and the parts' bytes; two coordinators write the same."""

    counts: Counts
    tokens: Tokens
    near_ties: int
    acceptance: Acceptance
    seconds: Seconds
    parts: list[PartRecord]


class Throughput(_Document):
    """Over all runs of the job; seconds are from the first ready worker to the last part of each run."""

    wall_seconds: float
    total_seconds: float
    output_tokens_per_second: float
    rows_per_second: float
    per_worker: list[dict[str, Any]]
    idle_share: float


class Speedup(_Document):
    """Measured in the job itself: spec rounds against plain rounds drawn by a hash of the round number.

    ``ratio`` is None with the reason in ``note`` where there was nothing to compare; ``low`` and ``high`` bound a 95 %
    block-bootstrap interval.
    """

    baseline: str
    ratio: float | None
    low: float | None
    high: float | None
    num_plain_rounds: int
    num_spec_rounds: int
    note: str | None


class Observed(_Document):
    """A snapshot of ``runs/`` when committing; not part of the commit."""

    throughput: Throughput
    k_share: dict[str, float]
    speedup: Speedup
    timeline: list[dict[str, float]]
    execution: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    memory: list[dict[str, Any]]
    attempts: int
    restarts: int
    preemptions: int = 0
    runs: int


class Manifest(_Document):
    """``manifest.json``. ``stored`` has the hex SHA-256 of ``job.json`` and the plan, which are created once too."""

    format: str
    job_id: str
    identity: Identity
    models: Models
    stored: dict[str, str] = Field(default_factory=dict)
    commit: Commit
    observed: Observed
