"""JSONL files as Parquet: what a file holds, the types of its columns, and the copy that workers read.

A copy is a pure function of the files' bytes. It is pinned by the contents of its original: its footer names them.
Reading a file goes over it three times (its digest and the number of its rows, its types, its rows), each time in
blocks, so that memory does not grow with the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from specbatch.schemas.canonical import canonical_json, sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import GenerationSpec
from specbatch.storage.discovery import FoundFile
from specbatch.storage.input_file import changed, open_input
from specbatch.storage.jsonl_lines import LineReader, Refused, bad_line, parse_line
from specbatch.storage.jsonl_types import Shape, arrow_schema, build_batch, json_notes, settle_chats
from specbatch.storage.openai_batch import BatchKind, batch_kind, batch_row, batch_schema, job_wide_settings

JSONL_FORMAT = "specbatch/jsonl/1"
SOURCE_KEY = "specbatch:source"
"""Key of a copy's footer: of which contents it is the copy."""

_MIN_BLOCK_BYTES = 8 << 20
_MAX_BLOCK_BYTES = 64 << 20
_NUM_BLOCKS = 2048
"""A copy has no more row groups, as long as blocks stay below their limit: each costs bytes in the footer."""


@dataclass(frozen=True, slots=True)
class Source:
    """A JSONL file, pinned by its contents.

    Attributes:
        size_bytes, sha256: of the file as it is stored.
        num_rows: lines that are not blank.
        num_text_bytes: of the text in it.
        kind: ``rows``, or the kind of OpenAI batch file that it is.
    """

    found: FoundFile
    size_bytes: int
    sha256: str
    num_rows: int
    num_text_bytes: int
    kind: Literal["rows"] | BatchKind


def survey(found: FoundFile) -> Source:
    """Pin a file: one pass that counts and digests, and parses only the first line.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT``, ``JOB_INPUT_LIMIT``; what ``open_input`` raises.
    """
    kind: Literal["rows"] | BatchKind = "rows"
    num_rows = 0
    with open_input(found.path, found.etag, found.num_bytes) as file:
        reader = LineReader(found.path, file)
        for number, line in reader.lines():
            if num_rows == 0:
                kind = batch_kind(parse_line(found.path, number, line)) or "rows"
            num_rows += 1
    return Source(found, reader.num_bytes, reader.sha256, num_rows, reader.num_text_bytes, kind)


