"""The job spec: everything a user can set, checked, frozen, with unknown keys refused.

Each section says whether it belongs to the *identity* of a job (it decides the text or the files) or to its
*execution* (free to change when a job is resumed).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from specbatch.schemas.sampling import (
    MAX_BIASED_TOKENS,
    MAX_DRAFT_LENGTH,
    MAX_NEW_TOKENS_LIMIT,
    MAX_NUM_SAMPLES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SamplingParams,
)
from specbatch.schemas.units import parse_duration, parse_size

MAX_TEMPLATE_CHARACTERS = 1 << 20

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,251}[A-Za-z0-9])?")

DataType = Literal["auto", "float32", "bfloat16", "float16", "float64"]
OnLoadQuantization = Literal["torchao-int8", "torchao-float8", "bitsandbytes-nf4"]
"""Names of ``specdec.models.quantization.ON_LOAD``; a test holds both equal."""
KvCacheDtype = Literal["auto", "fp8"]
Device = Literal["auto", "cpu", "cuda"]
DraftLength = Annotated[int, Field(ge=1, le=MAX_DRAFT_LENGTH)]
Speculation = Literal["auto", "off"] | DraftLength
"""``auto`` chooses K by measurement, a number fixes it, ``off`` decodes plainly."""
Coupling = Literal["seed", "distribution"]
"""``seed``: the text does not depend on draft and K. ``distribution``: only its law does not."""


def _parse_bias(value: Any) -> Any:
    """``"ID:BIAS"`` as a pair of numbers; whatever is something else is left to the types."""
    if isinstance(value, str):
        token, separator, bias = value.partition(":")
        try:
            return (int(token), float(bias)) if separator else value
        except ValueError:
            return value
    return value


TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[
    tuple[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(strict=False), BeforeValidator(_parse_bias)
]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _is_pair(value: str) -> str:
    left, separator, right = value.partition("=")
    if not (separator and left.strip() and right.strip()):
        raise ValueError("must be written as NAME=VALUE")
    return value


Pair = Annotated[str, AfterValidator(_is_pair)]
"""``NAME=VALUE``."""


class InputSpec(_Section):
    """Identity: which rows, how a prompt is made of each, and which of their columns pass through.

    A prompt comes from ``prompt_column``; from ``messages_column``, chats that the model's template renders; or from
    ``template``, Jinja over the columns. ``system`` stands before it as a message of its own. ``rename`` holds
    ``OLD=NEW`` names of columns; ``keep_columns`` None passes all through. Under ``row_params`` columns named like
    sampling settings override them row by row.
    """

    datasets: Annotated[tuple[str, ...], Field(strict=False)] = ()
    prompt_column: str = "prompt"
    messages_column: str | None = None
    template: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)] | None = None
    system: Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)] | None = None
    row_params: bool = False
    truncate_prompt: Literal["error", "left", "right"] = "error"
    id_column: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    keep_columns: Annotated[tuple[str, ...], Field(strict=False)] | None = None
    rename: Annotated[tuple[Pair, ...], Field(strict=False)] = ()
    dedupe: Literal["off", "mark"] = "off"
    allow_empty: bool = False
    on_bad_file: Literal["fail", "quarantine"] = "fail"

    @field_validator("template")
    @classmethod
    def _one_source_of_prompts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("messages_column") is not None:
            raise ValueError("must be left out where messages_column is given: prompts come from one of them")
        return value


class ResultsSpec(_Section):
    """Identity: the form of the parts, without ``partitions``: those are folders ``KEY=VALUE`` below the output.

    ``prefix`` stands before the name of every column that is added; ``row_group_rows`` None leaves it to the writer.
    """

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    row_group_rows: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    partitions: Annotated[tuple[Pair, ...], Field(strict=False)] = ()


class ModelSpec(_Section):
    """Identity: target, dtype, quantization, devices. Execution: draft (but under ``distribution``).

    ``draft`` None means: the bundled draft for a bundled target, no draft otherwise. ``"none"`` means no draft.
    ``quantization`` is what is done to the target's dense weights on loading; None leaves them as they are. The target
    is divided among ``tensor_parallel_size`` devices of one node: sums are then split among them, so that a near tie
    may fall otherwise than with another number. ``kv_cache_dtype`` is what keys and values are kept in, ``bitwise``
    computes every token with the same bits whatever is computed beside it.
    """

    target: str = "code-pair/target"
    draft: str | None = None
    dtype: DataType = "auto"
    quantization: OnLoadQuantization | None = None
    kv_cache_dtype: KvCacheDtype = "auto"
    bitwise: bool = False
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] = 1


class GenerationSpec(_Section):
    """Identity: sampling and termination. ``SamplingParams`` says what each means; it has the rules between them.

    ``logprobs`` adds a column of that name; ``num_samples`` results are made of every row. Seeds of rows are made from
    their position, or, by ``seed_by``, from their id, so that the text survives another order of the rows.
    """

    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS_LIMIT)] = 128
    min_new_tokens: Annotated[int, Field(ge=0, le=MAX_NEW_TOKENS_LIMIT)] = 0
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[tuple[Bias, ...], Field(strict=False, max_length=MAX_BIASED_TOKENS)] = ()
    stop: Annotated[tuple[StopText, ...], Field(strict=False, max_length=MAX_STOP_STRINGS)] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(strict=False, max_length=MAX_STOP_TOKEN_IDS)] = ()
    logprobs: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    num_samples: Annotated[int, Field(ge=1, le=MAX_NUM_SAMPLES)] = 1
    seed_by: Literal["row", "id"] = "row"
    coupling: Coupling = "seed"

    @field_validator("temperature")
    @classmethod
    def _temperature_is_usable(cls, value: float) -> float:
        if value != 0 and value < 0.01:
            raise ValueError("must be 0, or from 0.01 to 100")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _one_bias_per_token(cls, value: tuple[Bias, ...]) -> tuple[Bias, ...]:
        if len({token for token, _ in value}) < len(value):
            raise ValueError("must be one bias per token id")
        return tuple(sorted(value))  # the order decides nothing, so that it must not decide the identity

    @field_validator("num_samples")
    @classmethod
    def _samples_differ(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("temperature") == 0:
            raise ValueError("must be 1 at temperature 0, where all samples are equal")
        return value

    def sampling_params(self, seed: int) -> SamplingParams:
        """The sampling of one sample with its own seed.

        Raises:
            SpecbatchError: JOB_CONFIG where two settings contradict each other.
        """
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=seed,
            ignore_eos=self.ignore_eos,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            logprobs=self.logprobs,
        )


def _is_size(value: str) -> str:
    parse_size(value)
    return value


def _is_label(value: str) -> str:
    key, separator, wanted = value.partition("=")
    if not (separator and _LABEL.fullmatch(key) and _LABEL.fullmatch(wanted.removeprefix("!"))):
        raise ValueError("must be written as KEY=VALUE, or KEY=!VALUE for every node but those")
    return value


Size = Annotated[str, AfterValidator(_is_size)]
"""``24GiB``."""
Label = Annotated[str, AfterValidator(_is_label)]
"""``KEY=VALUE`` of Ray's nodes, or ``KEY=!VALUE``."""


