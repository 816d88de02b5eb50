"""Which files a dataset argument names: a file, a folder, a glob, or an output of specbatch, local or on S3."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.jsonl_lines import is_jsonl
from specbatch.storage.store import is_s3, local_path

JOB_FOLDER = "_specbatch"
_SUFFIX = ".parquet"
_KINDS = "*.parquet or *.jsonl"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a dataset.

    Attributes:
        name: relative to the dataset argument.
        path: absolute, or a URI.
        etag: of an object, its version when it was found; None of local files.
        num_bytes: of an object, the size of that version.
        bookkeeping: of a part of an output of specbatch, the columns that specbatch added to the rows.
        note: what the user should know of the dataset that it belongs to; of the first of its files only.
    """

    name: str
    path: str
    etag: str | None = None
    num_bytes: int | None = None
    bookkeeping: frozenset[str] = frozenset()
    note: str | None = None

    @property
    def is_jsonl(self) -> bool:
        """Whether it is read as JSONL, told by its name."""
        return is_jsonl(self.path)


def find_files(datasets: Sequence[str], *, allow_empty: bool = False) -> list[FoundFile]:
    """The files of all dataset arguments, in the order of the arguments and sorted by name within each.

    A folder stands for the Parquet and JSONL files in it and below; one that holds a ``_specbatch/`` is an output of
    specbatch and stands for the parts that its manifest names. In folders and globs such outputs are skipped, as are
    names that begin with ``_`` or ``.``. ``key=value`` folders are folders like others: they give no column.

    Args:
        allow_empty: a folder, prefix or glob without files is no error.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``, ``JOB_INPUT_MISSING`` (no such path), ``JOB_INPUT_EMPTY`` (nothing in
            it), ``JOB_INCOMPLETE`` (an output of specbatch without a manifest), ``JOB_CONFIG`` (a file named twice);
            for S3 also ``JOB_STORE_LOST``, ``JOB_STORE_DENIED``.
    """
    if not datasets:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY, "no dataset given; name a Parquet or JSONL file, a folder or a glob"
        )
    files = [file for dataset in datasets for file in _find_if_any(dataset, allow_empty)]
    seen: set[str] = set()
    for file in files:
        if not file.path.isprintable():
            raise SpecbatchError(
                ErrorCode.JOB_URI_INVALID,
                f"the name of dataset file {file.path!a} is not printable text; rename the file",
            )
        place = file.path if is_s3(file.path) else os.path.realpath(file.path)
        if place in seen:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"the datasets name {file.path} twice; each row may be decoded once only"
            )
        seen.add(place)
    return files


def is_data_file(name: str) -> bool:
    """Whether a file's name is one that a folder is searched for."""
    return (name.lower().endswith(_SUFFIX) or is_jsonl(name)) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder takes it out of folders and globs."""
    return name.startswith(("_", "."))


def check_pattern(pattern: str, segments: Sequence[str]) -> None:
    """Check that ``**`` stands alone between slashes.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``.
    """
    for segment in segments:
        if "**" in segment and segment != "**":
            raise SpecbatchError(
                ErrorCode.JOB_URI_INVALID, f"dataset {pattern!a}: ** must be a whole folder, as in data/**/*.parquet"
            )


def missing(what: str) -> SpecbatchError:
    """The dataset names nothing."""
    return SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"dataset {what} does not exist; check the path")


def no_files(folder: str) -> SpecbatchError:
    """The dataset is a folder without data."""
    return SpecbatchError(
        ErrorCode.JOB_INPUT_EMPTY, f"dataset {folder} holds no {_KINDS} file; give a folder or a glob that does"
    )


def no_match(pattern: str) -> SpecbatchError:
    """The dataset is a pattern that fits nothing."""
    return SpecbatchError(ErrorCode.JOB_INPUT_EMPTY, f"dataset {pattern} matches no file; check the pattern")


def _find_if_any(dataset: str, allow_empty: bool) -> list[FoundFile]:
    try:
        return _find(dataset)
    except SpecbatchError as error:
        if allow_empty and error.code is ErrorCode.JOB_INPUT_EMPTY:
            return []
        raise


def find_parts(output: str) -> list[FoundFile]:
    """The parts of an output of specbatch."""
    from specbatch.storage.discovery_output import parts_of_output

    found = parts_of_output(output)
    return [
        FoundFile(name, path, bookkeeping=found.bookkeeping, note=found.note if place == 0 else None)
        for place, (name, path) in enumerate(found.parts)
    ]


def _find(dataset: str) -> list[FoundFile]:
    if dataset.startswith("hf://"):
        from specbatch.storage.hub import find_on_hub

        return find_on_hub(dataset)
    if is_s3(dataset):
        from specbatch.storage.discovery_s3 import find_on_s3

        return find_on_s3(dataset)
    path = local_path(dataset, "dataset")
    if path.is_dir():
        return _find_in_folder(path)
    if path.exists():
        return [FoundFile(path.name, str(path))]
    if glob.has_magic(dataset):
        return _find_by_glob(path)
    raise missing(str(path))


def _find_in_folder(folder: Path) -> list[FoundFile]:
    if (folder / JOB_FOLDER).is_dir():
        return find_parts(str(folder))
    names = sorted(path.relative_to(folder) for path in _walk(folder))
    if not names:
        raise no_files(str(folder))
    return [FoundFile(name.as_posix(), str(folder / name)) for name in names]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        kept = [name for name in folders if not is_hidden(name) and not (Path(parent) / name / JOB_FOLDER).is_dir()]
        folders[:] = kept
        for name in names:
            if is_data_file(name):
                yield Path(parent) / name


def _find_by_glob(pattern: Path) -> list[FoundFile]:
    check_pattern(str(pattern), pattern.parts)
    plain = 0
    while not glob.has_magic(pattern.parts[plain]):
        plain += 1
    base = Path(*pattern.parts[:plain])
    wildcards = PurePath(*pattern.parts[plain:])
    matches = (path.relative_to(base) for path in base.glob(str(wildcards)) if path.is_file())
    names = sorted(name for name in matches if not _is_skipped(base, name))
    if not names:
        raise no_match(str(pattern))
    return [FoundFile(name.as_posix(), str(base / name)) for name in names]


def _is_skipped(base: Path, name: Path) -> bool:
    inner_folders = [base / folder for folder in name.parents if folder != Path()]
    return any(map(is_hidden, name.parts)) or any((folder / JOB_FOLDER).is_dir() for folder in inner_folders)
