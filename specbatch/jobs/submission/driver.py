"""The process that Ray Jobs start on the cluster: ``python -m specbatch.jobs.submission.driver OUT NUMBER``.

Everything it does is told by the output: the job, and the record of the submission with all settings. It looks at no
``SPECBATCH_*`` setting of its node: what holds was settled where the job was submitted.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbatch.jobs.spec.settings import Layer, Settings
    from specbatch.jobs.upkeep.resume import StoredOutput
    from specbatch.schemas.submission import SubmissionDocument

_HERE = {"execution.address": "auto", "execution.wait": True, "execution.entrypoint_num_cpus": 0.0}
"""The driver is a node of its cluster, and has what it asked for."""


def main() -> None:
    """Drive a job and exit as it ended; every failure has become one line."""
    output, number = sys.argv[1], int(sys.argv[2])
    try:
        from specbatch.jobs.upkeep import resume  # noqa: F401 - brings all that is needed here
    except ModuleNotFoundError as error:
        _fail(
            f"JOB_VERSION_SKEW: python on node {socket.gethostname()} ({sys.executable}) has no {error.name}; let "
            "`python` on the PATH of Ray's processes be the one with Ray and what specbatch depends on"
        )
        sys.exit(2)
    sys.exit(drive(output, number))


def drive(output: str, number: int) -> int:
    """Run the job of an output as a submission says; how it ended is written beside the record.

    Returns:
        The exit code, as of ``specbatch submit``.
    """
    from specbatch.jobs.output.submissions import end_submission
    from specbatch.jobs.running.interrupt import StopNow
    from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

    opened: StoredOutput | None = None
    code, message = None, ""
    try:
        opened, record = _open(output, number)
        exit_code = int(_run(opened, record))
    except StopNow as stop:
        exit_code = 128 + stop.number
    except SpecbatchError as error:
        exit_code, code, message = int(error.exit_code), error.code.value, error.message
    except Exception as error:
        import traceback

        traceback.print_exception(error)
        exit_code, code = int(ExitCode.FAILED), ErrorCode.JOB_INTERNAL.value
        message = f"{type(error).__name__}: {error}; the log of the driver in Ray has its trace"
    if code is not None:
        _fail(f"{code}: {message}")
    if opened is not None:
        end_submission(opened.store, number, exit_code, code, message)
    return exit_code


def _open(output: str, number: int) -> tuple[StoredOutput, SubmissionDocument]:
    """The job and the record; where they are not, this node does not see the output."""
    from specbatch.jobs.output.submissions import read_submission
    from specbatch.jobs.upkeep.resume import open_output
    from specbatch.schemas.errors import ErrorCode, SpecbatchError

    not_shared = SpecbatchError(
        ErrorCode.JOB_PATH_NOT_SHARED,
        f"node {socket.gethostname()}, where the driver runs, does not see {output} as it was where the job was "
        "submitted; put it on S3, or on a file system that every node mounts under the same name",
    )
    try:
        opened = open_output(output)
    except SpecbatchError as error:
        if error.code is ErrorCode.JOB_OUTPUT_MISSING and "://" not in output:
            raise not_shared from None
        raise
    record = read_submission(opened.store, number)
    if record is None:
        raise not_shared
    return opened, record


def _run(opened: StoredOutput, record: SubmissionDocument) -> int:
    from specbatch.jobs.display.progress import make_view
    from specbatch.jobs.output.submissions import submission_cancelled
    from specbatch.jobs.running.job import run_job
    from specbatch.jobs.upkeep.resume import prepare_stored
    from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

    def is_cancelled() -> bool:
        return submission_cancelled(opened.store, record.number)

    if is_cancelled():
        _say("the job was cancelled before it began")
        return int(ExitCode.TERMINATED)
    settings = _settings(opened, record)
    try:
        prepared = prepare_stored(opened.stored, settings)
    except SpecbatchError as error:
        if error.code not in (ErrorCode.JOB_INPUT_MISSING, ErrorCode.JOB_MODEL_MISSING):
            raise
        raise SpecbatchError(
            ErrorCode.JOB_PATH_NOT_SHARED,
            f"node {socket.gethostname()}, where the driver runs, does not find what was there on {record.host}, where "
            f"the job was submitted: {error.message}",
        ) from error
    outcome = run_job(prepared, make_view("lines"), _say, is_cancelled=is_cancelled)
    return int(outcome.exit_code)


def _settings(opened: StoredOutput, record: SubmissionDocument) -> Settings:
    """What was resolved where the job was submitted, with the cluster's own address."""
    from specbatch.jobs.upkeep.resume import free_values, resume_settings

    values = {**free_values(record.spec), **_HERE}
    values.pop("execution.entrypoint_memory", None)
    origin = f"submission {record.number}"
    return resume_settings(opened.stored, _layer(values, origin), output=opened.uri)


def _layer(values: dict[str, Any], origin: str) -> Layer:
    from specbatch.jobs.spec.settings import Layer

    return Layer(values, dict.fromkeys(values, origin))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - Ray keeps what a driver writes


def _fail(text: str) -> None:
    _say(f"error: {text}")


if __name__ == "__main__":
    main()