def observe(source: Source) -> Shape:
    """Read every line of a file; of a batch file each request is checked, but not against the settings of a job.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT`` naming the line, ``JOB_INPUT_UNSUPPORTED``; ``JOB_INPUT_CHANGED``.
    """
    shape = Shape()
    path, name = source.found.path, source.found.name
    for number, row in _rows(source):
        if source.kind != "rows":
            batch_row(path, number, row, source.kind, None)
            continue
        try:
            shape.observe(row, (name, number))
        except Refused as error:
            raise bad_line(path, number, str(error)) from None
    return shape


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a job bears on its copies.

    Attributes:
        chat_column: the column of chats, None where prompts are none.
        job: what requests of batch files are compared with.
    """

    chat_column: str | None = None
    job: GenerationSpec = field(default_factory=GenerationSpec)


@dataclass(frozen=True, slots=True)
class Rules:
    """How the files of one dataset become columns.

    Attributes:
        schema: of every copy.
        shape: of the rows; None for batch files.
    """

    schema: pa.Schema
    shape: Shape | None
    wanted: Wanted

    @property
    def notes(self) -> list[str]:
        """Lines that a user should read."""
        return [] if self.shape is None else json_notes(self.shape)


def make_rules(sources: Sequence[Source], shapes: Sequence[Shape | None], wanted: Wanted) -> Rules:
    """The common columns of some files, at least one.

    Args:
        shapes: what ``observe`` has found of each before, if it has.

    Raises:
        SpecbatchError: what ``observe`` raises; ``JOB_INPUT_UNSUPPORTED`` for keys that cannot be columns.
    """
    kind = sources[0].kind
    if kind != "rows":
        return Rules(batch_schema(kind), None, wanted)
    rows = Shape()
    for source, shape in zip(sources, shapes, strict=True):
        rows.merge(shape or observe(source))
    if wanted.chat_column is not None:
        settle_chats(rows, wanted.chat_column)
    try:
        return Rules(arrow_schema(rows), rows, wanted)
    except Refused as error:
        raise SpecbatchError(ErrorCode.JOB_INPUT_UNSUPPORTED, f"{sources[0].found.path}: {error}") from None


def copy_name(source: Source, sources: Sequence[Source], wanted: Wanted) -> str:
    """Name of a copy: files whose types were settled together have other copies than each has alone.

    Settings enter the name that requests are compared with, so that no copy vouches for other ones.
    """
    bearing = wanted.chat_column if source.kind == "rows" else job_wide_settings(wanted.job)
    key = [JSONL_FORMAT, source.kind, source.sha256, [one.sha256 for one in sources], bearing]
    return f"{sha256_hex(canonical_json(key))[:16]}.parquet"


def write_copy(source: Source, rules: Rules, path: Path) -> None:
    """Write the copy of a file.

    Raises:
        SpecbatchError: ``JOB_INPUT_CHANGED``, it is not the file that was surveyed; ``JOB_INPUT_CORRUPT`` and
            ``JOB_INPUT_UNSUPPORTED`` for a line that cannot be taken.
        OSError: the copy cannot be written.
    """
    with pq.ParquetWriter(path, rules.schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in _batches(source, rules):
            writer.write_batch(batch, row_group_size=max(batch.num_rows, 1))
        # In the footer only: in the schema's metadata it would follow the rows into the parts.
        writer.add_key_value_metadata({SOURCE_KEY: source_text(source.size_bytes, source.sha256)})


def source_text(size_bytes: int, sha256: str) -> str:
    """What a copy's footer says of its original."""
    return canonical_json({"format": JSONL_FORMAT, "sha256": sha256, "size_bytes": size_bytes}).decode()


def find_source(key_values: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """(bytes, hex SHA-256) of the file that a Parquet file is the copy of; None where it is none."""
    stored = next((value for key, value in key_values if key == SOURCE_KEY.encode()), None)
    if stored is None:
        return None
    try:
        document = json.loads(stored)
        return int(document["size_bytes"]), str(document["sha256"])
    except (ValueError, TypeError, KeyError):
        return None


def _batches(source: Source, rules: Rules) -> Iterator[pa.RecordBatch]:
    """The rows in blocks, each of which becomes a row group."""
    most = max(_MIN_BLOCK_BYTES, min(source.num_text_bytes // _NUM_BLOCKS, _MAX_BLOCK_BYTES))
    block: list[dict[str, Any]] = []
    num_bytes = 0
    path = source.found.path
    for number, row, size in _sized_rows(source):
        if block and num_bytes + size > most:
            yield _batch(block, rules)
            block, num_bytes = [], 0
        block.append(row if source.kind == "rows" else batch_row(path, number, row, source.kind, rules.wanted.job))
        num_bytes += size
    if block:
        yield _batch(block, rules)


def _batch(block: list[dict[str, Any]], rules: Rules) -> pa.RecordBatch:
    if rules.shape is not None:
        return build_batch(block, rules.schema, rules.shape)
    arrays = [pa.array([row.get(column.name) for row in block], column.type) for column in rules.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=rules.schema)


def _rows(source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row, _ in _sized_rows(source):
        yield number, row


def _sized_rows(source: Source) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(number of the line, row, bytes of the line), and at the end a look whether this still was the same file."""
    found = source.found
    with open_input(found.path, found.etag, found.num_bytes) as file:
        reader = LineReader(found.path, file)
        for number, line in reader.lines():
            yield number, parse_line(found.path, number, line), len(line)
        if (reader.num_bytes, reader.sha256) != (source.size_bytes, source.sha256):
            raise changed(found.path)
