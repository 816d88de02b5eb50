"""Stable error codes and the one exception that carries them.

A code never changes its meaning once released. ``JOB_*`` codes stop a job, ``ROW_*`` codes end up in the
``error_code`` column of one row, ``SHARD_*`` codes travel from a worker to the coordinator.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; these alone hold."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    ROW_ERRORS = 3
    ERROR_BUDGET = 4
    NO_CAPACITY = 5
    HELD = 6
    INTEGRITY = 7
    INFRASTRUCTURE = 8
    INTERRUPTED = 130
    TERMINATED = 143


class VerifyExit(IntEnum):
    """Exit codes of ``specbatch verify``, which judges an output instead of running a job."""

    SOUND = 0
    INCOMPLETE = 1
    NOT_SOUND = 7


class ErrorCode(StrEnum):
    """Every code that a user can meet; ``docs/errors.md`` gives cause and remedy of each."""

    JOB_CONFIG = "JOB_CONFIG"
    JOB_URI_INVALID = "JOB_URI_INVALID"
    JOB_URI_OVERLAP = "JOB_URI_OVERLAP"
    JOB_INPUT_MISSING = "JOB_INPUT_MISSING"
    JOB_INPUT_EMPTY = "JOB_INPUT_EMPTY"
    JOB_INPUT_CORRUPT = "JOB_INPUT_CORRUPT"
    JOB_INPUT_EXTENSION = "JOB_INPUT_EXTENSION"
    JOB_INPUT_UNSUPPORTED = "JOB_INPUT_UNSUPPORTED"
    JOB_INPUT_LIMIT = "JOB_INPUT_LIMIT"
    JOB_INPUT_CHANGED = "JOB_INPUT_CHANGED"
    JOB_SCHEMA_MISMATCH = "JOB_SCHEMA_MISMATCH"
    JOB_COLUMN_MISSING = "JOB_COLUMN_MISSING"
    JOB_COLUMN_TYPE = "JOB_COLUMN_TYPE"
    JOB_COLUMN_RESERVED = "JOB_COLUMN_RESERVED"
    JOB_ID_DUPLICATE = "JOB_ID_DUPLICATE"
    JOB_MODEL_MISSING = "JOB_MODEL_MISSING"
    JOB_MODEL_ACCESS = "JOB_MODEL_ACCESS"
    JOB_MODEL_UNSUPPORTED = "JOB_MODEL_UNSUPPORTED"
    JOB_MODEL_LOAD = "JOB_MODEL_LOAD"
    JOB_PACKAGE_MISSING = "JOB_PACKAGE_MISSING"
    JOB_UNSAFE_WEIGHTS = "JOB_UNSAFE_WEIGHTS"
    JOB_REMOTE_CODE = "JOB_REMOTE_CODE"
    JOB_VOCAB_MISMATCH = "JOB_VOCAB_MISMATCH"
    JOB_OUTPUT_MISSING = "JOB_OUTPUT_MISSING"
    JOB_OUTPUT_UNWRITABLE = "JOB_OUTPUT_UNWRITABLE"
    JOB_PREFIX_TAKEN = "JOB_PREFIX_TAKEN"
    JOB_SPEC_CHANGED = "JOB_SPEC_CHANGED"
    JOB_FORMAT = "JOB_FORMAT"
    JOB_HELD = "JOB_HELD"
    JOB_LIVE = "JOB_LIVE"
    JOB_DEADLINE = "JOB_DEADLINE"
    JOB_NO_CAPACITY = "JOB_NO_CAPACITY"
    JOB_MEMORY = "JOB_MEMORY"
    JOB_ERROR_RATE = "JOB_ERROR_RATE"
    JOB_INTEGRITY = "JOB_INTEGRITY"
    JOB_INCOMPLETE = "JOB_INCOMPLETE"
    JOB_CLUSTER_LOST = "JOB_CLUSTER_LOST"
    JOB_CLUSTER_DENIED = "JOB_CLUSTER_DENIED"
    JOB_PATH_NOT_SHARED = "JOB_PATH_NOT_SHARED"
    JOB_VERSION_SKEW = "JOB_VERSION_SKEW"
    JOB_STORE_LOST = "JOB_STORE_LOST"
    JOB_STORE_DENIED = "JOB_STORE_DENIED"
    STORE_NOT_ATOMIC = "STORE_NOT_ATOMIC"
    STORE_UNFIT = "STORE_UNFIT"
    STORE_CLOCK_SKEW = "STORE_CLOCK_SKEW"
    JOB_DEVICE = "JOB_DEVICE"
    JOB_INTERNAL = "JOB_INTERNAL"
    SHARD_FAILED = "SHARD_FAILED"
    SHARD_INPUT_CORRUPT = "SHARD_INPUT_CORRUPT"
    SHARD_DISK_FULL = "SHARD_DISK_FULL"
    SHARD_OOM = "SHARD_OOM"
    ROW_PROMPT_NULL = "ROW_PROMPT_NULL"
    ROW_PROMPT_EMPTY = "ROW_PROMPT_EMPTY"
    ROW_TOO_LONG = "ROW_TOO_LONG"
    ROW_TOO_LARGE = "ROW_TOO_LARGE"
    ROW_ENCODING = "ROW_ENCODING"
    ROW_TEMPLATE = "ROW_TEMPLATE"
    ROW_MESSAGES = "ROW_MESSAGES"
    ROW_PARAMS = "ROW_PARAMS"
    ROW_ID_NULL = "ROW_ID_NULL"
    ROW_NUMERIC = "ROW_NUMERIC"
    ROW_MEMORY = "ROW_MEMORY"
    ROW_POISON = "ROW_POISON"


_EXIT_CODES: dict[ErrorCode, ExitCode] = {
    ErrorCode.JOB_MODEL_LOAD: ExitCode.FAILED,
    ErrorCode.JOB_INTERNAL: ExitCode.FAILED,
    ErrorCode.SHARD_FAILED: ExitCode.FAILED,
    ErrorCode.SHARD_INPUT_CORRUPT: ExitCode.FAILED,
    ErrorCode.SHARD_DISK_FULL: ExitCode.FAILED,
    ErrorCode.SHARD_OOM: ExitCode.FAILED,
    ErrorCode.JOB_INCOMPLETE: ExitCode.FAILED,
    ErrorCode.JOB_ERROR_RATE: ExitCode.ERROR_BUDGET,
    ErrorCode.JOB_NO_CAPACITY: ExitCode.NO_CAPACITY,
    ErrorCode.JOB_MEMORY: ExitCode.NO_CAPACITY,
    ErrorCode.JOB_DEADLINE: ExitCode.NO_CAPACITY,
    ErrorCode.JOB_HELD: ExitCode.HELD,
    ErrorCode.JOB_LIVE: ExitCode.HELD,
    ErrorCode.JOB_INTEGRITY: ExitCode.INTEGRITY,
    ErrorCode.JOB_CLUSTER_LOST: ExitCode.INFRASTRUCTURE,
    ErrorCode.JOB_STORE_LOST: ExitCode.INFRASTRUCTURE,
    ErrorCode.JOB_DEVICE: ExitCode.INFRASTRUCTURE,
}


class SpecbatchError(Exception):
    """A failure that the user can act on: one line that says what, where and what to do.

    It crosses process borders, so it pickles to exactly its two arguments.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        message = " ".join(message.splitlines())  # what users typed is quoted, and may hold line breaks
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"

    def __reduce__(self) -> tuple[type[SpecbatchError], tuple[ErrorCode, str]]:
        return (type(self), (self.code, self.message))

    @property
    def exit_code(self) -> ExitCode:
        """The documented exit code of a command that ends with this error."""
        return _EXIT_CODES.get(self.code, ExitCode.USAGE)
