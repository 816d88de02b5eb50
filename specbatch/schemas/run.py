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


class WorkerRecord(_Document):
    """One worker process of one run. ``seconds`` has the keys of ``PhaseSeconds``, ``memory`` of ``MemoryReport``."""

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
    execution: dict[str, Any]
    hardware: dict[str, Any]
    workers: list[WorkerRecord]


class ProgressDocument(_Document):
    """What ``status`` shows while a run is alive; overwritten every few seconds by the run that holds the output.

    Rows and tokens are of this run; ``parts_done`` and ``rows_in_parts`` of the job.
    """

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
