"""What ``plan``, ``submit --dry-run`` and ``config show`` print: the resolved settings and what would be done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.ledger import Ledger, check_same_job
from specbatch.jobs.planning.destination import why_unwritable
from specbatch.jobs.planning.memory_text import memory_document, memory_lines
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.planning.scan_text import forecast_lines, scan_lines
from specbatch.jobs.planning.scan_values import Scan, scan_document
from specbatch.jobs.profiles.forecast import Forecast
from specbatch.jobs.profiles.use import forecast_job, profile_notes
from specbatch.jobs.spec.settings import Settings, to_texts
from specbatch.schemas.plan import Shard
from specbatch.schemas.spec import Speculation
from specbatch.specdec.models.folders import ModelFolder
from specbatch.storage.store import open_store

PLAN_FORMAT = "specbatch/plan-summary/1"
SETTINGS_FORMAT = "specbatch/settings/1"


def render_settings(settings: Settings, format: str) -> str:
    """Every setting with its value and where it came from, as text (``human``) or ``json``."""
    if format == "json":
        return _json({"format": SETTINGS_FORMAT, "settings": _settings_document(settings)})
    return "\n".join(_settings_lines(settings)) + "\n"


def render_plan(prepared: PreparedJob, format: str, found: Scan | None = None) -> str:
    """The settings, and the plan that they lead to.

    Args:
        found: a look at the prompts; None where none was wanted.

    Raises:
        SpecbatchError: the output holds something else, or a job of other settings.
    """
    state, obstacle = _output_state(prepared)
    expected = forecast_job(prepared, found)
    if format == "json":
        return _json(_plan_document(prepared, state, obstacle, found, expected))
    execution = prepared.execution
    num_rows = sum(shard.num_rows for shard in prepared.shards)
    draft = execution.draft
    num_samples = prepared.spec.generation.num_samples
    samples = f", {num_samples} samples each" if num_samples > 1 else ""
    summary = {
        "output": f"{fmt.clean(prepared.output)} ({state}{_obstacle_text(obstacle)})",
        "input": f"{fmt.plural(len(prepared.inputs), 'file')}, {fmt.plural(num_rows, 'row')}{samples}",
        "plan": _shards_text(prepared.shards),
        "target": _model_text(prepared.target),
        "draft": "none" if draft is None else _model_text(draft),
        "speculation": _speculation_text(execution.speculation),
        "workers": f"{execution.num_workers} on {execution.device}, {execution.dtype}, batch {execution.batch_size}"
        + (f", {fmt.plural(execution.num_threads, 'thread')} each" if execution.device == "cpu" else ""),
        "identity": f"S {prepared.identity.S[:16]}  P {prepared.identity.P}",
    }
    lines = [f"{name:<12} {value}" for name, value in summary.items()]
    sections = [
        lines,
        ["prompts      not looked at (--scan none)"] if found is None else _scan_lines(prepared, found),
        [*_profile_lines(prepared), *_forecast_lines(prepared, expected)],
        memory_lines(execution),
        _settings_lines(prepared.settings),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _scan_lines(prepared: PreparedJob, found: Scan) -> list[str]:
    spec = prepared.spec
    return scan_lines(found, is_cut=spec.input.truncate_prompt != "error", max_error_rate=spec.execution.max_error_rate)


def _profile_lines(prepared: PreparedJob) -> list[str]:
    used = prepared.execution.profile
    if used is None:
        return []
    taken = "the forecast" if used.batch_size is None else f"batch {used.batch_size} and the forecast"
    return [f"profile      {used.profile.key}, measured {used.profile.made_at}; taken from it: {taken}"]


def _forecast_lines(prepared: PreparedJob, expected: Forecast | None) -> list[str]:
    if expected is None:
        return ["forecast     none: run specbatch calibrate for a forecast"]
    return forecast_lines(expected, profile_notes(prepared))


def _shards_text(shards: Sequence[Shard]) -> str:
    if not shards:
        return "no shards: there is nothing to decode"
    sizes = sorted({shard.num_rows for shard in shards})
    rows = fmt.count(sizes[0]) if len(sizes) == 1 else f"{fmt.count(sizes[0])} to {fmt.count(sizes[-1])}"
    return f"{fmt.plural(len(shards), 'shard')} of {rows} rows, one part each"


def _output_state(prepared: PreparedJob) -> tuple[str, str | None]:
    """``new``, ``complete``, or how far the job is; and why its output cannot be written where it still must be."""
    ledger = Ledger(open_store(prepared.output))
    stored = ledger.find_job()
    if stored is None:
        return "new", why_unwritable(prepared.output)
    check_same_job(stored, prepared.identity, prepared.output)
    if ledger.find_manifest() is not None:
        return "complete", None
    state = f"{len(ledger.find_parts(stored))} of {len(stored.shards)} parts are there"
    return state, why_unwritable(prepared.output)


def _obstacle_text(obstacle: str | None) -> str:
    return "" if obstacle is None else f"; cannot be written: {fmt.clean(obstacle)}"


def _plan_document(
    prepared: PreparedJob, state: str, obstacle: str | None, found: Scan | None, expected: Forecast | None
) -> dict[str, Any]:
    used = prepared.execution.profile
    return {
        "format": PLAN_FORMAT,
        "output": prepared.output,
        "state": state,
        "unwritable": obstacle,
        "identity": {"S": prepared.identity.S, "P": prepared.identity.P},
        "settings": _settings_document(prepared.settings),
        "execution": prepared.execution_document(),
        "memory": memory_document(prepared.execution),
        "models": prepared.models.model_dump(mode="json"),
        "inputs": [
            {"name": file.name, "path": file.path, "rows": file.num_rows, "bytes": file.size_bytes}
            for file in prepared.inputs
        ],
        "rows": sum(shard.num_rows for shard in prepared.shards),
        "scan": None if found is None else scan_document(found),
        "profile": None if used is None else {**used.document(), "notes": list(profile_notes(prepared))},
        "forecast": None if expected is None else expected.document(),
        "shards": [
            {"shard": shard.index, "row_start": shard.row_start, "row_stop": shard.row_stop}
            for shard in prepared.shards
        ],
    }


def _settings_document(settings: Settings) -> dict[str, dict[str, Any]]:
    return {path: {"value": value, "origin": origin} for path, value, origin in settings.rows()}


def _settings_lines(settings: Settings) -> list[str]:
    table = [("setting", "value", "from")]
    table += [(path, _value_text(path, value), fmt.clean(origin)) for path, value, origin in settings.rows()]
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    return [f"{path:<{widths[0]}}  {value:<{widths[1]}}  {origin}".rstrip() for path, value, origin in table]


def _value_text(path: str, value: Any) -> str:
    if path == "generation.stop":
        return fmt.clean(", ".join(map(repr, value))) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return fmt.clean(", ".join(to_texts(path, tuple(value)))) or "-"
    return "-" if value is None else fmt.clean(str(value).lower() if isinstance(value, bool) else str(value))


def _model_text(folder: ModelFolder) -> str:
    quantized = "" if folder.quantization is None else f", quantized: {folder.quantization.describe()}"
    return f"{fmt.clean(folder.name)} ({fmt.parameters(folder.parameters)} parameters{quantized})"


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _speculation_text(speculation: Speculation) -> str:
    if speculation == "auto":
        return "auto: K is chosen by measurement, 0 included"
    return "off" if speculation == "off" else f"K {speculation}"
