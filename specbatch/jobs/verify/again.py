"""The part of ``verify --deep`` that makes prompts again: which rows are duplicates, and what the target says to some.

Rendering and tokenizing are the worker's own code; what is checked is that the stored results follow from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from specbatch.jobs.verify.plan import PlannedShard
from specbatch.schemas.errors import SpecbatchError
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.rows import RowResult, duplicate_column
from specbatch.schemas.spec import GenerationSpec

if TYPE_CHECKING:
    from specbatch.workers.rendering import Renderer

NUM_REGENERATED = 8
MAX_DUPLICATE_ROWS = 5_000_000
"""Above so many rows marks of duplicates are not made anew: their digests lie in memory."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A result that is decoded again.

    Attributes:
        row: of the dataset, all its columns.
    """

    row_id: int
    sample: int
    row: pa.Table
    seed: int
    token_ids: list[int]


def draw(kept: list[Drawn], part: pa.Table, rows: pa.Table, salt: str, prefix: str = "") -> list[Drawn]:
    """The results with the smallest digests of all that were seen: a draw that nobody can choose.

    Args:
        rows: of the dataset, one for each result of the part.
    """

    def lot(row_id: int, sample: int) -> str:
        return hashlib.sha256(f"{salt} {row_id} {sample}".encode()).hexdigest()

    names = ("row_id", "sample_index", "row_seed", "completion_token_ids")
    ok = [place for place, status in enumerate(part.column(f"{prefix}status").to_pylist()) if status == "ok"]
    row_ids, samples, seeds, ids = (part.column(prefix + name) for name in names)
    lots = {place: lot(row_ids[place].as_py(), samples[place].as_py()) for place in ok}
    new = [
        Drawn(
            row_ids[place].as_py(),
            samples[place].as_py(),
            rows.slice(place, 1),
            seeds[place].as_py(),
            ids[place].as_py(),
        )
        for place in sorted(ok, key=lots.__getitem__)[:NUM_REGENERATED]
    ]
    return sorted([*kept, *new], key=lambda one: lot(one.row_id, one.sample))[:NUM_REGENERATED]


def prompt_spec(fields: dict[str, Any]) -> PromptSpec:
    """How prompts are made, by the identity alone."""
    prompt, generation, output = (fields.get(name, {}) for name in ("prompt", "generation", "output"))
    return PromptSpec(
        column=str(prompt.get("column")),
        messages_column=prompt.get("messages_column"),
        template=prompt.get("template"),
        system=prompt.get("system"),
        truncate=prompt.get("truncate_prompt", "error"),
        row_params=prompt.get("row_params") is True,
        seed_by=generation.get("seed_by", "row"),
        id_column=output.get("id_column"),
    )


def regenerate(drawn: list[Drawn], job: dict[str, Any], problems: list[str], notes: list[str]) -> None:
    """Decode the drawn results again with the target alone and compare token by token."""
    from specbatch.specdec.engine import Engine
    from specbatch.specdec.models.folders import locate_model
    from specbatch.workers.prompts import prepare_rows
    from specbatch.workers.rendering import make_renderer

    fields = job["identity"]["fields"]
    if fields["generation"].get("coupling") == "distribution":
        notes.append("no row was decoded again: under the distribution coupling the text depends on the draft")
        return
    if (num_ranks := fields["model"].get("tensor_parallel_size", 1)) > 1:
        notes.append(f"no row was decoded again: the target was divided among {num_ranks} devices")
        return
    prompt = prompt_spec(fields)
    try:
        on_load = job["spec"]["models"].get("quantization")
        target = locate_model(str(job["spec"]["models"]["target"]), on_load)
        if not fields["model"]["files"].items() <= dict(target.files).items():
            notes.append(f"no row was decoded again: {target.name} here is not the target of the job")
            return
        renderer = make_renderer(prompt, Path(target.path), drawn[0].row.schema.names)
        if renderer.chat_sha256 != fields["prompt"].get("chat_template"):
            notes.append(f"no row was decoded again: {target.name} here has another chat template")
            return
        engine = Engine.from_pretrained(
            target.path,
            max_batch_size=1,
            speculation="off",
            dtype=str(fields["model"]["dtype"]),
            quantization=on_load,
            kv_cache_dtype=fields["model"].get("kv_cache_dtype", "auto"),
            bitwise=fields["model"].get("bitwise", False),
        )
    except SpecbatchError as error:
        notes.append(f"no row was decoded again: {error.message}")
        return
    generation = GenerationSpec.model_validate(fields["generation"])
    for one in drawn:
        prepared = prepare_rows(
            one.row,
            one.row_id,
            prompt=prompt,
            generation=generation,
            renderer=renderer,
            encode=engine.tokenizer.encode,
            context_length=engine.context_length,
            num_samples=one.sample + 1,
        )[one.sample]
        where = f"row {one.row_id} sample {one.sample}"
        if isinstance(prepared, RowResult):
            problems.append(f"{where}: it is ok, but its prompt cannot be made ({prepared.error_code})")
            continue
        params = generation.sampling_params(one.seed)
        if prepared.params is not None:
            params = prepared.params.apply(params)
        (output,) = engine.generate([prepared.prompt_ids], params)
        if list(output.token_ids) != one.token_ids:
            problems.append(f"{where}: the target alone, on {engine.device} here, says something else")
    notes.append(f"decoded {len(drawn)} results again with the target alone, on {engine.device}")


class Duplicates:
    """Marks of duplicates, made anew in the order of the rows.

    Attributes:
        note: what could not be done.
    """

    def __init__(self, job: dict[str, Any], prefix: str) -> None:
        self.note: str | None = None
        self._job = job
        self._fields = job["identity"]["fields"]
        self._column = duplicate_column(prefix)
        self._row_id = f"{prefix}row_id"
        self._is_wanted = self._fields.get("output", {}).get("dedupe") == "mark"
        self._renderer: Renderer | None = None
        self._first: dict[bytes, int] = {}
        self._num_rows = 0

    def check(self, part: pa.Table, shard: PlannedShard, rows: pa.Table) -> Iterator[str]:
        """What is wrong with the marks of a part; parts come in the order of the rows."""
        if not self._is_wanted or self.note is not None:
            return
        self._num_rows += rows.num_rows
        if self._num_rows > MAX_DUPLICATE_ROWS:
            self.note = f"marks of duplicates were made anew for the first {MAX_DUPLICATE_ROWS:,} rows at most"
            return
        renderer = self._renderer or self._make_renderer(rows)
        if renderer is None:
            return
        marks = self._marks(renderer, rows, shard.row_start)
        expected = dict(zip(range(shard.row_start, shard.row_stop), marks, strict=True))
        found = zip(part.column(self._row_id).to_pylist(), part.column(self._column).to_pylist(), strict=True)
        wrong = [row_id for row_id, mark in found if mark != expected.get(row_id)]
        if wrong:
            yield f"{shard.name}: {len(wrong):,} marks of duplicates are wrong, the first of row {wrong[0]}"

    def _marks(self, renderer: Renderer, rows: pa.Table, first_row_id: int) -> Iterator[int | None]:
        from specbatch.workers.prompts import prompt_values, row_sampling
        from specbatch.workers.rendering import RowError

        generation = GenerationSpec.model_validate(self._fields["generation"])
        # Seeds that come from ids tell no rows apart.
        plain = PromptSpec(row_params=prompt_spec(self._fields).row_params)
        samplings = row_sampling(rows, 0, plain, generation)
        for row_id, (values, sampling) in enumerate(
            zip(prompt_values(rows, renderer), samplings, strict=True), start=first_row_id
        ):
            try:
                if sampling.error is not None:
                    raise sampling.error
                text = renderer.render(values)
            except RowError:
                yield None  # what has no prompt is no duplicate
                continue
            own = (getattr(text, "literals", ()), sampling.params.overrides, sampling.params.seed)
            digest = hashlib.sha256(f"{own!r}\0{text}".encode()).digest()
            first = self._first.setdefault(digest, row_id)
            yield None if first == row_id else first

    def _make_renderer(self, rows: pa.Table) -> Renderer | None:
        from specbatch.specdec.models.folders import locate_model
        from specbatch.workers.rendering import make_renderer

        prompt = prompt_spec(self._fields)
        try:
            folder = Path(locate_model(str(self._job["spec"]["models"]["target"])).path) if prompt.is_chat else Path()
            self._renderer = make_renderer(prompt, folder, rows.schema.names)
        except SpecbatchError as error:
            self.note = f"marks of duplicates were not made anew: {error.message}"
        return self._renderer


def cell_text(value: Any) -> str:
    """A cell for a comparison in which NaN is equal to itself."""
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(cell_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{cell_text(item)}" for key, item in value.items()) + "}"
    return repr(value)
