"""The job spec: everything a user can set, checked, frozen, with unknown keys refused.

Each section says whether it belongs to the *identity* of a job (it decides the text or the files) or to its
*execution* (free to change when a job is resumed).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from specbatch.schemas.sampling import MAX_NEW_TOKENS_LIMIT, MAX_STOP_TOKEN_IDS, SamplingParams

MAX_DRAFT_LENGTH = 16

DataType = Literal["auto", "float32", "bfloat16", "float16", "float64"]
Device = Literal["auto", "cpu", "cuda"]
DraftLength = Annotated[int, Field(ge=1, le=MAX_DRAFT_LENGTH)]
Speculation = Literal["auto", "off"] | DraftLength
"""``auto`` chooses K by measurement, a number fixes it, ``off`` decodes plainly."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class InputSpec(_Section):
    """Identity: which rows, and which column holds the prompt."""

    datasets: Annotated[tuple[str, ...], Field(strict=False)] = ()
    prompt_column: str = "prompt"
    id_column: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None


class ModelSpec(_Section):
    """Identity: target, dtype. Execution: draft (the text does not depend on it).

    ``draft`` None means: the bundled draft for a bundled target, no draft otherwise. ``"none"`` means no draft.
    """

    target: str = "code-pair/target"
    draft: str | None = None
    dtype: DataType = "auto"


class GenerationSpec(_Section):
    """Identity: sampling and termination."""

    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS_LIMIT)] = 128
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop_token_ids: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, max_length=MAX_STOP_TOKEN_IDS)
    ] = ()
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @field_validator("temperature")
    @classmethod
    def _temperature_is_usable(cls, value: float) -> float:
        if value != 0 and value < 0.01:
            raise ValueError("must be 0, or from 0.01 to 100")
        return value

    def sampling_params(self, seed: int) -> SamplingParams:
        """The sampling of one row with its own seed."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
            ignore_eos=self.ignore_eos,
            stop_token_ids=self.stop_token_ids,
        )


class ExecutionSpec(_Section):
    """Execution: how fast, on what; free to change on resume."""

    speculation: Speculation = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    device: Device = "auto"
    shard_rows: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    row_errors_ok: bool = False


class JobSpec(_Section):
    """One job. ``output`` None means ``<stem>-<S[:8]>/`` beside the dataset."""

    input: InputSpec = Field(default_factory=InputSpec)
    models: ModelSpec = Field(default_factory=ModelSpec)
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    execution: ExecutionSpec = Field(default_factory=ExecutionSpec)
    output: str | None = None
