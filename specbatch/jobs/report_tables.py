"""The report as CSV (for spreadsheets and history files) and as Markdown (for pull requests and tickets)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from specbatch.jobs import formatting as fmt
from specbatch.jobs.comparison import Comparison
from specbatch.jobs.report_text import conclusions, describe_speculation, describe_speedup, draft_name, num_workers
from specbatch.schemas.manifest import Manifest

CSV_COLUMNS: tuple[str, ...] = (
    "output",
    "job_id",
    "identity_S",
    "plan_P",
    "target",
    "draft",
    "speculation",
    "batch_size",
    "workers",
    "device",
    "rows",
    "results",
    "ok",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "draft_tokens",
    "accepted_tokens",
    "acceptance_rate",
    "mean_accepted",
    "mean_emitted",
    "near_ties",
    "wall_seconds",
    "total_seconds",
    "output_tokens_per_second",
    "rows_per_second",
    "idle_share",
    "tokens_per_second_vs_first",
    "speedup_baseline",
    "speedup_ratio",
    "speedup_low",
    "speedup_high",
    "num_plain_rounds",
    "num_spec_rounds",
    "propose_seconds",
    "score_seconds",
    "accept_seconds",
    "host_seconds",
    "prefill_seconds",
    "load_seconds",
    "write_seconds",
    "runs",
    "attempts",
    "restarts",
)
"""Header of the CSV form. Columns are only ever added at the end."""


def render_csv(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison | None) -> str:
    """One line per output below a fixed header; an empty field is a value that does not exist."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for index, (output, manifest) in enumerate(manifests):
        values = _csv_values(output, manifest)
        values["tokens_per_second_vs_first"] = comparison.ratios[index] if comparison else None
        writer.writerow([_csv_field(values[column]) for column in CSV_COLUMNS])
    return text.getvalue()


def render_markdown(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison | None) -> str:
    """A table with one column per output, the first one the base, and the conclusions as a list."""
    ratios = comparison.ratios if comparison else (None,)
    columns = [_markdown_column(*pair, ratio) for pair, ratio in zip(manifests, ratios, strict=True)]
    header = [f"[{index + 1}]" for index in range(len(columns))] if comparison else ["value"]
    lines = ["# specbatch report", "", _markdown_row(["", *header]), _markdown_row(["---"] * (len(columns) + 1))]
    lines += [_markdown_row([label, *(column[label] for column in columns)]) for label in columns[0]]
    if comparison:
        lines += ["", *(f"- {_escape(sentence)}" for sentence in conclusions(manifests, comparison))]
    return "\n".join(lines) + "\n"


def _csv_values(output: str, manifest: Manifest) -> dict[str, Any]:
    commit, observed = manifest.commit, manifest.observed
    return {
        "output": output,
        "job_id": manifest.job_id,
        "identity_S": manifest.identity.S,
        "plan_P": manifest.identity.P,
        "target": manifest.models.target.name,
        "draft": manifest.models.draft.name if manifest.models.draft else "none",
        "speculation": describe_speculation(manifest),
        "batch_size": observed.execution.get("batch_size"),
        "workers": num_workers(manifest),
        "device": ",".join(sorted({str(item.get("device")) for item in observed.throughput.per_worker})),
        "rows": commit.counts.rows,
        "results": commit.counts.results,
        "ok": commit.counts.ok,
        "errors": commit.counts.errors,
        "prompt_tokens": commit.tokens.prompt,
        "completion_tokens": commit.tokens.completion,
        "draft_tokens": commit.tokens.draft,
        "accepted_tokens": commit.tokens.accepted,
        "acceptance_rate": commit.acceptance.rate,
        "mean_accepted": commit.acceptance.mean_accepted,
        "mean_emitted": commit.acceptance.mean_emitted,
        "near_ties": commit.near_ties,
        "wall_seconds": observed.throughput.wall_seconds,
        "total_seconds": observed.throughput.total_seconds,
        "output_tokens_per_second": observed.throughput.output_tokens_per_second,
        "rows_per_second": observed.throughput.rows_per_second,
        "idle_share": observed.throughput.idle_share,
        "speedup_baseline": observed.speedup.baseline,
        "speedup_ratio": observed.speedup.ratio,
        "speedup_low": observed.speedup.low,
        "speedup_high": observed.speedup.high,
        "num_plain_rounds": observed.speedup.num_plain_rounds,
        "num_spec_rounds": observed.speedup.num_spec_rounds,
        **{f"{phase}_seconds": value for phase, value in commit.seconds.model_dump().items()},
        "runs": observed.runs,
        "attempts": observed.attempts,
        "restarts": observed.restarts,
    }


def _csv_field(value: Any) -> str:
    """Six significant digits; text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = fmt.clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _markdown_column(output: str, manifest: Manifest, ratio: float | None) -> dict[str, str]:
    commit, throughput = manifest.commit, manifest.observed.throughput
    acceptance = commit.acceptance
    by_code = ", ".join(f"{code} {count:,}" for code, count in sorted(commit.counts.errors_by_code.items()))
    phases: dict[str, float] = commit.seconds.model_dump()
    return {
        "output": output,
        "target": manifest.models.target.name,
        "draft": draft_name(manifest),
        "K": describe_speculation(manifest),
        "rows": f"{commit.counts.rows:,}",
        "errors": f"{commit.counts.errors:,}" + (f" ({by_code})" if by_code else ""),
        "output tokens": f"{commit.tokens.completion:,}",
        "tokens/s": fmt.rate(throughput.output_tokens_per_second) + (f" ({ratio:.2f}x)" if ratio else ""),
        "wall time": fmt.seconds(throughput.wall_seconds),
        "acceptance": fmt.percent(acceptance.rate),
        "tokens per row and round": "-" if acceptance.mean_emitted is None else f"{acceptance.mean_emitted:.2f}",
        "measured speed-up": describe_speedup(manifest.observed.speedup),
        "seconds by phase": ", ".join(f"{name} {fmt.rate(value)}" for name, value in phases.items()),
    }


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    cleaned = fmt.clean(text).replace("\\", "\\\\")
    for char in "|<>`*_":
        cleaned = cleaned.replace(char, f"\\{char}")
    return cleaned
