"""From a spec to a job that could start: models found and checked, inputs pinned, identity and plan computed.

Reads only; writes nothing and imports neither torch nor ray. ``plan`` and ``--dry-run`` end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from specbatch.jobs.destination import check_output as _check_output
from specbatch.jobs.destination import default_output as _default_output
from specbatch.jobs.identity import identity_fields, identity_sha256
from specbatch.jobs.machine import count_cores, count_cuda_devices, cuda_free_bytes
from specbatch.jobs.planning import cut_shards
from specbatch.jobs.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Identity, ModelRecord, Models
from specbatch.schemas.plan import InputFile, Segment, Shard, plan_digest
from specbatch.schemas.spec import DataType, JobSpec, Speculation
from specbatch.specdec.families import model_path
from specbatch.specdec.host import host_available_bytes
from specbatch.specdec.memory import EXPECTED_PROMPT_TOKENS, MemoryPlan, plan_memory
from specbatch.specdec.models import (
    TOKENIZER_FILES,
    ModelFolder,
    check_pair,
    context_length,
    default_draft,
    locate_model,
    resolve_dtype,
    tokenizer_sha256,
)


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run works; nothing here changes the text.

    Attributes:
        draft: None also where the pair does not fit in the memory.
        speculation: how K is chosen; ``off`` where there is no draft.
        batch_size: rows in flight of each worker; ``auto`` on a GPU, whose memory its worker knows best.
        num_threads: arithmetic threads of each worker on CPU.
        memory: the ledger of one worker; None where the free memory of the device cannot be seen from here.
    """

    device: str
    dtype: DataType
    draft: ModelFolder | None
    speculation: Speculation
    num_workers: int
    batch_size: int | Literal["auto"]
    num_threads: int
    memory: MemoryPlan | None
    memory_fraction: float


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """All that is known before anything is written or started.

    Attributes:
        columns: names of the input columns, in the order of every part.
        shards: the plan of a new output; one that has a plan keeps it.
        output: absolute local path, or a URI.
    """

    settings: Settings
    target: ModelFolder
    execution: Execution
    inputs: tuple[InputFile, ...]
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    identity: Identity
    output: str
    output_is_default: bool

    @property
    def spec(self) -> JobSpec:
        return self.settings.spec

    @property
    def models(self) -> Models:
        draft = self.execution.draft
        return Models(target=_model_record(self.target), draft=None if draft is None else _model_record(draft))

    def execution_document(self) -> dict[str, Any]:
        """The execution as it is recorded for a run."""
        execution = self.execution
        return {
            "speculation": execution.speculation,
            "draft": execution.draft.name if execution.draft is not None else "none",
            "workers": execution.num_workers,
            "batch_size": execution.batch_size,
            "device": execution.device,
            "dtype": execution.dtype,
            "num_threads": execution.num_threads,
            "memory_fraction": execution.memory_fraction,
            "single_writer": self.spec.execution.single_writer,
            "address": self.spec.execution.address,
        }


def prepare(settings: Settings) -> PreparedJob:
    """Check everything that can be checked without loading a model.

    Raises:
        SpecbatchError: what is wrong with inputs, models, or the resources asked for.
    """
    from specbatch.storage.inputs import check_columns, read_inputs

    spec = settings.spec
    dataset = read_inputs(spec.input.datasets)
    inputs, schema = dataset.files, dataset.schema
    check_columns(schema, spec.input.prompt_column, spec.input.id_column)
    shards = cut_shards(inputs, spec.execution.shard_rows, spec.input.limit)
    if not shards:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY, f"dataset {', '.join(spec.input.datasets)} has no rows; there is nothing to do"
        )
    target = locate_model(spec.models.target)
    draft, speculation = _resolve_draft(settings, target)
    execution = _resolve_execution(settings, target, draft, speculation)
    fields = identity_fields(
        spec,
        target_files=_weight_files(target),
        draft_files=None if draft is None else _weight_files(draft),
        tokenizer_sha256=tokenizer_sha256(target),
        dtype=execution.dtype,
        model_path=model_path(target.config),
        inputs=inputs,
    )
    identity_digest = identity_sha256(fields)
    identity = Identity(S=identity_digest, P=plan_digest(identity_digest, shards), fields=fields)
    output = spec.output
    if output is None:
        output = _default_output(spec.input.datasets[0], identity_digest, inputs)
    return PreparedJob(
        settings=settings,
        target=target,
        execution=execution,
        inputs=inputs,
        columns=tuple(schema.names),
        shards=shards,
        identity=identity,
        output=_check_output(output, spec.input.datasets),
        output_is_default=spec.output is None,
    )


