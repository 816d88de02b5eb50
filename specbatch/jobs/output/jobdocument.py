"""``_specbatch/job.json``: what an output says that its job is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import JOB_FORMAT, JobDocument

JOB_KEY = "_specbatch/job.json"


def decode_job(data: bytes, uri: str) -> JobDocument:
    """Reads ``job.json``.

    Raises:
        SpecbatchError: JOB_FORMAT, not a job of the version that this program reads.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT, f"{JOB_KEY} in {uri} is not JSON; this is no job that any version wrote"
        ) from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != JOB_FORMAT:
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"{JOB_KEY} in {uri} has format {repr(found)[:60]}, this version reads {JOB_FORMAT!r}; "
            "use the version of specbatch that wrote it",
        )
    try:
        return JobDocument.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(key) for key in first["loc"]) or "it"
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT, f"{JOB_KEY} in {uri} cannot be read by this version: {where}: {first['msg']}"
        ) from None


def with_absolute_paths(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec as JSON values whose datasets and model folders are found from any working folder."""
    changed = dict(spec)
    inputs, models = spec.get("input"), spec.get("models")
    if isinstance(inputs, Mapping):
        datasets = [name if "://" in name else str(_absolute(name)) for name in inputs["datasets"]]
        changed["input"] = {**inputs, "datasets": datasets}
    if isinstance(models, Mapping):
        named = {name: _absolute_model(models[name]) for name in ("target", "draft") if name in models}
        changed["models"] = {**models, **named}
    return changed


def _absolute_model(name: str | None) -> str | None:
    """A model's name as it is, or the absolute path where it is a folder and not one of the bundled models."""
    from specbatch.specdec.models.folders import BUNDLED_PREFIX

    if name is None or name.startswith(BUNDLED_PREFIX):
        return name
    path = _absolute(name)
    return str(path) if path.is_dir() else name


def _absolute(name: str) -> Path:
    return Path(name).expanduser().absolute()
