"""Whether a node of a cluster may take part in a job: it has the same specbatch and libraries, and sees the same files.

The question is asked by a function that Ray carries to the node as code, because a node whose specbatch is another one,
or which has none, must be able to answer too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbatch._version import __version__
from specbatch.schemas.errors import ErrorCode

TEXT_LIBRARIES = ("torch", "transformers", "tokenizers", "jinja2")
"""Libraries whose version may show in the text: arithmetic, models, token ids, chats."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node says about itself.

    Attributes:
        versions: of Python, specbatch and ``TEXT_LIBRARIES``; None where one is not installed.
        files: fingerprint by path; None where the path cannot be read there.
    """

    host: str
    versions: Mapping[str, str | None]
    files: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a node may not take part: one line and its code."""

    code: ErrorCode
    text: str


def make_probe() -> Callable[[Sequence[str], Sequence[str]], dict[str, Any]]:
    """The function that answers: a nested one with imports of its own, so that it is carried as code, not by name."""

    def probe(libraries: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
        import hashlib
        import importlib
        import importlib.metadata
        import os
        import platform
        import socket

        def fingerprint(path: str) -> str | None:
            """Size and a digest of both ends: enough to tell files apart, and quick for weights."""
            try:
                with open(path, "rb") as file:  # noqa: PTH123 - nothing of ours can be imported here
                    size = os.fstat(file.fileno()).st_size
                    digest = hashlib.sha256(file.read(65536))
                    file.seek(max(size - 65536, 0))
                    digest.update(file.read(65536))
                    return f"{size}:{digest.hexdigest()}"
            except OSError:
                return None

        versions: dict[str, str | None] = {"python": platform.python_version()}
        try:  # the code that would run, which need not be what is installed
            versions["specbatch"] = importlib.import_module("specbatch._version").__version__
        except ImportError:
            versions["specbatch"] = None
        for name in libraries:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = None
        return {
            "host": socket.gethostname(),
            "versions": versions,
            "files": {path: fingerprint(path) for path in paths},
        }

    return probe


def judge(facts: NodeFacts, here: NodeFacts, first: NodeFacts | None) -> Problem | None:
    """Why a node may not take part; None where it may.

    Args:
        here: the driver's own facts: of specbatch, and of every file.
        first: the node whose libraries the others have to have; None for that node itself.
    """
    found = facts.versions.get("specbatch")
    if found != __version__:
        has = "has no specbatch" if found is None else f"has specbatch {found}"
        return Problem(
            ErrorCode.JOB_VERSION_SKEW,
            f"node {facts.host} {has}, this job runs {__version__}; install {__version__} there, or submit through "
            "Ray Jobs (--address http://HEAD:8265), which brings its code along",
        )
    if missing := [name for name in TEXT_LIBRARIES if facts.versions.get(name) is None]:
        return Problem(
            ErrorCode.JOB_VERSION_SKEW,
            f"node {facts.host} has no {missing[0]}; install there what specbatch {__version__} depends on",
        )
    if first is not None:
        for name in TEXT_LIBRARIES:
            if facts.versions[name] != first.versions[name]:
                return Problem(
                    ErrorCode.JOB_VERSION_SKEW,
                    f"node {facts.host} has {name} {facts.versions[name]}, node {first.host} has "
                    f"{first.versions[name]}: the text would depend on the node; install one version on all of them",
                )
    for path, expected in here.files.items():
        if facts.files.get(path) != expected:
            what = "does not see" if facts.files.get(path) is None else "sees another file at"
            return Problem(
                ErrorCode.JOB_PATH_NOT_SHARED,
                f"node {facts.host} {what} {path}; put dataset, output and models where every node has them under "
                "the same name: s3://, or a file system that all of them mount",
            )
    return None
