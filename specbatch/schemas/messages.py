"""What crosses the border between coordinator and workers: frozen, picklable, small.

Descriptors go out, receipts come back; no prompt and no completion is ever in a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from specbatch.schemas.log_lines import LogSettings
from specbatch.schemas.plan import Shard
from specbatch.schemas.prompt import PassThrough, PromptSpec
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.stats import PartStats, PhaseSeconds, SpecCounters

if TYPE_CHECKING:  # the engine alone needs no pydantic
    from specbatch.schemas.spec import DataType, GenerationSpec, KvCacheDtype, OnLoadQuantization, Speculation


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything a worker needs to know for its whole life.

    Attributes:
        target_path: folder of the target model, readable on the worker's node, or the name of a bundled one.
        draft_path: the same of the draft model, or None.
        output: where parts go (local path or URI).
        plan: plan digest P.
        speculation: how K is chosen; ``off`` goes with no draft.
        batch_size: rows in flight; ``auto`` where only the worker can see its device's memory.
        num_threads: arithmetic threads on CPU.
        quantization: how the target's dense weights are quantized on loading; None leaves them as they are.
        kv_cache_dtype, bitwise: of ``ModelSpec``.
        prompt: how prompts are made of rows.
        pass_through: the input columns of every part; None takes all, in the order of each shard's own file.
        memory_fraction: share of its device's free memory that the engine may use; workers on one CPU divide theirs.
        device_share: share of its GPU that is this worker's; others hold the rest.
        single_writer: the store cannot create objects once only, and the user vouches that nobody else writes.
        form: of the parts; whether they have logprobs is the generation's to say.
        duplicates: the file that marks duplicates (local path or URI); None where none are marked.
        num_ranks: devices of its node that share the target; the worker is the first of so many processes.
        job, epoch: how lines of its log name the job and the run. log: what it writes to standard error.
    """

    worker: int
    output: str
    plan: str
    target_path: str
    draft_path: str | None
    dtype: DataType
    device: str
    speculation: Speculation
    batch_size: int | Literal["auto"]
    num_threads: int
    prompt: PromptSpec
    generation: GenerationSpec
    pass_through: PassThrough | None = None
    quantization: OnLoadQuantization | None = None
    kv_cache_dtype: KvCacheDtype = "auto"
    bitwise: bool = False
    memory_fraction: float = 0.9
    device_share: float = 1.0
    single_writer: bool = False
    form: ResultForm = field(default_factory=ResultForm)
    duplicates: str | None = None
    num_ranks: int = 1
    job: str = ""
    epoch: int = 0
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Resident bytes of one worker; both models are in memory together."""

    target_bytes: int
    draft_bytes: int
    target_kv_bytes: int
    draft_kv_bytes: int
    process_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has loaded its models and can take shards."""

    worker: int
    host: str
    pid: int
    device: str
    dtype: str
    num_threads: int
    load_seconds: float
    memory: MemoryReport
    versions: tuple[tuple[str, str], ...]
    note: str | None = None

    @property
    def place(self) -> str:
        """Where it runs, in words that outlive the process: a device that keeps failing is avoided by this name."""
        return f"{self.host}/{self.device}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A shard handed to a worker.

    Attributes:
        attempt: 1 for the first worker that gets the shard.
        probe: row ids [start, stop) of the shard: decode these alone and store nothing. It shows whether the row that
            kills workers is among them; a worker that has a probe has nothing else.
        poison: row ids that have killed workers: they become ``ROW_POISON`` rows without being decoded.
    """

    shard: Shard
    attempt: int
    probe: tuple[int, int] | None = None
    poison: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PartReceipt:
    """A shard's part exists. ``created`` is False when another attempt had written it first."""

    shard: int
    path: str
    num_rows: int
    num_bytes: int
    sha256: str
    token: str
    created: bool
    stats: PartStats


@dataclass(frozen=True, slots=True)
class RoundBlock:
    """Sums over a run of consecutive rounds: the raw material of throughput over time and of the speed-up.

    Plain rounds here are those drawn by the hash of the round number in a job that may speculate; spec rounds are all
    others, whatever K was chosen. Without speculation every round is plain and ``num_spec_rounds`` is 0. Mixed rounds
    are those in whose forward prompts were read too, and those in which a graph was captured; they count for throughput
    and are compared with nothing.

    Entry k of ``draft_length_histogram`` counts the rows that proposed k drafts in a round, entry 0 those that took
    part plainly; ``num_accepted_draft_tokens`` of these drafts were committed.
    """

    num_spec_rounds: int = 0
    num_plain_rounds: int = 0
    spec_seconds: float = 0.0
    plain_seconds: float = 0.0
    num_spec_tokens: int = 0
    num_plain_tokens: int = 0
    num_mixed_rounds: int = 0
    mixed_seconds: float = 0.0
    num_mixed_tokens: int = 0
    draft_length_histogram: tuple[int, ...] = ()
    num_accepted_draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """Running totals of one worker since it started; also its heartbeat.

    ``num_rows_done`` counts rows all of whose samples are finished, whether or not their part is written yet;
    ``num_errors`` and ``num_rows_active`` count samples. ``beat_age_seconds`` is the time since the decode loop last
    came round (0 while it waits for work): a loop that hangs in native code still answers polls, and shows here. So
    does a part that has been under way for longer than any store may take.

    Attributes:
        errors_by_code: pairs (error code, samples), sorted by code.
        num_storage_retries: requests to a store that the process made again.
        writing_shard: the shard whose part is being written, for ``writing_seconds`` so far; None where none is.
    """

    num_rows_done: int = 0
    num_completion_tokens: int = 0
    num_rows_active: int = 0
    counters: SpecCounters = field(default_factory=SpecCounters)
    seconds: PhaseSeconds = field(default_factory=PhaseSeconds)
    idle_seconds: float = 0.0
    num_errors: int = 0
    beat_age_seconds: float = 0.0
    median_step_seconds: float = 0.0
    errors_by_code: tuple[tuple[str, int], ...] = ()
    writing_shard: int | None = None
    writing_seconds: float = 0.0
    num_storage_retries: int = 0


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """A worker could not finish a shard; the worker itself goes on.

    ``num_rows_done``: rows of it that the worker's totals count; none where it could not be read, or was a probe.
    """

    shard: int
    attempt: int
    code: str
    message: str
    num_rows_done: int = 0


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """The rows [row_start, row_stop) of a shard were decoded without killing the worker; nothing was stored."""

    shard: int
    row_start: int
    row_stop: int


@dataclass(frozen=True, slots=True)
class WorkerPoll:
    """All that happened in a worker since the last poll."""

    receipts: tuple[PartReceipt, ...]
    failures: tuple[ShardFailed, ...]
    blocks: tuple[RoundBlock, ...]
    progress: Progress
    memory: MemoryReport
    probes: tuple[ProbeDone, ...] = ()
