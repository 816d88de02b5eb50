"""``preview``: the first rows of a job, decoded in this process and shown, before a night is spent on all of them.

No Ray, no parts, nothing is written. The rows are prepared and decoded by the code of the workers, under the seeds that
the job would use, so that a job gives the same completions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.execution_checks import refuse_ranks
from specbatch.jobs.planning.sample import choose_segments
from specbatch.schemas.stats import SpecCounters

if TYPE_CHECKING:
    from specbatch.jobs.planning.prepare import PreparedJob
    from specbatch.schemas.messages import WorkerConfig
    from specbatch.schemas.rows import RowResult
    from specbatch.workers.decoding import DecodingEngine
    from specbatch.workers.prompts import PreparedRow

PREVIEW_FORMAT = "specbatch/preview/1"
DEFAULT_PREVIEW_ROWS = 5
_MOST_SHOWN = 3000
_MOST_SHOWN_BRIEFLY = 100


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One sample of a row. ``prompt`` is the text that went to the tokenizer, None where the row has none."""

    prompt: str | None
    result: RowResult


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of a job.

    Attributes:
        seconds: of decoding all of them together.
        note: what is to be known about how the models were loaded.
    """

    rows: tuple[PreviewRow, ...]
    seconds: float
    note: str | None

    @property
    def counters(self) -> SpecCounters:
        """Acceptance bookkeeping of all rows."""
        return SpecCounters.total(row.result.counters for row in self.rows)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all completions."""
        return sum(row.result.num_completion_tokens for row in self.rows)