def follow_inputs(shards: Sequence[Shard], inputs: Sequence[InputFile]) -> tuple[Shard, ...]:
    """A stored plan with the paths at which its files lie now; equal S says that they are the same files."""
    paths = {(file.footer_sha256, file.size_bytes): file.path for file in inputs}

    def follow(segment: Segment) -> Segment:
        return replace(segment, path=paths[segment.footer_sha256, segment.size_bytes])

    return tuple(replace(shard, segments=tuple(map(follow, shard.segments))) for shard in shards)


def _resolve_execution(
    settings: Settings, target: ModelFolder, draft: ModelFolder | None, speculation: Speculation
) -> Execution:
    spec = settings.spec
    device, num_workers = _resolve_device(spec)
    dtype = cast(DataType, resolve_dtype(spec.models.dtype, device, target))
    batch_size = spec.execution.batch_size
    memory: MemoryPlan | None = None
    free_bytes = cuda_free_bytes() if device == "cuda" else host_available_bytes() // num_workers
    if free_bytes is not None:
        memory = plan_memory(
            target,
            draft,
            dtype=dtype,
            device=device,
            available_bytes=free_bytes,
            memory_fraction=spec.execution.memory_fraction,
            batch_size=batch_size,
            speculation=speculation,
            row_tokens=min(EXPECTED_PROMPT_TOKENS + spec.generation.max_new_tokens, context_length(target)),
        )
        if not memory.uses_draft:
            draft = None
        if device == "cpu":
            batch_size = memory.batch_size
    return Execution(
        device=device,
        dtype=dtype,
        draft=draft,
        speculation=speculation,
        num_workers=num_workers,
        batch_size=batch_size,
        num_threads=max(count_cores() // num_workers, 1),
        memory=memory,
        memory_fraction=spec.execution.memory_fraction,
    )


def _resolve_device(spec: JobSpec) -> tuple[str, int]:
    """Device and number of workers: one per GPU, or one on CPU, unless told otherwise."""
    num_gpus = count_cuda_devices() if spec.execution.device != "cpu" else 0
    if spec.execution.device == "cuda" and num_gpus == 0:
        raise SpecbatchError(
            ErrorCode.JOB_NO_CAPACITY,
            "no CUDA device can be used here (none present or visible, or torch is a CPU build); use --device cpu",
        )
    device = "cuda" if num_gpus else "cpu"
    workers = spec.execution.workers
    if workers == "auto":
        return device, max(num_gpus, 1)
    if device == "cuda" and workers > num_gpus:
        raise SpecbatchError(
            ErrorCode.JOB_NO_CAPACITY, f"--workers {workers}: there are {num_gpus} CUDA devices; each worker needs one"
        )
    return device, workers


def _resolve_draft(settings: Settings, target: ModelFolder) -> tuple[ModelFolder | None, Speculation]:
    """The draft and how K is chosen. Without a draft, ``auto`` still has the suffix index; a fixed K insists on one."""
    spec = settings.spec
    if spec.execution.speculation == "off":
        return None, "off"
    name = spec.models.draft if spec.models.draft is not None else default_draft(spec.models.target)
    if name is None or name == "none":
        if spec.execution.speculation != "auto":
            origin = settings.origins["execution.speculation"]
            why = "--draft none was given" if name == "none" else f"no draft is known for {spec.models.target}"
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"execution.speculation is {spec.execution.speculation} (from {origin}), but {why}; "
                "name one with --draft, or use --speculation off",
            )
        return None, "auto"
    draft = locate_model(name)
    check_pair(target, draft)
    return draft, spec.execution.speculation


def _weight_files(folder: ModelFolder) -> dict[str, str]:
    """Digests of configuration and weights; the tokenizer's files have a digest of their own."""
    return {name: digest for name, digest in folder.files if name not in TOKENIZER_FILES}


def _model_record(folder: ModelFolder) -> ModelRecord:
    return ModelRecord(
        name=folder.name, revision=folder.revision, files=dict(folder.files), parameters=folder.parameters
    )
