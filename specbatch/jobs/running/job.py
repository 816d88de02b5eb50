"""One run of a job, from a prepared spec to its outcome: find or begin it, hold it, decode what is missing, commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from specbatch.jobs.display.progress import ProgressView
from specbatch.jobs.output.card import ensure_card, write_card
from specbatch.jobs.output.lease import acquire
from specbatch.jobs.output.ledger import Ledger, StoredJob, check_same_job
from specbatch.jobs.planning.normalise import place_copies
from specbatch.jobs.planning.prepare import PreparedJob
from specbatch.jobs.running.interrupt import Interrupts
from specbatch.jobs.running.job_run import JobRun
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.schemas.manifest import Manifest
from specbatch.storage.store import Store, open_store


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a run ended.

    Attributes:
        output: the folder or URI of the job.
        manifest: None where the job was interrupted.
        was_complete: the job had been finished by an earlier run; this one did nothing.
        parts_done: parts that exist now.
        num_parts: parts of the plan.
    """

    output: str
    exit_code: ExitCode
    manifest: Manifest | None
    was_complete: bool
    parts_done: int
    num_parts: int


@dataclass(frozen=True, slots=True)
class BegunJob:
    """A job that stands in its output and is not complete. ``prepared`` has what its workers read at its place."""

    prepared: PreparedJob
    ledger: Ledger
    stored: StoredJob


def begin_job(prepared: PreparedJob, say: Callable[[str], None]) -> BegunJob | JobOutcome:
    """Find a job in its output, or begin it there; how it ended where an earlier run has finished it.

    Raises:
        SpecbatchError: the output holds another job, or the store does not take this one.
    """
    store = open_store(prepared.output, single_writer=prepared.spec.execution.single_writer)
    ledger = Ledger(store)
    stored = ledger.find_job()
    if stored is not None:
        check_same_job(stored, prepared.identity, prepared.output)
        finished = ledger.find_manifest()
        if finished is not None:
            _check_own(stored, finished, prepared.output)
            ledger.seal()
            ensure_card(store, finished, stored.document)
            return _complete_outcome(prepared, finished, was_complete=True)
    for note in prepared.notes:
        say(note)
    _check_fit(store, prepared, say)
    return BegunJob(*_begin(ledger, prepared, stored))


def run_job(
    prepared: PreparedJob,
    view: ProgressView,
    say: Callable[[str], None],
    *,
    started: float | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> JobOutcome:
    """Run a job to its end, or to the next interruption; what it finds finished is never done again.

    Args:
        view: sees the progress.
        say: takes single lines for the user.
        started: ``time.monotonic()`` at the start of the command; now if None.
        is_cancelled: whether the run shall stop for another reason than a signal or its own file; asked now and then.

    Raises:
        SpecbatchError: why the job failed. Parts that exist are kept.
    """
    begun = begin_job(prepared, say)
    if isinstance(begun, JobOutcome):
        return begun
    prepared, ledger, stored = begun.prepared, begun.ledger, begun.stored
    store = ledger.store
    with Interrupts() as interrupts:
        lease = acquire(
            store,
            sleep=interrupts.sleep,
            on_wait=lambda found: say(
                f"{prepared.output} is held by process {found.pid} on {found.host}; waiting for a sign of life "
                f"(at most {found.ttl_seconds:.0f} s)"
            ),
        )
        try:
            run = JobRun(
                prepared, ledger, stored, lease, interrupts, view, say, started=started, is_cancelled=is_cancelled
            )
            manifest = run.run()
        finally:
            lease.release()
    if manifest is not None:
        write_card(store, manifest, stored.document)
        return _complete_outcome(prepared, manifest, was_complete=False)
    return JobOutcome(prepared.output, run.stop_exit, None, False, run.parts_done, len(stored.shards))


def _check_fit(store: Store, prepared: PreparedJob, say: Callable[[str], None]) -> None:
    """Refuse a store that lies. Local files are not probed: what their kernel promises, the contract tests rest on."""
    if store.is_local:
        return
    if prepared.spec.execution.single_writer:
        say(f"--single-writer: nothing keeps a second run off {prepared.output}; see to it that there is none")
    from specbatch.storage.probe import ensure_fit

    ensure_fit(store)


def _begin(ledger: Ledger, prepared: PreparedJob, stored: StoredJob | None) -> tuple[PreparedJob, Ledger, StoredJob]:
    """Begin a job that is not there yet. Whatever its workers read beside the dataset is at its place afterwards."""
    spec = prepared.spec.model_dump(mode="json")
    try:
        prepared = place_copies(prepared)
        if stored is None:
            stored = ledger.begin_job(prepared.identity, prepared.models, spec, prepared.shards)
        if prepared.spec.input.dedupe == "mark":
            from specbatch.jobs.planning.dedupe import ensure_duplicates

            prepared = replace(prepared, duplicates=ensure_duplicates(prepared, stored))
        return prepared, ledger, stored
    except SpecbatchError as error:
        if error.code is ErrorCode.JOB_OUTPUT_UNWRITABLE and prepared.output_is_default:
            raise SpecbatchError(error.code, f"{error.message}; name another folder with --output") from error
        raise


def _check_own(stored: StoredJob, manifest: Manifest, output: str) -> None:
    """A late writer of an older job, in a folder that was emptied and used again, must not end this one."""
    if stored.plan != manifest.identity.P:
        raise SpecbatchError(
            ErrorCode.JOB_INTEGRITY,
            f"manifest.json in {output} belongs to another job than job.json; remove both, or choose another --output",
        )


def _complete_outcome(prepared: PreparedJob, manifest: Manifest, *, was_complete: bool) -> JobOutcome:
    has_errors = manifest.commit.counts.errors > 0 and not prepared.spec.execution.row_errors_ok
    num_parts = len(manifest.commit.parts)
    exit_code = ExitCode.ROW_ERRORS if has_errors else ExitCode.COMPLETE
    return JobOutcome(prepared.output, exit_code, manifest, was_complete, num_parts, num_parts)
