"""The command that would run a job again, made from the settings in its manifest. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.spec.option_types import Option
from specbatch.jobs.spec.options import JOB_OPTIONS
from specbatch.jobs.spec.placeholders import doubled
from specbatch.schemas.manifest import Manifest

LONG_TEXT = 120
"""Templates and system prompts longer than this are named as files instead."""

_FILES = frozenset({"template", "system"})


def reproduce(manifest: Manifest, output: str) -> tuple[str, str]:
    """The command and what must be said of it; an empty command where the manifest is too old to know."""
    if manifest.spec is None:
        return "", f"the settings stand in {fmt.clean(output).rstrip('/')}/_specbatch/job.json"
    datasets = _lookup(manifest.spec, "input.datasets")
    # What is stored are the places themselves; submit would take their braces for placeholders.
    names = [doubled(str(name)) for name in datasets] if isinstance(datasets, list) else []
    words, notes = ["specbatch", "submit", *names, "--output", "NEW"], []
    defaults = _defaults()
    for option in JOB_OPTIONS:
        value = _lookup(manifest.spec, option.path)
        if option.name == "output" or value is None or value == _lookup(defaults, option.path):
            continue
        if option.name in _FILES and len(str(value)) > LONG_TEXT:
            words += [_flag(option), f"@{option.name}.txt"]
            notes.append(f"{option.name}.txt holds the {option.name} of {fmt.count(len(str(value)))} characters")
            continue
        words += _words(option, value)
    notes.append("S is the same while models, data and settings are; then the text is the same too")
    return " ".join(_quote(word) for word in words), "; ".join(notes)


def _quote(word: str) -> str:
    """A word for the shell; what cannot be printed is written in the form of bash and zsh, ``$'\\n'``."""
    if fmt.clean(word) == word:
        return shlex.quote(word)
    escaped = "".join(
        char
        if fmt.clean(char) == char and char not in "\\'"
        else f"\\U{ord(char):08x}"
        if ord(char) > 126
        else f"\\x{ord(char):02x}"
        for char in word
    )
    return f"$'{escaped}'"


def _words(option: Option, value: Any) -> Iterator[str]:
    if option.kind == "flag":
        yield _flag(option) if value else _flag(option).replace("--", "--no-", 1)
    elif isinstance(value, list):
        for item in value:
            yield _flag(option)
            text = ":".join(str(part) for part in item) if isinstance(item, list) else str(item)
            yield doubled(text) if option.name == "partition" else text
    else:
        yield _flag(option)
        yield str(value)


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def _defaults() -> dict[str, Any]:
    from specbatch.schemas.spec import JobSpec

    return JobSpec().model_dump(mode="json")


def _lookup(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document
