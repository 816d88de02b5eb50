"""The pin of an input file: its size and the digest of its footer, and what is said of a footer that is not fit.

The pin of a copy of JSONL is size and digest of the contents of its original, which its footer names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.plan import InputFile
from specbatch.storage.discovery import FoundFile
from specbatch.storage.footer import Footer, extensions_in, read_footer, stored_schema
from specbatch.storage.footer_facts import NotParquet, OverLimit, Unsupported, read_facts
from specbatch.storage.input_file import open_input
from specbatch.storage.jsonl import find_source

T = TypeVar("T")


def pin_file(found: FoundFile) -> tuple[InputFile, pa.Schema]:
    """Pin a Parquet file that was found; its schema as it is stored.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT``, ``JOB_INPUT_EXTENSION``, ``JOB_INPUT_UNSUPPORTED``, ``JOB_INPUT_LIMIT``;
            what ``open_input`` raises.
    """
    with open_input(found.path, found.etag, found.num_bytes) as file:
        footer = named(found.path, lambda: read_footer(file))
    facts = named(found.path, lambda: read_facts(footer.metadata, footer.size_bytes))
    if extensions := named(found.path, lambda: extensions_in(facts.key_values)):
        column, extension = extensions[0]
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EXTENSION,
            f"{found.path} has the Arrow extension type {extension!r} in column {column!r}, which is not read for "
            "safety; write the column with a plain type",
        )
    schema = named(found.path, lambda: stored_schema(footer))
    return InputFile(found.name, found.path, footer.size_bytes, footer.sha256, facts.row_group_rows), schema


def fits_pin(path: str, footer: Footer, size_bytes: int, sha256: str) -> bool:
    """Whether a file is the one that was pinned, or the copy of the JSONL file that was.

    Raises:
        SpecbatchError: ``JOB_INPUT_CORRUPT``, its footer is damaged.
    """
    if (footer.size_bytes, footer.sha256) == (size_bytes, sha256):
        return True
    facts = named(path, lambda: read_facts(footer.metadata, footer.size_bytes))
    return find_source(facts.key_values) == (size_bytes, sha256)


def named(path: str, read: Callable[[], T]) -> T:
    """Run a footer function and put the file's name on its complaint, which becomes a SpecbatchError."""
    try:
        return read()
    except Unsupported as error:
        text = f"{path} cannot be read here: {error}; write it again, plain or with zstd"
        raise SpecbatchError(ErrorCode.JOB_INPUT_UNSUPPORTED, text) from error
    except OverLimit as error:
        text = f"{path} is refused: {error}; write it again with smaller row groups"
        raise SpecbatchError(ErrorCode.JOB_INPUT_LIMIT, text) from error
    except NotParquet as error:
        raise _corrupt(path, str(error)) from error
    except OSError as error:
        raise _corrupt(path, (error.strerror or type(error).__name__).lower()) from error


def _corrupt(path: str, reason: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_INPUT_CORRUPT, f"{path} cannot be read as Parquet: {reason}; write it again or leave it out"
    )
