"""The job file for editors and for people: its JSON schema, and settings written as a job file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from specbatch.jobs.spec.jobfile import scalar
from specbatch.jobs.spec.options import JOB_OPTIONS
from specbatch.schemas.spec import JobSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_DEFAULT_IN_HELP = re.compile(r"\s*\[[^][]*\]$")
_PLAIN_WORD = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_BOOLEANS_ELSEWHERE = frozenset({"y", "n", "yes", "no", "on", "off"})
"""Words that other readers of YAML take for true or false."""

_PAIRS = frozenset({"input.rename", "results.partitions"})
_PAIR_PATTERN = r"\S.*=.*\S|\S=\S"
_BIAS_PATTERN = r"^\s*\d+\s*:\s*[-+]?(\d+(\.\d*)?|\.\d+)\s*$"
_DURATION_PATTERN = r"^\s*(?=\d)(\d{1,6}d)?(\d{1,6}h)?(\d{1,6}m)?(\d{1,9}s)?\s*$"


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file: every setting with its type, bounds, default and what it is for."""
    schema = JobSpec.model_json_schema()
    sections = schema.pop("$defs")
    helps = {option.path: option.help for option in JOB_OPTIONS}
    helps["input.datasets"] = (
        "Files, folders, globs, s3:// or hf:// places, or an output; the DATASET arguments of the command line."
    )
    properties: dict[str, Any] = {}
    for name, reference in schema["properties"].items():
        if "$ref" not in reference:
            properties[name] = _setting(name, reference, helps)
            continue
        section = sections[reference["$ref"].rpartition("/")[2]]
        settings = {key: _setting(f"{name}.{key}", value, helps) for key, value in section["properties"].items()}
        properties[name] = {"type": ["object", "null"], "additionalProperties": False, "properties": settings}
    return {
        "$schema": DIALECT,
        "title": "specbatch job file",
        "description": "Settings of a job, as --config takes them. Options of the command line overrule them.",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def render_job_file(spec: JobSpec, format: str) -> str:
    """Every setting of a spec as a job file that gives the same spec again; ends with a line break.

    Args:
        format: ``human`` for YAML; ``json``, which is YAML too.
    """
    document = spec.model_dump(mode="json")
    if format == "json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, Mapping):
            lines.append(f"{name}:")
            lines += [f"  {key}: {_yaml(item)}" for key, item in value.items()]
        else:
            lines.append(f"{name}: {_yaml(value)}")
    return "\n".join(lines) + "\n"


def _setting(path: str, schema: Mapping[str, Any], helps: Mapping[str, str]) -> dict[str, Any]:
    """One setting's schema with its description in front, and with the rules that pydantic's schema leaves out."""
    setting = {key: value for key, value in _without_titles(schema).items() if key != "description"}
    if path == "generation.logit_bias":
        setting["items"] = {"anyOf": [setting["items"], {"type": "string", "pattern": _BIAS_PATTERN}]}
    elif path in _PAIRS:
        setting["items"] = {**setting["items"], "pattern": _PAIR_PATTERN}
    elif path == "execution.deadline":
        setting["anyOf"] = [
            {**each, "pattern": _DURATION_PATTERN} if each.get("type") == "string" else each
            for each in setting["anyOf"]
        ]
    return {"description": _DEFAULT_IN_HELP.sub("", helps[path]), **setting}


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _without_titles(value) for key, value in schema.items() if key != "title"}
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    return schema


def _yaml(value: Any) -> str:
    """A value in one line that both our reader and others take for the same."""
    is_plain = isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and scalar(value) == value
    if is_plain and value.lower() not in _BOOLEANS_ELSEWHERE:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
