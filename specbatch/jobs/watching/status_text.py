"""The status of a job as text: for people, as a JSON object, or as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.display.live_layout import time_of_day
from specbatch.schemas.errors import ErrorCode, SpecbatchError

if TYPE_CHECKING:
    from specbatch.jobs.watching.status import StatusReport

STATUS_FORMAT = "specbatch/status/1"
_NUM_NOTES = 4


def render_status(report: StatusReport, format: str) -> str:
    """The status as text for people (``human``) or as one JSON object (``json``, ``jsonl``); ends with a line break.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format in ("json", "jsonl"):
        indent = 2 if format == "json" else None
        return json.dumps({"format": STATUS_FORMAT, **asdict(report)}, indent=indent) + "\n"
    if format != "human":
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of human, json, jsonl")
    lines = [f"{fmt.clean(report.output)}: {report.state}", f"  {fmt.clean(report.detail)}"]
    if report.job_id is not None:
        errors = f", {fmt.plural(report.num_errors, 'error')}" if report.num_errors else ""
        lines.append(f"  {report.describe_progress()}{errors}")
        if speed := _speed(report):
            lines.append(f"  {', '.join(speed)}")
        if report.errors_by_code:
            codes = ", ".join(f"{fmt.clean(code, 40)} {count:,}" for code, count in report.errors_by_code.items())
            lines.append(f"  errors: {codes}")
    for note in report.notes[-_NUM_NOTES:]:
        lines.append(f"  {time_of_day(note['at'])} {fmt.clean(note['message'])}")
    lines.append(f"  next: {fmt.clean(report.next_step)}")
    return "\n".join(lines) + "\n"


def _speed(report: StatusReport) -> list[str]:
    speed = []
    if report.tokens_per_second:
        speed.append(f"{fmt.rate(report.tokens_per_second)} tokens/s")
    if report.acceptance_rate is not None:
        speed.append(f"acceptance {report.acceptance_rate:.2f}")
    if report.mean_emitted is not None:
        speed.append(f"{report.mean_emitted:.2f} tokens per row and round")
    if report.num_workers is not None:
        speed.append(fmt.plural(report.num_workers, "worker"))
    if report.eta_seconds is not None:
        speed.append(f"eta {fmt.clock(report.eta_seconds)}")
    return speed
