"""The report as JSON: ``specbatch/report/1``. Keys are only ever added; numbers are as measured, not as shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from specbatch.jobs.output.amended import amended_counts
from specbatch.jobs.output.manifest import MANIFEST_NAME
from specbatch.jobs.reports.command import reproduce
from specbatch.jobs.reports.comparison import METRICS, Comparison
from specbatch.jobs.reports.facts import cost_per_million, error_rate, skipped_files
from specbatch.jobs.reports.nights import Nights, thresholds
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.jobs.reports.verdict import judge
from specbatch.schemas.manifest import Manifest

REPORT_FORMAT = "specbatch/report/1"


def render_json(
    nights: Nights,
    comparison: Comparison | None,
    amendments: Sequence[Sequence[Manifest]],
    endings: Sequence[Unfinished | None],
) -> str:
    """``{format, outputs: [...], comparison}``: each output with its verdict, the commit and what was observed.

    ``comparison`` is None for one output. An output with amendments has ``amendments: {number, counts}`` besides, one
    without a manifest ``unfinished``.
    """
    document = {
        "format": REPORT_FORMAT,
        "outputs": [
            _output(*pair, chain, ending) for pair, chain, ending in zip(nights, amendments, endings, strict=True)
        ],
        "comparison": _comparison(nights, comparison) if comparison else None,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _output(
    output: str, manifest: Manifest, amendments: Sequence[Manifest], unfinished: Unfinished | None
) -> dict[str, Any]:
    commit = manifest.commit.model_dump(mode="json", exclude={"parts"})
    observed = manifest.observed.model_dump(mode="json")
    root, parts = output.rstrip("/"), manifest.commit.parts
    document = {
        "output": output,
        "job_id": manifest.job_id,
        "verdict": asdict(judge(manifest, amendments, unfinished)),
        "identity": {"S": manifest.identity.S, "P": manifest.identity.P},
        "models": manifest.models.model_dump(mode="json"),
        **commit,
        "num_parts": len(parts),
        "parts_bytes": sum(part.bytes for part in parts),
        "error_rate": error_rate(manifest),
        "cost_per_million_tokens": cost_per_million(manifest),
        **observed,
        "skipped_files": [{"name": name, "code": code} for name, code in skipped_files(manifest)],
        "command": reproduce(manifest, output)[0] or None,
        "paths": {
            "data": f"{root}/data/*.parquet",
            "manifest": f"{root}/{MANIFEST_NAME}" if unfinished is None else None,
        },
    }
    if unfinished is not None:
        document["unfinished"] = _unfinished(unfinished)
    if amendments:
        counts = amended_counts(manifest, amendments).model_dump(mode="json")
        document["amendments"] = {"number": len(amendments), "counts": counts}
    return document


def _unfinished(found: Unfinished) -> dict[str, Any]:
    return {
        "standing": found.standing,
        "cause": found.cause,
        "exit_codes": list(found.exit_codes),
        "epoch": found.epoch,
        "outcome": found.outcome,
        "code": found.code,
        "message": found.message,
        "last_seen_at": found.seen_at,
        "num_rows": found.num_rows,
        "rows_done": found.rows_done,
        "rows_in_flight": found.rows_in_flight,
        "num_rows_left": found.num_rows_left,
        "num_parts": found.num_parts,
        "parts_done": found.parts_done,
        "remaining_seconds": found.remaining_seconds,
        "remaining_from": found.remaining_from,
        "errors_by_code": dict(found.errors_by_code),
        "error_rows": {code: list(rows) for code, rows in found.error_rows.items()},
        "log": [asdict(line) for line in found.log],
        "next_command": found.next_command,
    }


def _comparison(nights: Nights, comparison: Comparison) -> dict[str, Any]:
    return {
        "base": nights[0][0],
        "tokens_per_second_ratios": list(comparison.ratios),
        "fastest": nights[comparison.fastest][0],
        "regressions": [nights[index][0] for index in comparison.regressions],
        "same_text_by_contract": comparison.same_text,
        "identity_differences": list(comparison.differences),
        "caveats": list(comparison.caveats),
        "comparable": list(comparison.is_comparable),
        "changes": [
            {
                "output": nights[index][0],
                "figure": delta.metric.key,
                "is_relative": delta.metric.is_relative,
                "base": delta.base,
                "value": delta.value,
                "change": delta.change,
                "noise": delta.noise,
                "standing": delta.standing if comparison.is_comparable[index] else "not comparable",
            }
            for index, deltas in enumerate(comparison.deltas)
            if index
            for delta in deltas
        ],
        "thresholds": [
            {"figure": metric.key, "threshold": metric.threshold, "rule": rule}
            for metric, rule in zip(METRICS, thresholds(), strict=True)
        ],
    }
