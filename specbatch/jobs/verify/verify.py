"""``specbatch verify``: a second opinion on an output, from its bytes alone.

It shares no code with what wrote them and takes nothing on trust: digests are computed anew, rows are counted, the
bookkeeping of every row is added up, and the sums in the manifest are compared with the rows. What is read may be
hostile.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.verify.files import LocalSource, RemoteSource, Source, Unsound
from specbatch.schemas.errors import ErrorCode, SpecbatchError, VerifyExit

VERIFY_FORMAT = "specbatch/verify/1"

_MAX_PROBLEMS = 1000
_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The verdict on an output.

    Attributes:
        problems: what is wrong, one sentence each; for an incomplete output what is missing.
        checked: how much was read: ``parts``, ``parts_planned``, ``rows``, ``rows_planned``, ``results``, ``ok``,
            ``errors``, ``completion_tokens``, ``bytes``, all of the job itself, and ``amendments``.
        notes: what a deep check did, or could not do.
    """

    output: str
    state: Literal["sound", "incomplete", "not sound"]
    problems: tuple[str, ...] = ()
    checked: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> VerifyExit:
        """The documented exit code."""
        return {
            "sound": VerifyExit.SOUND,
            "incomplete": VerifyExit.INCOMPLETE,
            "not sound": VerifyExit.NOT_SOUND,
        }[self.state]


def verify_output(output: str, *, deep: bool = False) -> VerifyReport:
    """Checks everything that an output says about itself, its amendments included.

    Args:
        deep: also read the dataset, compare every column that passes through, and decode some rows again with the
            target alone; needs both to be reachable.

    Raises:
        SpecbatchError: ``JOB_OUTPUT_MISSING``, no folder or no job in it; ``JOB_URI_INVALID``; for a remote store
            what its reader raises.
    """
    from specbatch.jobs.verify.amendments import check_amendments
    from specbatch.jobs.verify.verification import Verification

    source = _source(output)
    job = Verification(source)
    job.run()
    passes = [job]
    problems: list[str] = []
    try:
        passes += check_amendments(source, job)
    except Unsound as finding:
        problems.append(str(finding))
    problems = [problem for each in passes for problem in each.problems] + problems
    notes: list[str] = []
    if deep and not problems:
        from specbatch.jobs.verify.deep import check_deep

        for each in passes:
            deeper = check_deep(each)
            problems += [f"{each.prefix}{problem}" for problem in deeper.problems]
            notes += [f"{each.prefix.rstrip('/')}: {note}" if each.prefix else note for note in deeper.notes]
    checked = {**job.checked, "amendments": len(passes) - 1}
    if problems:
        more = [f"more than {_MAX_PROBLEMS} problems"] if len(problems) > _MAX_PROBLEMS else []
        return VerifyReport(output, "not sound", (*problems[:_MAX_PROBLEMS], *more), checked, tuple(notes))
    if missing := [line for each in passes for line in each.missing]:
        return VerifyReport(output, "incomplete", tuple(missing), checked, tuple(notes))
    return VerifyReport(output, "sound", (), checked, tuple(notes))


def _source(output: str) -> Source:
    if output.startswith("s3://"):
        from specbatch.storage.store import open_store

        store = open_store(output)
        if not any(store.list(name) for name in ("_specbatch", "data")):
            raise _no_output(output)
        return RemoteSource(store)
    if "://" in output or not output.strip() or "\0" in output:
        raise SpecbatchError(
            ErrorCode.JOB_URI_INVALID, f"{fmt.clean(output)!r} is no output; give a local folder or s3://bucket/prefix"
        )
    root = Path(output).expanduser().absolute()
    try:
        is_output = root.is_dir() and any((root / name).exists() for name in ("_specbatch", "manifest.json", "data"))
    except OSError:
        is_output = False
    if not is_output:
        raise _no_output(output)
    return LocalSource(root)


def _no_output(output: str) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_OUTPUT_MISSING,
        f"{output} is no output of specbatch; give the folder that `specbatch submit` named",
    )


def render_verify(report: VerifyReport, format: str = "human") -> str:
    """The verdict as text for people (``human``) or as one JSON object (``json``); ends with a line break."""
    if format == "json":
        return json.dumps({"format": VERIFY_FORMAT, **asdict(report)}, indent=2) + "\n"
    lines = [f"{fmt.clean(report.output)}: {report.state}"]
    checked = report.checked
    if "parts" in checked:
        has_samples = checked["results"] != checked["rows"]
        results = f"{fmt.plural(checked['results'], 'result')}: " if has_samples else ""
        lines.append(
            f"  read {fmt.count(checked['parts'])} of {fmt.plural(checked['parts_planned'], 'part')}, "
            f"{fmt.count(checked['rows'])} of {fmt.plural(checked['rows_planned'], 'row')} "
            f"({results}{fmt.count(checked['ok'])} ok, {fmt.plural(checked['errors'], 'error')}), "
            f"{fmt.plural(checked['completion_tokens'], 'output token')}, {fmt.size(checked['bytes'])}"
        )
        if checked["amendments"]:
            lines.append(f"  {fmt.plural(checked['amendments'], 'amendment')} on top, checked in the same way")
    if report.state == "sound":
        samples = " with all its samples" if checked["results"] != checked["rows"] else ""
        lines.append(
            f"  every input row is there exactly once{samples}; identity, plan, digests and sums were computed anew"
        )
    lines += [f"  {fmt.clean(note)}" for note in report.notes]
    lines += [f"  - {fmt.clean(problem)}" for problem in report.problems[:_MAX_SHOWN]]
    if len(report.problems) > _MAX_SHOWN:
        lines.append(f"  and {fmt.plural(len(report.problems) - _MAX_SHOWN, 'more problem')}")
    return "\n".join(lines) + "\n"
