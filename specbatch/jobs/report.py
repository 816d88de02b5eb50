"""``specbatch report``: what one job did, or several side by side. A pure function of manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from specbatch.jobs.comparison import Comparison, compare
from specbatch.jobs.manifest import MANIFEST_NAME, decode_manifest
from specbatch.jobs.report_tables import render_csv, render_markdown
from specbatch.jobs.report_text import render_human
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest

REPORT_FORMAT = "specbatch/report/1"


def load_manifest(output: str) -> Manifest:
    """The manifest of a finished job.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, nothing there or no job; ``JOB_INCOMPLETE``, a job without a manifest
            yet, with how far it is; ``JOB_FORMAT``, not a manifest that this version reads; ``JOB_URI_INVALID``.
    """
    from specbatch.jobs.status import read_status
    from specbatch.storage.store import NotFound, open_store

    try:
        return decode_manifest(open_store(output).read(MANIFEST_NAME))
    except NotFound:
        status = read_status(output)
    if status.state == "not a job":
        raise SpecbatchError(
            ErrorCode.JOB_OUTPUT_MISSING,
            f"{output} is no output of specbatch: it has no _specbatch/job.json; "
            "give the folder that `specbatch submit` named",
        )
    raise SpecbatchError(
        ErrorCode.JOB_INCOMPLETE,
        f"{output} has no manifest yet: {status.describe_progress()}; {status.next_step}",
    )


def render(manifests: Sequence[tuple[str, Manifest]], format: str) -> str:
    """The report of one output, or the comparison of several with the first as the base.

    Args:
        manifests: pairs (output as the user named it, manifest); at least one.
        format: ``human``, ``json``, ``markdown`` or ``csv``.

    Returns:
        Text that ends with a line break; never with terminal escapes.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    renderers: dict[str, Callable[[Sequence[tuple[str, Manifest]], Comparison | None], str]] = {
        "human": render_human,
        "json": _render_json,
        "markdown": render_markdown,
        "csv": render_csv,
    }
    if format not in renderers:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of {', '.join(renderers)}")
    comparison = compare([manifest for _, manifest in manifests]) if len(manifests) > 1 else None
    return renderers[format](manifests, comparison)


def _render_json(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison | None) -> str:
    document = {
        "format": REPORT_FORMAT,
        "outputs": [_output_document(output, manifest) for output, manifest in manifests],
        "comparison": _comparison_document(manifests, comparison) if comparison else None,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _output_document(output: str, manifest: Manifest) -> dict[str, Any]:
    commit = manifest.commit.model_dump(mode="json", exclude={"parts"})
    observed = manifest.observed.model_dump(mode="json")
    root = output.rstrip("/")
    return {
        "output": output,
        "job_id": manifest.job_id,
        "identity": {"S": manifest.identity.S, "P": manifest.identity.P},
        "models": manifest.models.model_dump(mode="json"),
        **commit,
        "num_parts": len(manifest.commit.parts),
        **observed,
        "paths": {"data": f"{root}/data/*.parquet", "manifest": f"{root}/{MANIFEST_NAME}"},
    }


def _comparison_document(manifests: Sequence[tuple[str, Manifest]], comparison: Comparison) -> dict[str, Any]:
    return {
        "base": manifests[0][0],
        "tokens_per_second_ratios": list(comparison.ratios),
        "fastest": manifests[comparison.fastest][0],
        "regressions": [manifests[index][0] for index in comparison.regressions],
        "same_text_by_contract": comparison.same_text,
        "identity_differences": list(comparison.differences),
        "caveats": list(comparison.caveats),
    }
