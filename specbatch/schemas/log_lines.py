"""Lines of logs: one JSON object each, the same fields in the same order whoever writes them.

Two variables ask for them on standard error too, of the command and of every worker: ``SPECBATCH_LOG_FORMAT=json`` and
``SPECBATCH_LOG_LEVEL``. No field ever holds a prompt, a completion or a row's own id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from specbatch.schemas.errors import ErrorCode, SpecbatchError

LOG_FORMAT_VARIABLE = "SPECBATCH_LOG_FORMAT"
LOG_LEVEL_VARIABLE = "SPECBATCH_LOG_LEVEL"
LEVELS = ("info", "warning", "error")
SHORT_DIGITS = 12

_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What goes to standard error.

    Attributes:
        is_json: lines of the log as JSON; else the words for people, and nothing from workers.
        level: the least that is written as JSON.
    """

    is_json: bool = False
    level: str = "info"

    def shows(self, level: str) -> bool:
        """Whether a line of this level is written."""
        return self.is_json and LEVELS.index(level) >= LEVELS.index(self.level)


def read_log_settings(environment: Mapping[str, str] | None = None) -> LogSettings:
    """The settings that the environment names.

    Raises:
        SpecbatchError: JOB_CONFIG, a variable has another value than those there are.
    """
    found = os.environ if environment is None else environment
    return LogSettings(
        is_json=_choice(found, LOG_FORMAT_VARIABLE, _FORMATS, "text") == "json",
        level=_choice(found, LOG_LEVEL_VARIABLE, LEVELS, "info"),
    )


def _choice(environment: Mapping[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    value = environment.get(name, "") or default
    if value not in choices:
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"{name} is {value!r}; it must be one of {', '.join(choices)}")
    return value


def short_job(identity: str) -> str:
    """How logs and metrics name a job: the first digits of its identity S."""
    return identity[:SHORT_DIGITS]


def now_text() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def encode_line(
    time: str,
    level: str,
    event: str,
    message: str,
    *,
    job: str = "",
    epoch: int | None = None,
    worker: int | None = None,
    shard: int | None = None,
    attempt: int | None = None,
    code: str | None = None,
) -> str:
    """One line with its end. ASCII only: characters are bytes, and no line separator of Unicode confuses a reader."""
    values: dict[str, Any] = {
        "time": time,
        "level": level,
        "event": event,
        "message": message,
        "job": job,
        "epoch": epoch,
        "worker": worker,
        "shard": shard,
        "attempt": attempt,
        "code": code,
    }
    return json.dumps(values) + "\n"
