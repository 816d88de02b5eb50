"""From a spec to a job that could start: models found and checked, inputs pinned, identity and plan computed.

Reads only; writes nothing and imports neither torch nor ray. ``plan`` and ``--dry-run`` end here.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from specbatch.jobs.identity import identity_fields, identity_sha256
from specbatch.jobs.machine import count_cores, count_cuda_devices
from specbatch.jobs.planning import cut_shards
from specbatch.jobs.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Identity, ModelRecord, Models
from specbatch.schemas.plan import InputFile, Segment, Shard, plan_digest
from specbatch.schemas.spec import DataType, JobSpec, Speculation
from specbatch.specdec.models import (
    TOKENIZER_FILES,
    ModelFolder,
    check_pair,
    default_draft,
    locate_model,
    resolve_dtype,
    tokenizer_sha256,
)

AUTO_BATCH_SIZE = {"cpu": 16, "cuda": 64}


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run works; nothing here changes the text.

    Attributes:
        speculation: how K is chosen; ``off`` where there is no draft.
        num_threads: arithmetic threads of each worker on CPU.
    """

    device: str
    dtype: DataType
    draft: ModelFolder | None
    speculation: Speculation
    num_workers: int
    batch_size: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """All that is known before anything is written or started.

    Attributes:
        columns: names of the input columns, in the order of every part.
        shards: the plan of a new output; one that has a plan keeps it.
        output: absolute local path.
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
        }


def prepare(settings: Settings) -> PreparedJob:
    """Check everything that can be checked without loading a model.

    Raises:
        SpecbatchError: what is wrong with inputs, models, or the resources asked for.
    """
    from specbatch.storage.inputs import check_columns, discover, read_schema

    spec = settings.spec
    inputs = discover(spec.input.datasets)
    schema = read_schema(inputs)
    check_columns(schema, spec.input.prompt_column, spec.input.id_column)
    shards = cut_shards(inputs, spec.execution.shard_rows, spec.input.limit)
    if not shards:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY, f"dataset {', '.join(spec.input.datasets)} has no rows; there is nothing to do"
        )
    target = locate_model(spec.models.target)
    execution = _resolve_execution(settings, target)
    fields = identity_fields(
        spec,
        target_files={name: digest for name, digest in target.files if name not in TOKENIZER_FILES},
        tokenizer_sha256=tokenizer_sha256(target),
        dtype=execution.dtype,
        inputs=inputs,
    )
    identity_digest = identity_sha256(fields)
    identity = Identity(S=identity_digest, P=plan_digest(identity_digest, shards), fields=fields)
    output = spec.output if spec.output is not None else _default_output(spec.input.datasets[0], identity_digest)
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


def _resolve_execution(settings: Settings, target: ModelFolder) -> Execution:
    spec = settings.spec
    device, num_workers = _resolve_device(spec)
    draft, speculation = _resolve_draft(settings, target)
    batch_size = spec.execution.batch_size
    return Execution(
        device=device,
        dtype=cast(DataType, resolve_dtype(spec.models.dtype, device, target)),
        draft=draft,
        speculation=speculation,
        num_workers=num_workers,
        batch_size=AUTO_BATCH_SIZE[device] if batch_size == "auto" else batch_size,
        num_threads=max(count_cores() // num_workers, 1),
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
    """The draft and how K is chosen. ``auto`` decodes plainly where there is no draft; a fixed K insists on one."""
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
        return None, "off"
    draft = locate_model(name)
    check_pair(target, draft)
    return draft, spec.execution.speculation


def _default_output(dataset: str, identity_digest: str) -> str:
    """``<stem>-<S[:8]>`` beside a file or a folder; in the fixed folder of a glob."""
    path = Path(dataset).expanduser().absolute()
    suffix = f"-{identity_digest[:8]}"
    if glob.has_magic(dataset) and not path.exists():
        fixed = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        return str(fixed / f"{fixed.name or 'dataset'}{suffix}")
    if path.is_dir():
        path = path.resolve()
        return str(path.parent / f"{path.name or 'dataset'}{suffix}")
    return str(path.parent / f"{path.stem}{suffix}")


def _check_output(output: str, datasets: Sequence[str]) -> str:
    """The output as an absolute path that is neither a dataset nor a file."""
    from specbatch.storage.store import local_path

    path = local_path(output, "output")
    for dataset in datasets:
        if local_path(dataset, "dataset").resolve() == path.resolve():
            raise SpecbatchError(
                ErrorCode.JOB_URI_OVERLAP, f"output and dataset are both {path}; give --output a folder of its own"
            )
    if path.exists() and not path.is_dir():
        raise SpecbatchError(ErrorCode.JOB_PREFIX_TAKEN, f"output {path} is a file; choose a new folder with --output")
    return str(path)


def _model_record(folder: ModelFolder) -> ModelRecord:
    return ModelRecord(
        name=folder.name, revision=folder.revision, files=dict(folder.files), parameters=folder.parameters
    )