class ExecutionSpec(_Section):
    """Execution: how fast, on what; free to change on resume.

    ``deadline`` is counted from the start of the run; ``single_writer`` gives up creating objects once only, for
    stores that cannot. ``profile`` names what ``calibrate`` measured: a file, ``auto`` for the one of this pair on this
    machine where there is one, or ``none``.

    ``address`` is a running Ray cluster instead of one of our own: its head, or its Ray Jobs endpoint (``http://``).
    Every worker asks for ``gpus_per_worker`` (a share of one GPU, on CUDA), ``cpus_per_worker`` and
    ``memory_per_worker`` (nothing where None) on a node with all ``node_labels`` and the ``accelerator_type``. The
    driver that Ray Jobs starts asks for ``entrypoint_num_cpus`` and ``entrypoint_memory``. ``wait`` False returns as
    soon as Ray Jobs has the job.

    ``logical_date`` is the night that a run is for, read in ``timezone``; ``{date}`` and ``{hour}`` in the places of a
    job come from it.
    """

    speculation: Speculation = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    device: Device = "auto"
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    shard_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    row_errors_ok: bool = False
    deadline: str | None = None
    single_writer: bool = False
    address: Annotated[str, Field(min_length=1)] | None = None
    gpus_per_worker: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    cpus_per_worker: Annotated[int, Field(ge=1, le=4096)] | None = None
    memory_per_worker: Size | None = None
    node_labels: Annotated[tuple[Label, ...], Field(strict=False)] = ()
    accelerator_type: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    entrypoint_num_cpus: Annotated[float, Field(ge=0, le=4096)] = 0.0
    entrypoint_memory: Size | None = None
    wait: bool = True
    price_per_device_hour: Annotated[float, Field(ge=0, le=1e6)] | None = None
    profile: Annotated[str, Field(min_length=1)] = "auto"
    logical_date: Annotated[str, Field(min_length=1)] | None = None
    timezone: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("address")
    @classmethod
    def _own_is_none(cls, value: str | None) -> str | None:
        return None if value == "local" else value  # Ray's word for one of its own

    @field_validator("deadline")
    @classmethod
    def _deadline_is_a_duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value


class JobSpec(_Section):
    """One job. ``output`` None means ``<stem>-<S[:8]>/`` beside the dataset."""

    input: InputSpec = Field(default_factory=InputSpec)
    results: ResultsSpec = Field(default_factory=ResultsSpec)
    models: ModelSpec = Field(default_factory=ModelSpec)
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    execution: ExecutionSpec = Field(default_factory=ExecutionSpec)
    output: str | None = None
