"""Settings: layers of values from flags, ``--set``, environment, a YAML file and defaults, resolved to one ``JobSpec``.

Everything here is pure but ``read_job_file``. A setting is known by its path in ``JobSpec`` (``generation.seed``);
what the command line and the environment call it (``--seed``, ``SPECBATCH_SEED``) is in ``options``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from specbatch.jobs.spec.jobfile import parse_yaml, scalar
from specbatch.jobs.spec.options import OPTIONS, PATHS, paths_of
from specbatch.jobs.spec.text_files import read_text_files
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.sampling import MAX_DRAFT_LENGTH, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, MAX_STOP_TOKEN_IDS
from specbatch.schemas.spec import JobSpec

MAX_JOB_FILE_BYTES = 1 << 20
ENV_PREFIX = "SPECBATCH_"
FOREIGN_VARIABLES = frozenset(
    {
        "SPECBATCH_FAILPOINT",
        "SPECBATCH_FAILPOINT_ROW",
        "SPECBATCH_ENGINE_FACTORY",
        "SPECBATCH_DEBUG",
        "SPECBATCH_LOG_FORMAT",
        "SPECBATCH_LOG_LEVEL",
        "SPECBATCH_ALLOW_HTTP",
        "SPECBATCH_STORE_PATIENCE_SECONDS",
        "SPECBATCH_KUBERAY_CRDS",
        "SPECBATCH_NOTIFY_URL",
    }
)
"""Variables with our prefix that are not settings."""

_TEXT_PATHS = paths_of("text", "choice")
_LIST_PATHS = paths_of("scalars") | {"input.datasets"}
_VERBATIM_LIST_PATHS = paths_of("texts")
"""Lists whose items may hold commas and spaces: a text is one item, unless it is a list in JSON."""
_RULES = {
    "results.prefix": "at most 64 letters, digits, dots, dashes and underscores",
    "execution.speculation": f"auto, off, or a fixed K from 1 to {MAX_DRAFT_LENGTH}",
    "execution.workers": "auto, or a whole number from 1 to 10000",
    "execution.batch_size": "auto, or a whole number from 1 to 4096",
    "execution.shard_rows": "auto, or a whole number from 1 to 1000000",
    "generation.logit_bias": "a list of ID:BIAS, each id of 0 or more once, each bias from -100 to 100",
    "generation.stop": f"a list of at most {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_CHARACTERS} characters",
    "generation.stop_token_ids": f"a list of at most {MAX_STOP_TOKEN_IDS} token ids, each 0 or more",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """Values of one source. ``origins`` says for each path where exactly its value stands (``--seed``)."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Settings:
    """The resolved spec and, for each path of ``PATHS``, where its value came from."""

    spec: JobSpec
    origins: Mapping[str, str]

    def rows(self) -> tuple[tuple[str, Any, str], ...]:
        """(path, value, origin) of every setting, in the order of ``PATHS``."""
        document = self.spec.model_dump(mode="json")
        return tuple((path, _lookup(document, path), self.origins[path]) for path in PATHS)


def resolve(layers: Iterable[Layer]) -> Settings:
    """The spec of layers in falling precedence: the first layer that names a path decides it.

    Raises:
        SpecbatchError: JOB_CONFIG naming path, value, origin and rule of the first value that does not fit; or saying
            which two settings contradict each other.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(PATHS, "default")
    for layer in layers:
        for path, value in layer.values.items():
            if path not in values:
                values[path] = value
                origins[path] = layer.origins[path]
    document: dict[str, Any] = {}
    for path, value in values.items():
        _place(document, path, value)
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        raise _config_error(error, values, origins) from None
    spec.generation.sampling_params(seed=0)  # settings that contradict each other are refused here, not in a worker
    return Settings(spec=spec, origins=MappingProxyType(origins))


def flag_layer(options: Mapping[str, Any], datasets: Sequence[str] = (), *, spelling: str = "--{}") -> Layer:
    """Values given on the command line, or as keyword arguments where ``spelling`` is ``"{}="``.

    Raises:
        SpecbatchError: JOB_CONFIG for a name that is no option.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in options.items():
        if name not in OPTIONS:
            raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{name!r} is not a setting; {_suggest(name, OPTIONS)}")
        path = OPTIONS[name]
        values[path] = from_text(path, value) if isinstance(value, str) else value
        origins[path] = spelling.format(name.replace("_", "-") if spelling.startswith("--") else name)
    if datasets:
        values["input.datasets"] = list(datasets)
        origins["input.datasets"] = "argument"
    return Layer(values, origins)


