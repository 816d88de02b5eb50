"""``specbatch report``: what one job did, or several side by side. A pure function of manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from specbatch.jobs import formatting as fmt
from specbatch.jobs.amended import amended_counts, read_amendments
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


def load_amendments(output: str) -> tuple[Manifest, ...]:
    """Manifests of the finished amendments of a finished job, in order.

    Raises:
        SpecbatchError: ``JOB_INTEGRITY``, one amends another manifest; ``JOB_FORMAT``, ``JOB_URI_INVALID``.
    """
    from specbatch.storage.store import open_store

    return read_amendments(open_store(output))


def render(
    manifests: Sequence[tuple[str, Manifest]], format: str, amendments: Sequence[Sequence[Manifest]] = ()
) -> str:
    """The report of one output, or the comparison of several with the first as the base.

    Args:
        manifests: pairs (output as the user named it, manifest); at least one.
        format: ``human``, ``json``, ``markdown`` or ``csv``.
        amendments: for each output the manifests of its amendments. They are told apart from the job itself, whose
            figures stay as they are; ``csv`` leaves them out.

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
    text = renderers[format](manifests, comparison)
    amended = [(*pair, chain) for pair, chain in zip(manifests, amendments, strict=False) if chain]
    if not amended or format == "csv":
        return text
    if format == "json":
        return _add_to_json(text, manifests, amendments)
    title = "## Amendments\n" if format == "markdown" else "Amendments"
    bullet = "- " if format == "markdown" else "  "
    lines = [bullet + _amended_line(output, manifest, chain) for output, manifest, chain in amended]
    return "\n".join([text, title, *lines]) + "\n"


def _amended_line(output: str, manifest: Manifest, chain: Sequence[Manifest]) -> str:
    counts = amended_counts(manifest, chain)
    by_code = ", ".join(f"{fmt.clean(code)} {fmt.count(number)}" for code, number in counts.errors_by_code.items())
    errors = f"{fmt.plural(counts.errors, 'error')} ({by_code})" if counts.errors else "no errors"
    return f"{fmt.clean(output)} with {fmt.plural(len(chain), 'amendment')}: {fmt.count(counts.ok)} ok, {errors}"


def _add_to_json(text: str, manifests: Sequence[tuple[str, Manifest]], amendments: Sequence[Sequence[Manifest]]) -> str:
    document = json.loads(text)
    for entry, (_, manifest), chain in zip(document["outputs"], manifests, amendments, strict=True):
        if chain:
            counts = amended_counts(manifest, chain).model_dump(mode="json")
            entry["amendments"] = {"number": len(chain), "counts": counts}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


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
