"""The files that a dataset on S3 names, by the rules that hold for local ones. Choosing among keys is pure."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Sequence

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.discovery import (
    JOB_FOLDER,
    FoundFile,
    check_pattern,
    find_parts,
    is_data_file,
    is_hidden,
    missing,
    no_files,
    no_match,
)
from specbatch.storage.store import NotFound

_Segments = tuple[str, ...]


def find_on_s3(dataset: str) -> list[FoundFile]:
    """The files of one dataset argument: an object, all below a prefix, or all that match a pattern, in that order.

    Raises:
        SpecbatchError: as ``find_files`` says.
    """
    from specbatch.storage.s3_calls import ObjectInfo
    from specbatch.storage.s3_client import bucket_of

    bucket, key = bucket_of(dataset, "input")

    def found(name: str, info: ObjectInfo) -> FoundFile:
        return FoundFile(name, f"s3://{bucket.name}/{info.key}", info.etag, info.num_bytes)

    if key and not dataset.endswith("/"):
        try:
            return [found(key.rpartition("/")[2], bucket.head(key))]
        except NotFound:
            pass
    base = f"{key}/" if key else ""
    infos = {_below(base, info.key): info for info in bucket.list(base)}
    if any(len(name) > 1 and name[0] == JOB_FOLDER for name in infos):
        return find_parts(bucket.uri(key))
    if infos or not key:
        names = select_in_folder(infos, bucket.uri(key))
    elif glob.has_magic(key):
        segments = key.split("/")
        check_pattern(bucket.uri(key), segments)
        plain = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
        base = "".join(f"{segment}/" for segment in segments[:plain])
        literal = re.split(r"[*?\[]", segments[plain], maxsplit=1)[0]
        infos = {_below(base, info.key): info for info in bucket.list(base + literal)}
        names = select_by_glob(infos, segments[plain:])
        if not names:
            raise no_match(bucket.uri(key))
    elif dataset.endswith("/"):  # folders on S3 are no more than their files
        raise no_files(bucket.uri(key))
    else:
        raise missing(bucket.uri(key))
    for name in names:
        if "" in name:
            raise SpecbatchError(
                ErrorCode.JOB_URI_INVALID,
                f"{bucket.uri(infos[name].key)} has a folder without a name; rename it or give a narrower dataset",
            )
    return [found("/".join(name), infos[name]) for name in names]


def _below(folder: str, key: str) -> _Segments:
    return tuple(key.removeprefix(folder).split("/"))


def select_in_folder(keys: Iterable[_Segments], folder: str) -> list[_Segments]:
    """The data files among the keys of a folder, sorted.

    Args:
        keys: relative to the folder, split at slashes.
        folder: how messages call it.

    Raises:
        SpecbatchError: ``JOB_INPUT_EMPTY``.
    """
    outputs = _outputs_among(keys)
    names = sorted(key for key in keys if is_data_file(key[-1]) and not _is_skipped(key, outputs))
    if not names:
        raise no_files(folder)
    return names


def select_by_glob(keys: Iterable[_Segments], pattern: Sequence[str]) -> list[_Segments]:
    """The keys below a folder that match a pattern, sorted; ``**`` stands for any number of folders."""
    outputs = _outputs_among(keys) - {()}
    return sorted(key for key in keys if key[-1] and _fits(key, pattern) and not _is_skipped(key, outputs))


def _fits(key: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "**":  # at the end it means folders, and a key is none
        return any(_fits(key[start:], pattern[1:]) for start in range(len(key)))
    return len(key) > 0 and fnmatch.fnmatchcase(key[0], pattern[0]) and _fits(key[1:], pattern[1:])


def _outputs_among(keys: Iterable[_Segments]) -> set[_Segments]:
    """Folders that are outputs of specbatch."""
    return {key[:depth] for key in keys for depth, folder in enumerate(key[:-1]) if folder == JOB_FOLDER}


def _is_skipped(key: _Segments, outputs: set[_Segments]) -> bool:
    return any(map(is_hidden, key)) or any(key[:depth] in outputs for depth in range(1, len(key)))