def set_layer(assignments: Sequence[str]) -> Layer:
    """Values of ``--set a.b=c``; of two for one path the later holds.

    Raises:
        SpecbatchError: JOB_CONFIG for a missing ``=`` or an unknown path.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"--set {assignment}: write it as path=value, such as --set generation.seed=1"
            )
        _check_path(path, f"--set {assignment}")
        values[path] = from_text(path, text)
    return Layer(values, dict.fromkeys(values, "--set"))


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Values of ``SPECBATCH_<OPTION>`` variables; an empty one counts as not set.

    Raises:
        SpecbatchError: JOB_CONFIG for a variable with our prefix that names no option: a misspelt setting
            must not be ignored.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in FOREIGN_VARIABLES or not text:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in OPTIONS:
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG,
                f"environment variable {variable} is not a setting; {_suggest(name, OPTIONS, ENV_PREFIX, upper=True)}",
            )
        path = OPTIONS[name]
        values[path] = from_text(path, text)
        origins[path] = variable
    return Layer(values, origins)


def with_text_files(layer: Layer, folder: Path = Path()) -> Layer:
    """The layer with ``@FILE`` replaced by the text of the file; names are relative to ``folder``.

    Raises:
        SpecbatchError: JOB_CONFIG, a file cannot be read.
    """
    return Layer(read_text_files(layer.values, layer.origins, folder), layer.origins)


def read_job_file(path: Path) -> Layer:
    """Values of a YAML job file; files that it names are looked for beside it.

    Raises:
        SpecbatchError: JOB_CONFIG where the file cannot be read, is not plain YAML or names an unknown path.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JOB_FILE_BYTES + 1)
    except OSError as error:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--config {path}: {error.strerror or error}") from None
    if len(data) > MAX_JOB_FILE_BYTES:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--config {path}: larger than {MAX_JOB_FILE_BYTES} bytes")
    return with_text_files(file_layer(data, str(path)), path.parent)


def file_layer(data: bytes, name: str) -> Layer:
    """Values of the bytes of a job file; ``name`` is used in messages and as the origin."""
    document = parse_yaml(data, name)
    if document is None:
        return Layer({}, {})
    if not isinstance(document, dict):
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--config {name}: it must hold sections such as generation:")
    values: dict[str, Any] = {}
    for section, content in document.items():
        if section in PATHS:
            values[str(section)] = content
            continue
        if not any(path.startswith(f"{section}.") for path in PATHS):
            _check_path(str(section), f"--config {name}")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise SpecbatchError(
                ErrorCode.JOB_CONFIG, f"--config {name}: {section} must hold settings, not {content!r}"
            )
        for key, value in content.items():
            path = f"{section}.{key}"
            _check_path(path, f"--config {name}")
            values[path] = value
    return Layer(values, dict.fromkeys(values, name))


def from_text(path: str, text: str) -> Any:
    """The value that a text from a shell stands for: text settings stay text, others are read as YAML scalars."""
    if path in _TEXT_PATHS:
        return text
    if path in _VERBATIM_LIST_PATHS:
        return _json_list(text) or [text]
    if path in _LIST_PATHS:
        items = [item.strip() for item in text.strip().removeprefix("[").removesuffix("]").split(",")]
        return [scalar(item) if path != "input.datasets" else item for item in items if item]
    return scalar(text)


def to_texts(path: str, value: Any) -> list[str]:
    """What to type behind an option for a value, once for each item of a list."""
    if path == "generation.logit_bias":
        return [f"{token}:{bias:g}" for token, bias in value]
    return [str(item) for item in (value if isinstance(value, tuple) else (value,))]


def _json_list(text: str) -> list[Any] | None:
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if isinstance(items, list) else None


def _check_path(path: str, where: str) -> None:
    if path not in PATHS:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{where}: {path} is not a setting; {_suggest(path, PATHS)}")


def _suggest(name: str, known: Iterable[str], prefix: str = "", *, upper: bool = False) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    if not close:
        return "specbatch config show lists them"
    return f"did you mean {prefix}{close[0].upper() if upper else close[0]}?"


def _place(document: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[key] = value


def _lookup(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value[key]
    return value


def _config_error(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> SpecbatchError:
    """One line for the first wrong value: path, value, origin, rule."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    path = next((known for known in PATHS if location[: known.count(".") + 1] == known.split(".")), ".".join(location))
    value = values.get(path, first["input"])
    rule = _RULES.get(path) or first["msg"].removeprefix("Value error, must be ").removeprefix("Input should be ")
    shown = f"a text of {len(value)} characters" if isinstance(value, str) and len(value) > 200 else repr(value)
    return SpecbatchError(
        ErrorCode.JOB_CONFIG, f"{path} is {shown} (from {origins.get(path, 'default')}); it must be {rule}"
    )
