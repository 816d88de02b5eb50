"""JSON schemas of what specbatch prints for programs and stores for readers, made from the types behind it.

``docs/schemas/`` is written from here. Programs may rely on the fields that a schema names. Others may join them within
one version of a format, so the published schemas allow more. In a job file, though, unknown settings are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from specbatch.jobs.calibration.text import CALIBRATION_FORMAT
from specbatch.jobs.cli import schema_before as before
from specbatch.jobs.cli import schema_reports as reports
from specbatch.jobs.cli import schema_runs as runs
from specbatch.jobs.export.export import Exported
from specbatch.jobs.planning.preview import PREVIEW_FORMAT
from specbatch.jobs.planning.text import PLAN_FORMAT, SETTINGS_FORMAT
from specbatch.jobs.profiles.store import PROFILE_FORMAT, Profile
from specbatch.jobs.reports.document import REPORT_FORMAT
from specbatch.jobs.running.notify import NOTICE_FORMAT, Notice
from specbatch.jobs.schedules.listing import SCHEDULES_FORMAT, ScheduleList
from specbatch.jobs.spec.jobfile_schema import DIALECT, job_schema
from specbatch.jobs.upkeep.doctor import DOCTOR_FORMAT
from specbatch.jobs.upkeep.gc import GcReport
from specbatch.jobs.verify.verify import VERIFY_FORMAT, VerifyReport
from specbatch.jobs.watching.listing import LIST_FORMAT, JobList
from specbatch.jobs.watching.status import StatusReport
from specbatch.jobs.watching.status_text import STATUS_FORMAT
from specbatch.schemas.manifest import MANIFEST_FORMAT, Manifest

_ENTRY = re.compile(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Published:
    """One schema.

    Attributes:
        made_by: how its documents come to be, in Markdown.
        format: what their field ``format`` holds; None where they have none.
    """

    made_by: str
    format: str | None
    make: Callable[[], dict[str, Any]]


def schemas() -> dict[str, dict[str, Any]]:
    """Every published schema, by name."""
    return {name: published.make() for name, published in PUBLISHED.items()}


def reference_page() -> str:
    """The page of the documents that lists the schemas."""
    lines = [_PAGE]
    for name, published in PUBLISHED.items():
        format = f"`{published.format}`" if published.format else ""
        lines.append(f"| {published.made_by} | {format} | [{name}](../schemas/{name}.schema.json) |\n")
    return "".join(lines)


def _printed(title: str, type_: Any, format: str | None = None) -> Callable[[], dict[str, Any]]:
    """The schema of a document as this version prints it: every field is there."""
    return lambda: _finish(title, TypeAdapter(type_).json_schema(mode="serialization"), format)


def _kept(title: str, type_: Any, format: str) -> Callable[[], dict[str, Any]]:
    """The schema of a document that older versions may have stored: fields that joined later may be missing."""
    return lambda: _finish(title, TypeAdapter(type_).json_schema(mode="validation"), format)


def _report() -> dict[str, Any]:
    """The report shows all of a commit but its list of parts, and has amendments only where there are any.

    Why a job is not complete stands only in the report of one that is not.
    """
    schema = _printed("Report", reports.ReportDocument, REPORT_FORMAT)()
    reported = schema["$defs"]["ReportedOutput"]
    reported["properties"] = {name: value for name, value in reported["properties"].items() if name != "parts"}
    reported["properties"]["amendments"] = {"$ref": "#/$defs/AmendmentsSummary"}
    reported["required"] = [name for name in reported["required"] if name != "parts"]
    reported["properties"]["unfinished"] = {"$ref": "#/$defs/UnfinishedDocument"}
    for optional in (reports.AmendmentsSummary, reports.UnfinishedDocument):
        described = _clean(TypeAdapter(optional).json_schema())
        schema["$defs"] |= described.pop("$defs", {})
        schema["$defs"][optional.__name__] = described
    return schema


def _finish(title: str, schema: Mapping[str, Any], format: str | None) -> dict[str, Any]:
    cleaned = _clean(schema)
    if format is not None:
        others = {name: value for name, value in cleaned["properties"].items() if name != "format"}
        cleaned["properties"] = {"format": {"const": format, "type": "string"}, **others}
        cleaned["required"] = ["format", *(name for name in cleaned.get("required", ()) if name != "format")]
    return {"$schema": DIALECT, "title": title, **cleaned}


def _clean(schema: Any) -> Any:
    """Without titles of fields and without a ban on more fields, and with what docstrings say of fields."""
    if isinstance(schema, list):
        return [_clean(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    cleaned = {
        key: {name: _clean(value) for name, value in content.items()}
        if key in ("properties", "$defs")
        else _clean(content)
        for key, content in schema.items()
        if key != "title" and not (key == "additionalProperties" and content is False)
    }
    if isinstance(text := cleaned.get("description"), str):
        about, _, entries = text.replace("``", "`").partition("\nAttributes:\n")
        cleaned["description"] = " ".join(about.split())
        for names, says in _ENTRY.findall(entries):
            for name in names.split(", "):
                if name in cleaned.get("properties", {}):
                    described = {"description": " ".join(says.split()), **cleaned["properties"][name]}
                    cleaned["properties"][name] = described
    return cleaned


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "job": Published("a job file, for `--config`; `specbatch config schema` prints it", None, job_schema),
        "settings": Published(
            "`specbatch config show --format json`",
            SETTINGS_FORMAT,
            _printed("Settings", before.SettingsDocument, SETTINGS_FORMAT),
        ),
        "plan": Published(
            "`specbatch plan --format json`, `submit --dry-run --format json`",
            PLAN_FORMAT,
            _printed("Plan", before.PlanDocument, PLAN_FORMAT),
        ),
        "preview": Published(
            "`specbatch preview --format json`",
            PREVIEW_FORMAT,
            _printed("Preview", before.PreviewDocument, PREVIEW_FORMAT),
        ),
        "calibration": Published(
            "`specbatch calibrate --format json`",
            CALIBRATION_FORMAT,
            _printed("Calibration", before.CalibrationDocument, CALIBRATION_FORMAT),
        ),
        "profile": Published(
            "what `calibrate` keeps, for `--profile`", PROFILE_FORMAT, _kept("Profile", Profile, PROFILE_FORMAT)
        ),
        "outcome": Published(
            "`--format json` of `submit`, `resume`, `retry-failed`, `repair`",
            None,
            _printed("Outcome of a run", runs.OutcomeDocument),
        ),
        "event": Published(
            "a line of `--format jsonl` of `submit`, `resume`, `retry-failed`, `repair`",
            None,
            _printed("Event of a run", runs.ProgressEvent | runs.NoteEvent | runs.EndEvent),
        ),
        "list": Published("`specbatch list --format json`", LIST_FORMAT, _printed("Jobs", JobList, LIST_FORMAT)),
        "schedules": Published(
            "`specbatch schedule list --format json`",
            SCHEDULES_FORMAT,
            _printed("Schedules", ScheduleList, SCHEDULES_FORMAT),
        ),
        "notice": Published(
            "what `--notify` posts at the end of a run", NOTICE_FORMAT, _printed("Notice", Notice, NOTICE_FORMAT)
        ),
        "status": Published(
            "`specbatch status --format json`; one a line with `--watch --format jsonl`",
            STATUS_FORMAT,
            _printed("Status", StatusReport, STATUS_FORMAT),
        ),
        "report": Published(
            "`specbatch report --format json`",
            REPORT_FORMAT,
            _report,
        ),
        "verify": Published(
            "`specbatch verify --format json`",
            VERIFY_FORMAT,
            _printed("Verdict", VerifyReport, VERIFY_FORMAT),
        ),
        "export": Published("`specbatch export --format json`", None, _printed("Export", Exported)),
        "gc": Published("`specbatch gc --format json`", None, _printed("Garbage collection", GcReport)),
        "doctor": Published(
            "`specbatch doctor --format json`",
            DOCTOR_FORMAT,
            _printed("Findings", runs.DoctorDocument, DOCTOR_FORMAT),
        ),
        "manifest": Published("`OUT/manifest.json`", MANIFEST_FORMAT, _kept("Manifest", Manifest, MANIFEST_FORMAT)),
    }
)

_PAGE = """\
# Formats for programs

What `--format json` prints and what stands in an output, with a [JSON schema](https://json-schema.org) for each. A
document names its format and version in the field `format`, where it has one. Within a version fields may join, none
changes or goes away: ignore what you do not know. Tests hold real documents against these schemas.

An editor with a YAML language server checks and completes a job file that begins with

```yaml
# yaml-language-server: $schema=job.schema.json
```

where `specbatch config schema > job.schema.json` wrote the file beside it.

| document | `format` | schema |
|---|---|---|
"""
