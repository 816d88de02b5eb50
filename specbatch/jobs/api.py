"""Jobs from Python: ``submit``, ``report`` and ``load``, for notebooks and for schedulers that run Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbatch.jobs.running.job import JobOutcome
from specbatch.schemas.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JobOutcome", "load", "report", "submit"]


def submit(
    datasets: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    progress: str = "auto",
    notify: str | None = None,
    **settings: Any,
) -> JobOutcome:
    """Run a job to its end in this process and the workers that it starts; by ``address`` on a cluster.

    Args:
        datasets: Parquet or JSONL files, folders, globs, ``s3://`` or ``hf://`` places, or an output.
        output: where results go; beside the dataset if None.
        progress: ``auto``, ``bar``, ``lines`` or ``quiet``, on standard error.
        notify: where a summary is posted when the run has ended; ``SPECBATCH_NOTIFY_URL`` if None.
        **settings: the options of ``specbatch submit`` with underscores (``max_new_tokens=64``). ``SPECBATCH_*``
            variables fill in what is not given, as they do on the command line.

    Returns:
        How the run ended; ``exit_code`` is that of the command.

    Raises:
        SpecbatchError: why the job was refused or failed.
    """
    from specbatch.jobs.display.progress import make_view
    from specbatch.jobs.planning.prepare import prepare
    from specbatch.jobs.running.interrupt import StopNow
    from specbatch.jobs.running.job import run_job
    from specbatch.jobs.running.notify import make_notifier
    from specbatch.jobs.spec.address import is_jobs_endpoint
    from specbatch.jobs.spec.placeholders import with_logical_date
    from specbatch.jobs.spec.settings import environment_layer, flag_layer, resolve, with_text_files

    names = [datasets] if isinstance(datasets, str | Path) else list(datasets)
    given = {name: value for name, value in settings.items() if value is not None}
    if output is not None:
        given["output"] = str(output)
    flags = flag_layer(given, [str(name) for name in names], spelling="{}=")
    view = make_view(progress)  # type: ignore[arg-type]  # make_view names a wrong mode
    layers = [with_text_files(layer) for layer in (flags, environment_layer(os.environ))]

    def say(line: str) -> None:
        if progress != "quiet":
            _say(line)

    notifier = make_notifier(notify, dict(os.environ), _say)
    try:
        placed = with_logical_date(resolve(layers))
        notifier.logical_date = placed.spec.execution.logical_date
        if is_jobs_endpoint(placed.spec.execution.address):
            from specbatch.jobs.submission.run import run_through_jobs

            outcome = run_through_jobs(placed, view, say)
        else:
            prepared = prepare(placed)
            notifier.output = prepared.output
            outcome = run_job(prepared, view, say)
    except Exception as error:
        notifier.failed(error)
        raise
    except StopNow as stop:
        notifier.stopped(128 + stop.number)
        raise
    notifier.ended(outcome)
    return outcome


def report(output: str | Path) -> Manifest:
    """The manifest of a finished job: what ``specbatch report`` prints.

    Raises:
        SpecbatchError: JOB_OUTPUT_MISSING, JOB_INCOMPLETE.
    """
    from specbatch.jobs.reports.report import load_manifest

    return load_manifest(str(output))


def load(output: str | Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """All result rows of a finished job in the order of ``row_id``, with its amendments applied.

    Args:
        columns: only these, in this order; all if None. Under ``--output-prefix`` added columns have it in their names.

    Raises:
        SpecbatchError: JOB_OUTPUT_MISSING, JOB_INCOMPLETE; JOB_INTEGRITY, a part is missing or damaged;
            JOB_COLUMN_MISSING.
    """
    from specbatch.jobs.output.results import read_results
    from specbatch.storage.store import open_store

    return read_results(open_store(str(output)), report(output), columns)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
