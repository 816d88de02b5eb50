"""``specbatch report``: what one job did, or several side by side. Pure but for ``load_manifest`` and its like."""

from __future__ import annotations

from collections.abc import Sequence

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.output.amended import amended_counts, read_amendments
from specbatch.jobs.output.manifest import MANIFEST_NAME, decode_manifest
from specbatch.jobs.reports.comparison import Comparison, compare
from specbatch.jobs.reports.document import render_json
from specbatch.jobs.reports.nights import Nights
from specbatch.jobs.reports.sections import describe
from specbatch.jobs.reports.tables import render_csv, render_markdown, render_markdown_nights
from specbatch.jobs.reports.text import render_nights, render_report
from specbatch.jobs.reports.unfinished import Unfinished
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.manifest import Manifest

FORMATS = ("human", "json", "markdown", "csv", "html")


def load_manifest(output: str) -> Manifest:
    """The manifest of a finished job.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, nothing there or no job; ``JOB_INCOMPLETE``, a job without a manifest
            yet, with how far it is; ``JOB_FORMAT``, not a manifest that this version reads; ``JOB_URI_INVALID``.
    """
    from specbatch.jobs.watching.status import read_status
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


def compare_nights(nights: Nights) -> Comparison | None:
    """The comparison of several outputs with the first as the base; None for one."""
    return compare([manifest for _, manifest in nights]) if len(nights) > 1 else None


def render(
    nights: Nights,
    format: str,
    amendments: Sequence[Sequence[Manifest]] = (),
    endings: Sequence[Unfinished | None] = (),
) -> str:
    """The report of one output, or the comparison of several with the first as the base.

    Args:
        nights: pairs (output as the user named it, manifest); at least one.
        format: ``human``, ``json``, ``markdown``, ``csv`` or ``html``.
        amendments: for each output the manifests of its amendments. They are told apart from the job itself, whose
            figures stay as they are; ``csv`` leaves them out.
        endings: for each output what is known of its end where it has no manifest; its figures are those so far.

    Returns:
        Text that ends with a line break; never with terminal escapes.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format not in FORMATS:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    chains = [*amendments, *([()] * len(nights))][: len(nights)]
    known = [*endings, *([None] * len(nights))][: len(nights)]
    comparison = compare_nights(nights)
    if format == "json":
        return render_json(nights, comparison, chains, known)
    if format == "csv":
        return render_csv(nights, comparison, known)
    if comparison is None:
        report = describe(*nights[0], chains[0], known[0])
        if format == "html":
            from specbatch.jobs.reports.html import render_page

            return render_page(report, nights[0][1])
        text = render_markdown(report) if format == "markdown" else render_report(report)
        return _with_amendments(text, format, nights, chains)
    if format == "html":
        from specbatch.jobs.reports.html_nights import render_nights_page

        return render_nights_page(nights, comparison, _amended_lines(nights, chains), known)
    render_text = render_markdown_nights if format == "markdown" else render_nights
    text = render_text(nights, comparison, known)
    return _with_amendments(text, format, nights, chains)


def _with_amendments(text: str, format: str, nights: Nights, chains: Sequence[Sequence[Manifest]]) -> str:
    amended = _amended_lines(nights, chains)
    if not amended:
        return text
    title, bullet = ("## Amendments\n", "- ") if format == "markdown" else ("Amendments", "  ")
    return "\n".join([text, title, *(bullet + line for line in amended)]) + "\n"


def _amended_lines(nights: Nights, chains: Sequence[Sequence[Manifest]]) -> list[str]:
    return [_amended_line(*pair, chain) for pair, chain in zip(nights, chains, strict=True) if chain]


def _amended_line(output: str, manifest: Manifest, chain: Sequence[Manifest]) -> str:
    counts = amended_counts(manifest, chain)
    by_code = ", ".join(f"{fmt.clean(code)} {fmt.count(number)}" for code, number in counts.errors_by_code.items())
    errors = f"{fmt.plural(counts.errors, 'error')} ({by_code})" if counts.errors else "no errors"
    return f"{fmt.clean(output)} with {fmt.plural(len(chain), 'amendment')}: {fmt.count(counts.ok)} ok, {errors}"
