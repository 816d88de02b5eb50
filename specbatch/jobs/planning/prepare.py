"""From a spec to a job that could start: models found and checked, inputs pinned, identity and plan computed.

Reads only; writes nothing and imports neither torch nor ray. ``plan`` and ``--dry-run`` end here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from specbatch.jobs.output.identity import identity_fields, identity_sha256
from specbatch.jobs.output.jobdocument import JOB_KEY
from specbatch.jobs.planning.destination import check_output as _check_output
from specbatch.jobs.planning.destination import default_output as _default_output
from specbatch.jobs.planning.destination import with_partitions
from specbatch.jobs.planning.machine import count_cores, count_cuda_devices, cuda_free_bytes, device_name
from specbatch.jobs.planning.normalise import (
    Copy,
    dataset_fields,
    dataset_notes,
    make_copies,
    places,
    read_dataset,
    with_batch_settings,
    with_pinned_datasets,
)
from specbatch.jobs.planning.planning import cut_shards
from specbatch.jobs.profiles.store import circumstances_of
from specbatch.jobs.profiles.use import UsedProfile, use_profile
from specbatch.jobs.spec.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Identity, ModelRecord, Models
from specbatch.schemas.plan import InputFile, Segment, Shard, plan_digest
from specbatch.schemas.prompt import PassThrough, PromptSpec
from specbatch.schemas.rows import ResultForm
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

if TYPE_CHECKING:
    from specbatch.storage.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run works; nothing here changes the text.

    Attributes:
        draft: None also where the pair does not fit in the memory.
        speculation: how K is chosen; ``off`` where there is no draft.
        batch_size: rows in flight of each worker; ``auto`` on a GPU, whose memory its worker knows best.
        num_threads: arithmetic threads of each worker on CPU.
        memory: the ledger of one worker; None where the free memory of the device cannot be seen from here.
        profile: what ``calibrate`` measured of this pair on this machine, and what is taken from it.
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
    max_new_tokens: int
    price_per_device_hour: float | None = None
    profile: UsedProfile | None = None


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """All that is known before anything is written or started.

    Attributes:
        columns: names of the dataset's columns. pass_through: those of them that every part has.
        shards: the plan of a new output; one that has a plan keeps it.
        output: absolute local path, or a URI.
        copies: Parquet copies of the JSONL files.
        notes: what the user should know of the dataset, a line each.
        duplicates: where the file lies that marks duplicates; None where none are marked, and before the job begins.
    """

    settings: Settings
    target: ModelFolder
    execution: Execution
    inputs: tuple[InputFile, ...]
    columns: tuple[str, ...]
    pass_through: PassThrough
    shards: tuple[Shard, ...]
    identity: Identity
    output: str
    output_is_default: bool
    copies: tuple[Copy, ...] = ()
    notes: tuple[str, ...] = ()
    duplicates: str | None = None

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
            "price_per_device_hour": self.spec.execution.price_per_device_hour,
            "profile": None if execution.profile is None else execution.profile.document(),
        }


def prepare(settings: Settings, *, known_bad: Mapping[str, str] | None = None) -> PreparedJob:
    """Check everything that can be checked without loading a model.

    Args:
        known_bad: name -> code of the files that a job which goes on has left out.

    Raises:
        SpecbatchError: what is wrong with inputs, models, or the resources asked for.
    """
    from specbatch.workers.chat import ChatTemplate
    from specbatch.workers.rendering import make_renderer

    settings = with_pinned_datasets(settings)
    dataset = read_dataset(settings.spec.input, known_bad)
    settings = with_batch_settings(settings, dataset)
    spec, prompt = settings.spec, PromptSpec.of(settings.spec)
    _check_source_of_prompts(settings)
    # The columns of JSONL are known when it has its copies, and these have their place in the output.
    pass_through = _check_dataset(dataset, spec) if not dataset.sources else None
    target = locate_model(spec.models.target)
    chat = ChatTemplate.from_folder(target.path) if prompt.is_chat else None
    draft, speculation = _resolve_draft(settings, target)
    execution = _resolve_execution(settings, target, draft, speculation)
    fields = identity_fields(
        spec,
        target_files=_weight_files(target),
        draft_files=None if draft is None else _weight_files(draft),
        tokenizer_sha256=tokenizer_sha256(target),
        dtype=execution.dtype,
        model_path=model_path(target.config),
        inputs=dataset.files,
        chat_sha256=None if chat is None else chat.sha256,
    )
    fields |= dataset_fields(dataset, spec.input)
    identity_digest = identity_sha256(fields)
    output = spec.output
    if output is None:
        output = _default_output(spec.input.datasets[0], identity_digest, dataset.files)
    folder = _check_output(with_partitions(output, spec.results.partitions, ()), places(spec.input.datasets))
    dataset, copies, notes = make_copies(dataset, spec, folder)
    if pass_through is None:
        pass_through = _check_dataset(dataset, spec)
    if dataset.schema.names:
        make_renderer(prompt, target.path, dataset.schema.names)
    shards = cut_shards(dataset.files, spec.execution.shard_rows, spec.input.limit)
    with_partitions(output, spec.results.partitions, (*pass_through.new, *ResultForm.of(spec).columns))
    return PreparedJob(
        settings=settings,
        target=target,
        execution=execution,
        inputs=dataset.files,
        columns=tuple(dataset.schema.names),
        pass_through=pass_through,
        shards=shards,
        identity=Identity(S=identity_digest, P=plan_digest(identity_digest, shards), fields=fields),
        output=folder,
        output_is_default=spec.output is None,
        copies=copies,
        notes=(*dataset_notes(dataset), *notes),
    )


def _check_dataset(dataset: Inputs, spec: JobSpec) -> PassThrough:
    """Check columns and ids of a dataset; which columns pass through."""
    from specbatch.jobs.planning.unique_ids import check_unique_ids
    from specbatch.workers.prompt_columns import check_columns

    if not dataset.schema.names and not dataset.num_rows:
        return PassThrough(())  # nothing was found, and that is allowed: there are no columns to be looked for
    pass_through = check_columns(dataset.schema, spec, dataset.bookkeeping)
    if spec.generation.seed_by == "id":
        assert spec.input.id_column is not None, "check_columns refuses it"
        num_rows = min(dataset.num_rows, spec.input.limit or dataset.num_rows)
        check_unique_ids(dataset.files, num_rows, spec.input.id_column)
    return pass_through


def _check_source_of_prompts(settings: Settings) -> None:
    """Refuse a prompt column that was asked for and would not be looked at."""
    given = settings.spec.input
    origin = settings.origins["input.prompt_column"]
    other = "--template" if given.template is not None else "--messages-column"
    if origin in ("default", JOB_KEY) or (given.template is None and given.messages_column is None):
        return  # a stored job names all settings, whoever chose them
    raise SpecbatchError(
        ErrorCode.JOB_CONFIG,
        f"input.prompt_column is {given.prompt_column!r} (from {origin}), but with {other} prompts do not come from a "
        "prompt column; leave one of the two out",
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

    def plan(available_bytes: int, batch_size: int | Literal["auto"]) -> MemoryPlan:
        return plan_memory(
            target,
            draft,
            dtype=dtype,
            device=device,
            available_bytes=available_bytes,
            memory_fraction=spec.execution.memory_fraction,
            batch_size=batch_size,
            speculation=speculation,
            row_tokens=min(EXPECTED_PROMPT_TOKENS + spec.generation.max_new_tokens, context_length(target)),
        )

    loaded = draft
    if free_bytes is not None:
        memory = plan(free_bytes, batch_size)
        if not memory.uses_draft:
            loaded = None
        if device == "cpu":
            batch_size = memory.batch_size
    num_threads = max(count_cores() // num_workers, 1)
    profile = use_profile(
        spec.execution,
        circumstances_of(
            target, loaded, dtype=dtype, device=device, device_name=device_name(device), num_threads=num_threads
        ),
        speculation=speculation,
        memory=memory,
        is_stored=settings.origins["execution.profile"] == JOB_KEY,
    )
    if free_bytes is not None and profile is not None and profile.batch_size is not None:
        batch_size = profile.batch_size
        memory = plan(free_bytes, batch_size)
    return Execution(
        device=device,
        dtype=dtype,
        draft=loaded,
        speculation=speculation,
        num_workers=num_workers,
        batch_size=batch_size,
        num_threads=num_threads,
        memory=memory,
        memory_fraction=spec.execution.memory_fraction,
        max_new_tokens=spec.generation.max_new_tokens,
        price_per_device_hour=spec.execution.price_per_device_hour,
        profile=profile,
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
