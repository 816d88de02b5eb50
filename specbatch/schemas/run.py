"""``_specbatch/runs/<epoch>.json`` and ``_specbatch/progress.json``: what one run did and does. Not authoritative."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockRecord(_Document):
    """One ``RoundBlock`` with the second (since the run's start) at which the coordinator received it."""

    at_seconds: float
    num_spec_rounds: int
    num_plain_rounds: int
    spec_seconds: float
    plain_seconds: float
    num_spec_tokens: int
    num_plain_tokens: int
    num_mixed_rounds: int = 0
    mixed_seconds: float = 0.0
    num_mixed_tokens: int = 0
    draft_length_histogram: tuple[int, ...] = ()
    num_accepted_draft_tokens: int = 0


class WorkerRecord(_Document):
    """One worker process of one run. ``seconds`` has the keys of ``PhaseSeconds``, ``memory`` of ``MemoryReport``.

    ``draft_given_up_seconds`` is the second since the run's start at which the draft was seen to be gone; None while it
    is there, and where there was none.
    """

    worker: int
    host: str
    pid: int
    device: str
    dtype: str
    num_threads: int
    load_seconds: float
    active_seconds: float
    idle_seconds: float
    rows: int
    completion_tokens: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    draft_length_histogram: list[int]
    num_plain_steps: int
    seconds: dict[str, float]
    memory: dict[str, int]
    versions: dict[str, str]
    blocks: list[BlockRecord]
    draft_given_up_seconds: float | None = None


class RunRecord(_Document):
    """One run of the coordinator, written at its end (also when interrupted) and overwritten while it runs.

    Attributes:
        epoch: 1 for the first run on this output, then one more each time.
        outcome: ``running``, ``complete``, ``interrupted``, ``cancelled``, ``deadline`` or ``failed``.
        wall_seconds: first ready worker to last part written.
        total_seconds: start of the command to now.
        attempts: shards handed out in this run.
        restarts: workers started again after a death.
        parts_found: parts that already existed when the run began.
        preemptions: workers that were taken away; they are charged to no shard.
        probes: attempts that stored nothing and only narrowed down a row that kills workers.
        events: deaths, suspicions, quarantines: what was said, with the second since the start of the command.
        crashes: workers that crashed or hung, replaced or not.
        quarantined: places (host/device) that get no work any more.
        forecast: what was expected of the job before it began; None where nothing was.
        store_retries: requests to the store that workers and the run itself made again.
    """

    format: str
    epoch: int
    started_at: str
    host: str
    pid: int
    outcome: str
    wall_seconds: float
    total_seconds: float
    attempts: int
    restarts: int
    parts_found: int
    preemptions: int = 0
    probes: int = 0
    events: tuple[tuple[float, str], ...] = ()
    crashes: int = 0
    quarantined: tuple[str, ...] = ()
    forecast: dict[str, Any] | None = None
    store_retries: int = 0
    execution: dict[str, Any]
    hardware: dict[str, Any]
    workers: list[WorkerRecord]


class NoteRecord(_Document):
    """A thing that happened in a run, in words. ``at``: UTC, ISO 8601; ``level``: ``info``, ``warning``, ``error``."""

    at: str
    level: str
    message: str


class ProgressDocument(BaseModel):
    """What ``status`` shows while a run is alive; overwritten every few seconds by the run that holds the output.

    Rows and tokens are of this run; ``parts_done``, ``rows_in_parts`` and ``job_rows_done`` of the job. What came after
    the first version has a default, so that documents of older runs still read; fields of newer ones are passed over.

    Attributes:
        tokens_per_second: output tokens, all workers together, over the last seconds.
        eta_seconds: to the last row, from the tokens that remain; None while nothing is known to tell it by.
        workers: one entry per process: ``worker``, ``pid``, ``host``, ``rows_done``, ``rows_active``,
            ``completion_tokens``; since then ``state``, ``place``, ``shards``, ``tokens_per_second``, ``memory_bytes``,
            and ``writing_shard`` with ``writing_seconds`` while a part is being written.
        elapsed_seconds: since the start of the command.
        job_rows_done: rows in parts, and finished rows whose part is still to be written.
        tokens_per_second_overall: since the first worker was ready.
        mean_accepted: drafts accepted in a round that had any.
        k_shares: how often each K was used lately, of all turns of rows in rounds; 0 is a plain turn.
        errors_by_code: error rows of the whole job, by code.
        remaining_tokens: output tokens still to be decoded, estimated from the rows that are done.
        notes: the last of what is worth telling.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format: str
    epoch: int
    host: str
    pid: int
    updated_at: str
    state: str
    num_rows: int
    num_parts: int
    parts_done: int
    rows_in_parts: int
    rows_done: int
    num_errors: int
    completion_tokens: int
    tokens_per_second: float
    acceptance_rate: float | None
    mean_emitted: float | None
    eta_seconds: float | None
    workers: list[dict[str, Any]]
    output: str = ""
    started_at: str = ""
    elapsed_seconds: float | None = None
    job_rows_done: int | None = None
    tokens_per_second_overall: float | None = None
    mean_accepted: float | None = None
    k_shares: dict[str, float] = {}
    errors_by_code: dict[str, int] = {}
    remaining_tokens: int | None = None
    notes: tuple[NoteRecord, ...] = ()
