"""Datasets of a hub: ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``, pinned to a commit, read from the hub's cache.

What is downloaded lies in the cache of ``huggingface_hub`` on this machine: workers elsewhere need the same cache.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from urllib.parse import unquote

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.discovery import FoundFile, check_pattern, missing, no_match
from specbatch.storage.discovery_s3 import select_by_glob, select_in_folder

_SCHEME = "hf://"
_PLACE = re.compile(
    r"hf://datasets/(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/@\s]{1,255}))?(?:/(?P<path>[^\0]*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 30.0
_NUM_DOWNLOADS = 8


@dataclass(frozen=True, slots=True)
class _Place:
    """What a dataset argument names; ``path`` without slashes at its ends, empty for the whole repository."""

    repo: str
    revision: str | None
    path: str

    @property
    def is_pinned(self) -> bool:
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def uri(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{_SCHEME}datasets/{self.repo}{revision}" + (f"/{self.path}" if self.path else "")


def is_hub(dataset: str) -> bool:
    """Whether a dataset argument is one of a hub; it may be a bad one."""
    return dataset.startswith(_SCHEME)


def pin_dataset(dataset: str) -> str:
    """The argument with its revision pinned to the commit that it names now. No request for one that is pinned.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``; ``JOB_INPUT_MISSING``, no such dataset, or nothing to reach it by;
            ``JOB_STORE_DENIED``.
    """
    place = _parse(dataset)
    return place.uri if place.is_pinned else replace(place, revision=_commit_and_files(place)[0]).uri


def find_on_hub(dataset: str) -> list[FoundFile]:
    """The files of one dataset argument, downloaded: a file, all below a folder, or all that match a pattern.

    Raises:
        SpecbatchError: as ``pin_dataset``, and as ``find_files`` says.
    """
    place = _parse(dataset)
    if place.is_pinned and place.path and (cached := _cached(place)):
        return [FoundFile(place.path.rpartition("/")[2], cached)]
    commit, files = _commit_and_files(place)
    place = replace(place, revision=commit)
    base, names = _select(place, files)
    paths = [base + "/".join(name) for name in names]
    with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
        local = list(pool.map(lambda path: _download(place, path), paths))
    return [FoundFile("/".join(name), path) for name, path in zip(names, local, strict=True)]


def _parse(dataset: str) -> _Place:
    match = _PLACE.fullmatch(dataset)
    path = (match["path"] or "").removesuffix("/") if match else ""
    if match is None or any(segment in ("", ".", "..") for segment in path.split("/") if path):
        raise SpecbatchError(
            ErrorCode.JOB_URI_INVALID,
            "the URI of the dataset is no dataset of a hub; write hf://datasets/OWNER/NAME@REVISION/PATH",
        )
    revision = match["revision"]
    return _Place(match["repo"], None if revision is None else unquote(revision), path)


def _select(place: _Place, files: Sequence[str]) -> tuple[str, list[tuple[str, ...]]]:
    """The folder that names are relative to, with its slash, and the names that are meant."""
    path = place.path
    if path in files:
        folder, slash, name = path.rpartition("/")
        return folder + slash, [(name,)]
    base = f"{path}/" if path else ""
    below = [tuple(file.removeprefix(base).split("/")) for file in files if file.startswith(base)]
    if below or not path:
        return base, select_in_folder(below, place.uri)
    if not glob.has_magic(path):
        raise missing(place.uri)
    segments = path.split("/")
    check_pattern(place.uri, segments)
    plain = next(index for index, segment in enumerate(segments) if glob.has_magic(segment))
    base = "".join(f"{segment}/" for segment in segments[:plain])
    below = [tuple(file.removeprefix(base).split("/")) for file in files if file.startswith(base)]
    names = select_by_glob(below, segments[plain:])
    if not names:
        raise no_match(place.uri)
    return base, names


def _commit_and_files(place: _Place) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=_endpoint()).dataset_info(place.repo, revision=place.revision, timeout=_TIMEOUT_SECONDS)
    except Exception as error:
        raise _told(place, error) from error
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise SpecbatchError(ErrorCode.JOB_INPUT_MISSING, f"the hub names no commit for {place.uri}; name one with @")
    return commit, [sibling.rfilename for sibling in info.siblings or []]


def _download(place: _Place, path: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(
            hf_hub_download(
                place.repo, path, repo_type="dataset", revision=place.revision, endpoint=_endpoint(), etag_timeout=10
            )
        )
    except Exception as error:
        raise _told(replace(place, path=path), error) from error


def _cached(place: _Place) -> str | None:
    """A file of a commit that was downloaded before: it is what it was, and no hub is asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(place.repo, place.path, revision=place.revision, repo_type="dataset")
    return found if isinstance(found, str) else None


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _told(place: _Place, error: Exception) -> SpecbatchError:
    """What the hub's client raises comes from several libraries; nothing of its words is repeated, they hold URLs."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return SpecbatchError(
            ErrorCode.JOB_STORE_DENIED, f"dataset {place.uri} is gated; accept its terms on the hub and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return missing(f"{place.uri} (or it is private, and HF_TOKEN is not set)")
    if isinstance(error, RevisionNotFoundError):
        return missing(f"{place.uri} in this revision")
    return SpecbatchError(
        ErrorCode.JOB_INPUT_MISSING,
        f"dataset {place.uri}: the hub could not be reached ({type(error).__name__}); "
        "check the network and HF_ENDPOINT, or download the files and name them by their paths",
    )
