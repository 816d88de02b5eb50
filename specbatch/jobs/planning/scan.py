"""What the prompts of a dataset are like, before a model is loaded: their lengths, and the rows that would fail.

Rows are rendered and tokenized as a worker would do it, with ``tokenizers`` alone. A sample stands for the dataset
unless all rows are asked for; what is estimated from it has its interval.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer as Backend

from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.planning.sample import SCAN_SEED, choose_segments
from specbatch.jobs.planning.scan_values import Scan, Tally, summarise
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import Segment
from specbatch.schemas.prompt import ChatText, PromptSpec
from specbatch.specdec.models.folders import context_length
from specbatch.specdec.tokenizer import Tokenizer
from specbatch.storage.inputs import read_segment
from specbatch.workers.prompts import PreparedRow, prepare_rows
from specbatch.workers.rendering import Renderer, RowError, make_renderer

if TYPE_CHECKING:
    import pyarrow as pa

    from specbatch.schemas.rows import RowResult

DEFAULT_SCAN_ROWS = 10_000
_CHUNK_ROWS = 1024


def parse_scan(text: str) -> int | None:
    """Rows to look at: a number, 0 for ``none``, None for ``all``.

    Raises:
        SpecbatchError: JOB_CONFIG; it is something else.
    """
    words = {"all": None, "none": 0}
    if text in words:
        return words[text]
    if text.isascii() and text.isdigit() and 0 < len(text) <= 12 and int(text) > 0:
        return int(text)
    raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--scan is {text!r}; it must be all, none, or how many rows to look at")


def scan(prepared: PreparedJob, amount: int | None = DEFAULT_SCAN_ROWS) -> Scan:
    """Look at the prompts of a job.

    Args:
        amount: rows to look at, at least 1; None for all.

    Raises:
        SpecbatchError: a file cannot be read or has changed; the prompt template cannot be used.
    """
    num_rows = sum(shard.num_rows for shard in prepared.shards)
    tallies: list[Tally] = []
    if num_rows:
        job = _Reader(prepared)
        tallies += map(job.tally, choose_segments(prepared.inputs, num_rows, amount, SCAN_SEED))
    return summarise(tallies, num_rows, context_length(prepared.target), prepared.spec.generation.num_samples)


def sample_rows(prepared: PreparedJob, amount: int) -> list[PreparedRow]:
    """Rows that can be decoded, of the sample that ``scan`` would look at for so many rows; in a fixed random order.

    Raises:
        SpecbatchError: as ``scan``.
    """
    num_rows = sum(shard.num_rows for shard in prepared.shards)
    if not num_rows:
        return []
    job = _Reader(prepared)
    rows = [
        row
        for segment in choose_segments(prepared.inputs, num_rows, amount, SCAN_SEED)
        for table, first_row_id in _chunks(segment)
        for row in job.prepare(table, first_row_id)[0]
        if isinstance(row, PreparedRow)
    ]
    random.Random(SCAN_SEED).shuffle(rows)  # neighbours are often alike
    return rows


class _Reader:
    """Rows of a job as its workers would prepare them, many tokenized at once."""

    def __init__(self, prepared: PreparedJob) -> None:
        self._generation = prepared.spec.generation
        self._prompt = PromptSpec.of(prepared.spec)
        self._renderer = make_renderer(self._prompt, prepared.target.path, prepared.columns)
        self._backend = Backend.from_file(str(prepared.target.path / "tokenizer.json"))
        self._tokenizer = Tokenizer(self._backend)  # sets the backend up as workers have it
        self.context_length = context_length(prepared.target)

    def prepare(self, table: pa.Table, first_row_id: int) -> tuple[list[PreparedRow | RowResult], list[int]]:
        """The first sample of each row, and the tokens of each prompt before it was cut or refused.

        A first pass renders the prompts; they are tokenized together, on all cores; a second pass looks them up.
        """
        known: dict[str, list[int]] = {}
        renderer = _Remembering(self._renderer)

        def collect(text: str) -> list[int]:
            known[text] = []
            return [0]

        self._prepared(table, first_row_id, renderer, collect)
        plain = [text for text in known if text and not isinstance(text, ChatText)]
        for text, encoding in zip(plain, self._backend.encode_batch_fast(plain), strict=True):
            known[text] = encoding.ids
        lengths: list[int] = []

        def look_up(text: str) -> list[int]:
            ids = known.get(text) or self._tokenizer.encode(text)
            if text:  # without one it is asked what stands around every prompt
                lengths.append(len(ids))
            return ids

        renderer.repeat()
        return self._prepared(table, first_row_id, renderer, look_up), lengths

    def tally(self, segment: Segment) -> Tally:
        """Counts of the rows of a segment."""
        generation = self._generation
        tally = Tally(segment.num_rows, [], Counter())
        for table, first_row_id in _chunks(segment):
            rows, lengths = self.prepare(table, first_row_id)
            tally.lengths += lengths
            for row in rows:
                if not isinstance(row, PreparedRow):
                    tally.errors[str(row.error_code)] += 1
                    continue
                wanted = generation.max_new_tokens
                if row.params is not None and row.params.max_new_tokens is not None:
                    wanted = row.params.max_new_tokens
                room = self.context_length - len(row.prompt_ids)
                tally.num_clamped += room < wanted
                tally.num_prompt_tokens += len(row.prompt_ids)
                tally.max_output_tokens += min(room, wanted) * generation.num_samples
        return tally

    def _prepared(
        self, table: pa.Table, first_row_id: int, renderer: _Remembering, encode: Callable[[str], list[int]]
    ) -> list[PreparedRow | RowResult]:
        return prepare_rows(
            table,
            first_row_id,
            prompt=self._prompt,
            generation=self._generation,
            renderer=cast("Renderer", renderer),
            encode=encode,
            context_length=self.context_length,
            num_samples=1,
        )


class _Remembering:
    """A renderer that can give what it gave once more, in the same order: templates are slow."""

    def __init__(self, renderer: Renderer) -> None:
        self.columns = renderer.columns
        self._renderer = renderer
        self._given: list[str | RowError] = []
        self._repeated: Iterator[str | RowError] | None = None

    def repeat(self) -> None:
        """From now on repeat what was given."""
        self._repeated = iter(self._given)

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of the next row."""
        if self._repeated is None:
            self._given.append(self._render(row))
        given = self._given[-1] if self._repeated is None else next(self._repeated)
        if isinstance(given, str):
            return given
        raise given

    def _render(self, row: Mapping[str, Any]) -> str | RowError:
        try:
            return self._renderer.render(row)
        except RowError as error:
            return error


def _chunks(segment: Segment) -> Iterator[tuple[pa.Table, int]]:
    """The rows of a segment in tables of bounded size, with the row id of the first of each."""
    for start in range(segment.row_start, segment.row_stop, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, segment.row_stop)
        first_row_id = segment.first_row_id + start - segment.row_start
        yield read_segment(replace(segment, row_start=start, row_stop=stop)), first_row_id
