"""From a spec to a job that could start: models found and checked, inputs pinned, identity and plan computed.

Reads only; writes nothing and imports neither torch nor ray. ``plan`` and ``--dry-run`` end here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specbatch.jobs.output.identity import identity_fields, identity_sha256
from specbatch.jobs.output.jobdocument import JOB_KEY
from specbatch.jobs.planning.destination import check_output as _check_output
from specbatch.jobs.planning.destination import default_output as _default_output
from specbatch.jobs.planning.destination import with_partitions
from specbatch.jobs.planning.execution import Execution, resolve_draft, resolve_execution
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
from specbatch.jobs.spec.settings import Settings
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Identity, ModelRecord, Models
from specbatch.schemas.plan import InputFile, Segment, Shard, plan_digest
from specbatch.schemas.prompt import PassThrough, PromptSpec
from specbatch.schemas.rows import ResultForm
from specbatch.schemas.spec import ExecutionSpec, JobSpec
from specbatch.specdec.models.families import model_path
from specbatch.specdec.models.folders import TOKENIZER_FILES, ModelFolder, locate_model, tokenizer_sha256

if TYPE_CHECKING:
    from specbatch.storage.inputs import Inputs


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
            **({} if execution.num_ranks == 1 else {"tensor_parallel_size": execution.num_ranks}),
            "batch_size": execution.batch_size,
            "device": execution.device,
            "dtype": execution.dtype,
            "num_threads": execution.num_threads,
            "memory_fraction": execution.memory_fraction,
            "single_writer": self.spec.execution.single_writer,
            "address": self.spec.execution.address,
            **self._asked_of_nodes(),
            "price_per_device_hour": self.spec.execution.price_per_device_hour,
            "profile": None if execution.profile is None else execution.profile.document(),
        }

    def _asked_of_nodes(self) -> dict[str, Any]:
        """What workers ask of a cluster's nodes, as far as it was given."""
        names = ("gpus_per_worker", "cpus_per_worker", "memory_per_worker", "node_labels", "accelerator_type")
        given, default = self.spec.execution.model_dump(mode="json"), ExecutionSpec().model_dump(mode="json")
        return {name: given[name] for name in names if given[name] != default[name]}


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
    target = locate_model(spec.models.target, spec.models.quantization)
    chat = ChatTemplate.from_folder(target.path) if prompt.is_chat else None
    draft, speculation = resolve_draft(settings, target)
    execution = resolve_execution(settings, target, draft, speculation)
    fields = identity_fields(
        spec,
        target_files=_weight_files(target),
        draft_files=None if draft is None else _weight_files(draft),
        tokenizer_sha256=tokenizer_sha256(target),
        dtype=execution.dtype,
        model_path=_model_path(target, execution.num_ranks),
        quantization=None if target.quantization is None else target.quantization.document(),
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


def _weight_files(folder: ModelFolder) -> dict[str, str]:
    """Digests of configuration and weights; the tokenizer's files have a digest of their own."""
    return {name: digest for name, digest in folder.files if name not in TOKENIZER_FILES}


def _model_path(target: ModelFolder, num_ranks: int) -> str:
    """The path that decodes the target; ranks share unmodified modules only."""
    path = model_path(target.config, is_quantized=target.quantization is not None)
    return path if num_ranks == 1 else "generic"


def _model_record(folder: ModelFolder) -> ModelRecord:
    return ModelRecord(
        name=folder.name,
        revision=folder.revision,
        files=dict(folder.files),
        parameters=folder.parameters,
        quantization=None if folder.quantization is None else folder.quantization.document(),
    )
