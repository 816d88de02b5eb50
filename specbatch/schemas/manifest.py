"""``manifest.json``: the commit of a job and what was observed while it ran."""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

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
    """One model as it was used.

    ``files`` maps file name to hex SHA-256. ``quantization`` {method, config, applied, weights} says how its weights
    are quantized; None where they are dense.
    """

    name: str
    revision: str | None
    files: dict[str, str]
    parameters: int
    quantization: dict[str, Any] | None = None


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
    """``_specbatch/cancel-<epoch>.json``: the run of this epoch was asked to stop; by which process, and when.

    ``_specbatch/cancel-<token>.json`` says the same to the run that holds the lease of this name: one that has just
    begun has no epoch yet, and ``epoch`` is that of the run before.
    """

    format: str
    epoch: int
    token: str = ""
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


class Lengths(_Document):
    """How long prompts and completions of ok results were, in tokens, and how many were cut at their limit.

    Attributes:
        prompt: entry i counts the results whose length has i binary digits: 0, 1, 2-3, 4-7, 8-15, ...
        completion: the same of completions.
        num_cut: results that ended because they had as many tokens as they were allowed.
    """

    prompt: list[int]
    completion: list[int]
    num_cut: int


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
    """A pure function of the plan and the parts' bytes; two coordinators write the same.

    ``lengths`` is None where parts of an older version do not say them.
    """

    counts: Counts
    tokens: Tokens
    near_ties: int
    acceptance: Acceptance
    seconds: Seconds
    parts: list[PartRecord]
    lengths: Lengths | None = None


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


class TimelineBucket(TypedDict):
    """One of at most 200 pieces of a job's time; ``specbatch.jobs.output.timeline`` makes them.

    ``seconds`` is the bucket's end. The last three are missing in manifests of older versions.
    """

    seconds: float
    tokens_per_second: float
    tokens_per_round: float
    spec_share: float
    workers: NotRequired[int]
    acceptance: NotRequired[float | None]
    k_share: NotRequired[list[float] | None]


class Cost(_Document):
    """What the devices cost. One worker holds one GPU; on CPU the device is the machine, however many workers it has.

    Attributes:
        device_hours: from the start of each run to its end, also while models load or a device waits for work.
        price_per_device_hour: as given for the last run; None where no price was given.
        total: in the currency of the price; None unless every run had one.
    """

    device_hours: float
    price_per_device_hour: float | None
    total: float | None


class RunSummary(_Document):
    """One run as the report shows it; times are ISO 8601 in UTC."""

    epoch: int
    started_at: str
    ended_at: str
    host: str
    outcome: str
    wall_seconds: float
    total_seconds: float
    attempts: int
    deaths: int
    restarts: int
    preemptions: int


class EventRecord(_Document):
    """Something that a run said while it went on: a death, a suspicion, a quarantine. Seconds since its start."""

    epoch: int
    at_seconds: float
    text: str


class DraftGivenUp(_Document):
    """How many workers of the last run found that their draft does not pay; when the first did, since its start."""

    workers: int
    at_seconds: float


class Observed(_Document):
    """A snapshot of ``runs/`` when committing; not part of the commit.

    What stands behind ``runs`` has a default: manifests of older versions lack it.

    Attributes:
        timeline: of the whole job, in order.
        forecast: what was expected of the first run that had one; its keys are those of ``jobs/profiles/forecast.py``.
        cost: None where no run had workers.
        history: one for each run.
        events: the first of all runs, in their order.
        deaths: worker processes that crashed or hung; machines that were taken away are ``preemptions``.
        quarantined: places (host/device) that failed again and again and got no more work.
        store_retries: requests to the store that were made again, by workers and by the runs themselves.
    """

    throughput: Throughput
    k_share: dict[str, float]
    speedup: Speedup
    timeline: list[TimelineBucket]
    execution: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    memory: list[dict[str, Any]]
    attempts: int
    restarts: int
    preemptions: int = 0
    runs: int
    forecast: dict[str, Any] | None = None
    cost: Cost | None = None
    history: list[RunSummary] = Field(default_factory=list)
    events: list[EventRecord] = Field(default_factory=list)
    deaths: int = 0
    quarantined: list[str] = Field(default_factory=list)
    draft_given_up: DraftGivenUp | None = None
    store_retries: int = 0


class Manifest(_Document):
    """``manifest.json``. ``stored`` has the hex SHA-256 of ``job.json`` and the plan, which are created once too.

    ``spec`` is that of ``job.json``, so that a report can say how to run the job again; None in older manifests.
    """

    format: str
    job_id: str
    identity: Identity
    models: Models
    stored: dict[str, str] = Field(default_factory=dict)
    commit: Commit
    observed: Observed
    spec: dict[str, Any] | None = None