def preview(prepared: PreparedJob, num_rows: int = DEFAULT_PREVIEW_ROWS) -> Preview:
    """Decode the first rows of a job, all samples of each.

    Raises:
        SpecbatchError: the target is for several devices; the models cannot be loaded, the inputs cannot be read, the
            prompt template cannot be used.
    """
    from specbatch.workers.decoding import load_engine

    refuse_ranks(prepared.spec, "preview")
    num_rows = min(num_rows, sum(shard.num_rows for shard in prepared.shards))
    if num_rows == 0:
        return Preview((), 0.0, None)
    config = _worker_config(prepared, num_rows * prepared.spec.generation.num_samples)
    engine = load_engine(config)
    prompts, rows = _prepare(config, prepared, engine, num_rows)
    started = time.perf_counter()
    results = _decode(engine, config, rows)
    seconds = time.perf_counter() - started
    num_samples = prepared.spec.generation.num_samples
    shown = tuple(PreviewRow(prompts[place // num_samples], result) for place, result in enumerate(results))
    return Preview(shown, seconds, getattr(engine, "note", None))


def render_preview(found: Preview, format: str, *, is_same_text: bool = True) -> str:
    """A preview as text (``human``) or ``json``.

    Args:
        is_same_text: a job gives the same completions; not so under the ``distribution`` coupling.
    """
    if format == "json":
        return json.dumps(preview_document(found), indent=2, ensure_ascii=False) + "\n"
    if not found.rows:
        return "the dataset has no rows\n"
    lines: list[str] = []
    first = next((row for row in found.rows if row.prompt is not None), None)
    if first is not None and first.prompt is not None:
        tokens = fmt.plural(first.result.num_prompt_tokens, "token")
        lines += [f"prompt of row {first.result.row_id}, {tokens}", *_quoted(first.prompt), ""]
    for row in found.rows:
        lines += [*_row_lines(row), ""]
    counters = found.counters
    rate = found.num_completion_tokens / found.seconds if found.seconds > 0 else 0.0
    lines.append(
        f"{fmt.plural(len(found.rows), 'result')}, {fmt.plural(found.num_completion_tokens, 'token')} in "
        f"{fmt.seconds(found.seconds)}: {fmt.rate(rate)} tokens/s; {_acceptance_text(counters)}"
    )
    lines.append("a few rows do not fill a batch: `specbatch calibrate` measures the speed of a job")
    if not is_same_text:
        lines.append("--coupling distribution: the job draws other completions of the same law")
    if found.note is not None:
        lines.append(fmt.clean(found.note))
    return "\n".join(lines) + "\n"


def preview_document(found: Preview) -> dict[str, Any]:
    """A preview as JSON values."""
    return {
        "format": PREVIEW_FORMAT,
        "rows": [_row_document(row) for row in found.rows],
        "completion_tokens": found.num_completion_tokens,
        "seconds": round(found.seconds, 4),
        "tokens_per_second": round(found.num_completion_tokens / found.seconds, 2) if found.seconds > 0 else 0.0,
        **_acceptance(found.counters),
        "note": found.note,
    }


def _worker_config(prepared: PreparedJob, num_results: int) -> WorkerConfig:
    """What the one worker of a job would be told; batch size is as small as the rows allow."""
    from specbatch.schemas.messages import WorkerConfig
    from specbatch.schemas.prompt import PromptSpec

    execution = prepared.execution
    most = num_results if execution.batch_size == "auto" else min(execution.batch_size, num_results)
    return WorkerConfig(
        worker=0,
        output=prepared.output,
        plan=prepared.identity.P,
        target_path=str(prepared.target.path),
        draft_path=None if execution.draft is None else str(execution.draft.path),
        dtype=execution.dtype,
        device=execution.device,
        speculation=execution.speculation,
        batch_size=max(most, 1),
        num_threads=execution.num_threads,
        quantization=prepared.spec.models.quantization,
        kv_cache_dtype=prepared.spec.models.kv_cache_dtype,
        bitwise=prepared.spec.models.bitwise,
        prompt=PromptSpec.of(prepared.spec),
        generation=prepared.spec.generation,
        memory_fraction=execution.memory_fraction,
    )


def _prepare(
    config: WorkerConfig, prepared: PreparedJob, engine: DecodingEngine, num_rows: int
) -> tuple[list[str | None], list[PreparedRow | RowResult]]:
    """The text of each row's prompt, and all samples as a worker would prepare them."""
    from specbatch.storage.inputs import read_segment
    from specbatch.workers.prompts import prepare_rows, prompt_values
    from specbatch.workers.rendering import RowError, make_renderer

    renderer = make_renderer(config.prompt, prepared.target.path, prepared.columns)
    prompts: list[str | None] = []
    rows: list[PreparedRow | RowResult] = []
    for segment in choose_segments(prepared.inputs, num_rows, None, seed=0):
        table = read_segment(segment)
        for values in prompt_values(table, renderer):
            try:
                prompts.append(renderer.render(values))
            except RowError:
                prompts.append(None)
        rows += prepare_rows(
            table,
            segment.first_row_id,
            prompt=config.prompt,
            generation=config.generation,
            renderer=renderer,
            encode=engine.tokenizer.encode,
            context_length=engine.context_length,
            num_samples=config.generation.num_samples,
        )
    return prompts, rows


def _decode(engine: DecodingEngine, config: WorkerConfig, rows: Sequence[PreparedRow | RowResult]) -> list[RowResult]:
    """The results in the order of the rows."""
    from specbatch.schemas.errors import SpecbatchError
    from specbatch.workers.prompts import PreparedRow, error_row
    from specbatch.workers.shards import row_result

    params = config.generation.sampling_params(seed=0)
    results: dict[int, RowResult] = {}
    for place, row in enumerate(rows):
        if not isinstance(row, PreparedRow):
            results[place] = row
            continue
        own = params if row.params is None else row.params.apply(params)
        try:
            engine.submit(place, row.prompt_ids, own.with_seed(row.seed))
        except SpecbatchError as error:
            if not error.code.startswith("ROW_"):
                raise
            results[place] = error_row(row.row_id, row.seed, error.code, error.message, sample_index=row.sample_index)
    while len(results) < len(rows):
        for output in engine.step():
            assert isinstance(output.key, int)
            row = rows[output.key]
            assert isinstance(row, PreparedRow)
            results[output.key] = row_result(row, output)
    return [results[place] for place in range(len(rows))]


def _row_lines(row: PreviewRow) -> list[str]:
    result = row.result
    sample = f" sample {result.sample_index}" if result.sample_index else ""
    head = f"row {result.row_id}{sample}"
    if result.error_code is not None:
        return [f"{head}: {result.error_code}: {fmt.clean(result.error_message or '')}"]
    said = f"{fmt.plural(result.num_completion_tokens, 'token')}, ended by {result.finish_reason}"
    prompt = "" if row.prompt is None else _brief(row.prompt)
    return [
        f"{head}: {fmt.plural(result.num_prompt_tokens, 'prompt token')}, {said}; {_acceptance_text(result.counters)}",
        f"  prompt      {prompt}",
        "  completion",
        *_quoted(result.completion or ""),
    ]


def _row_document(row: PreviewRow) -> dict[str, Any]:
    result = row.result
    return {
        "row_id": result.row_id,
        "sample_index": result.sample_index,
        "row_seed": result.row_seed,
        "prompt": row.prompt,
        "status": result.status,
        "completion": result.completion,
        "completion_token_ids": None if result.completion_token_ids is None else list(result.completion_token_ids),
        "finish_reason": result.finish_reason,
        "error_code": result.error_code,
        "error_message": result.error_message,
        "num_prompt_tokens": result.num_prompt_tokens,
        "num_completion_tokens": result.num_completion_tokens,
        **_acceptance(result.counters),
    }


def _acceptance(counters: SpecCounters) -> dict[str, float | None]:
    return {
        "acceptance_rate": _ratio(counters.num_accepted_draft_tokens, counters.num_draft_tokens),
        "mean_accepted": _ratio(counters.num_accepted_draft_tokens, counters.num_spec_steps),
    }


def _acceptance_text(counters: SpecCounters) -> str:
    if not counters.num_draft_tokens:
        return "no drafts"
    return (
        f"{fmt.percent(counters.num_accepted_draft_tokens / counters.num_draft_tokens)} of drafts accepted, "
        f"{counters.num_accepted_draft_tokens / max(counters.num_spec_steps, 1):.2f} in a round with drafts"
    )


def _ratio(value: int, whole: int) -> float | None:
    return round(value / whole, 6) if whole else None


def _brief(text: str) -> str:
    """The end of a text in one line: prompts often begin alike."""
    return fmt.clean(" ".join(text[-4 * _MOST_SHOWN_BRIEFLY :].split()), _MOST_SHOWN_BRIEFLY)


def _quoted(text: str) -> Iterator[str]:
    """A text that a model or a file brought, safe for a terminal, with its lines; of a very long one the beginning."""
    for line in text[:_MOST_SHOWN].expandtabs(4).splitlines() or [""]:
        yield f"    | {fmt.clean(line)}".rstrip()
    if len(text) > _MOST_SHOWN:
        yield f"    ({fmt.count(_MOST_SHOWN)} of {fmt.count(len(text))} characters are shown)"
