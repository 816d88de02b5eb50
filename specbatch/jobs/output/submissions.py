"""What an output knows of the times that its job was handed to Ray Jobs: records that are created once."""

from __future__ import annotations

import re
import socket
from pathlib import PurePosixPath

from pydantic import ValidationError

from specbatch.jobs.output.ledger import RUNS_FOLDER, now_text
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.submission import SUBMISSION_END_FORMAT, SubmissionDocument, SubmissionEnd
from specbatch.storage.store import NotFound, Store

SUBMISSIONS_FOLDER = "_specbatch/submissions"
_RECORD = re.compile(r"(\d+)\.json")


def submission_key(number: int) -> str:
    return f"{SUBMISSIONS_FOLDER}/{number}.json"


def _end_key(number: int) -> str:
    return f"{SUBMISSIONS_FOLDER}/{number}-end.json"


def _cancel_key(number: int) -> str:
    return f"{SUBMISSIONS_FOLDER}/{number}-cancel.json"


def last_submission(store: Store) -> SubmissionDocument | None:
    """The last record; None where the job was never handed to Ray Jobs.

    Raises:
        SpecbatchError: JOB_FORMAT, written by another version.
    """
    names = (PurePosixPath(key).name for key in store.list(SUBMISSIONS_FOLDER))
    numbers = [int(found[1]) for name in names if (found := _RECORD.fullmatch(name))]
    return read_submission(store, max(numbers)) if numbers else None


def read_submission(store: Store, number: int) -> SubmissionDocument | None:
    """One record; None where there is none.

    Raises:
        SpecbatchError: JOB_FORMAT, written by another version.
    """
    try:
        return SubmissionDocument.model_validate_json(store.read(submission_key(number)))
    except NotFound:
        return None
    except ValidationError as error:
        raise SpecbatchError(
            ErrorCode.JOB_FORMAT,
            f"{submission_key(number)} in {store.uri} cannot be read by this version ({error.error_count()} problems); "
            "use the version of specbatch that wrote it",
        ) from None


def create_submission(store: Store, document: SubmissionDocument) -> bool:
    """Write a record; False where its number is taken."""
    return store.create(submission_key(document.number), document.model_dump_json(indent=2).encode() + b"\n")


def end_submission(store: Store, number: int, exit_code: int, code: str | None = None, message: str = "") -> None:
    """Write how a driver ended; the first word holds."""
    end = SubmissionEnd(
        format=SUBMISSION_END_FORMAT,
        number=number,
        exit_code=exit_code,
        code=code,
        message=message,
        host=socket.gethostname(),
        ended_at=now_text(),
    )
    store.create(_end_key(number), end.model_dump_json(indent=2).encode() + b"\n")


def read_end(store: Store, number: int) -> SubmissionEnd | None:
    """How a driver ended; None where it has not said so, or in words that this version does not know."""
    try:
        return SubmissionEnd.model_validate_json(store.read(_end_key(number)))
    except (NotFound, ValidationError):
        return None


def last_epoch(store: Store) -> int:
    """The last run that has begun; 0 where none has."""
    stems = (PurePosixPath(key).stem for key in store.list(RUNS_FOLDER))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def find_waiting(store: Store) -> SubmissionDocument | None:
    """The submission whose driver has not begun a run yet, nor ended without; None where nothing waits."""
    last = last_submission(store)
    if last is None or read_end(store, last.number) is not None or last_epoch(store) > last.epoch_before:
        return None
    return last


def describe_waiting(store: Store) -> str | None:
    """The submission that waits for its driver, in words; None where nothing waits."""
    waiting = find_waiting(store)
    if waiting is None:
        return None
    ends = "; it was asked not to begin" if submission_cancelled(store, waiting.number) else ""
    return (
        f"submitted to Ray Jobs at {waiting.address} as {waiting.submission_id} ({waiting.submitted_at}); its driver "
        f"has not begun a run yet{ends}"
    )


def cancel_submission(store: Store, number: int) -> bool:
    """Ask a driver that has not begun to end as soon as it does; False where it had been asked before."""
    return store.create(_cancel_key(number), b"{}\n")


def submission_cancelled(store: Store, number: int) -> bool:
    """Whether a driver shall not begin, or stop."""
    try:
        store.size(_cancel_key(number))
    except NotFound:
        return False
    return True
