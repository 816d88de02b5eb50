"""Which files a dataset argument names: a file, a folder, or a glob of local paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.store import local_path

_JOB_FOLDER = "_specbatch"
_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a dataset: ``name`` is relative to the dataset argument, ``path`` is absolute."""

    name: str
    path: Path


def find_files(datasets: Sequence[str]) -> list[FoundFile]:
    """The files of all dataset arguments, in the order of the arguments and sorted by name within each.

    A folder stands for the ``*.parquet`` files in it and below. Names that begin with ``_`` or ``.`` and folders that
    hold a ``_specbatch/`` (outputs of specbatch) are skipped in folders and globs.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``, ``JOB_INPUT_MISSING`` (no such path), ``JOB_INPUT_EMPTY`` (nothing in
            it), ``JOB_COLUMN_RESERVED`` (it is an output of specbatch), ``JOB_CONFIG`` (a file named twice).
    """
    if not datasets:
        raise SpecbatchError(ErrorCode.JOB_INPUT_EMPTY, "no dataset given; name a Parquet file, a folder or a glob")
    files = [file for dataset in datasets for file in _find(dataset)]
    seen: set[Path] = set()
    for file in files:
        if not str(file.path).isprintable():
            raise SpecbatchError(
                ErrorCode.JOB_URI_INVALID,
                f"the name of dataset file {str(file.path)!a} is not printable text; rename the file",
            )
        resolved = file.path.resolve()
        if resolved in seen:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"the datasets name {file.path} twice; each row may be decoded once only"
            )
        seen.add(resolved)
    return files


def _find(dataset: str) -> list[FoundFile]:
    path = local_path(dataset, "dataset")
    if path.is_dir():
        return _find_in_folder(path)
    if path.exists():
        return [FoundFile(path.name, path)]
    if glob.has_magic(dataset):
        return _find_by_glob(path)
    raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"dataset {path} does not exist; check the path")


def _find_in_folder(folder: Path) -> list[FoundFile]:
    if (folder / _JOB_FOLDER).is_dir():
        raise SpecbatchError(
            ErrorCode.JOB_COLUMN_RESERVED,
            f"dataset {folder} is an output of specbatch, whose result columns are reserved; "
            "write the columns that you want to a new Parquet file and submit that",
        )
    names = sorted(path.relative_to(folder) for path in _walk(folder))
    if not names:
        raise SpecbatchError(
            ErrorCode.JOB_INPUT_EMPTY, f"dataset {folder} holds no *{_SUFFIX} file; give a folder or a glob that does"
        )
    return [FoundFile(name.as_posix(), folder / name) for name in names]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        kept = [name for name in folders if not _is_hidden(name) and not (Path(parent) / name / _JOB_FOLDER).is_dir()]
        folders[:] = kept
        for name in names:
            if name.lower().endswith(_SUFFIX) and not _is_hidden(name):
                yield Path(parent) / name


def _find_by_glob(pattern: Path) -> list[FoundFile]:
    plain = 0
    while not glob.has_magic(pattern.parts[plain]):
        plain += 1
    base = Path(*pattern.parts[:plain])
    wildcards = PurePath(*pattern.parts[plain:])
    matches = (path.relative_to(base) for path in base.glob(str(wildcards)) if path.is_file())
    names = sorted(name for name in matches if not _is_skipped(base, name))
    if not names:
        raise SpecbatchError(ErrorCode.JOB_INPUT_EMPTY, f"dataset {pattern} matches no file; check the pattern")
    return [FoundFile(name.as_posix(), base / name) for name in names]


def _is_skipped(base: Path, name: Path) -> bool:
    inner_folders = [base / folder for folder in name.parents if folder != Path()]
    return any(map(_is_hidden, name.parts)) or any((folder / _JOB_FOLDER).is_dir() for folder in inner_folders)


def _is_hidden(name: str) -> bool:
    return name.startswith(("_", "."))
