"""A job without a manifest: how its last run ended, how far it came, what is left. Pure; ``reading`` fills it in."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.reports.model import Fact, Finding, Level, Section, Table
from specbatch.schemas.error_texts import EXPLANATIONS
from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError

Standing = Literal["never begun", "running", "stopped", "failed", "lost", "not committed"]
"""How a job without a manifest stands: ``stopped`` by somebody or a deadline, ``lost`` where a run went without a word,
``not committed`` where all parts are there and only the manifest is not."""

MAX_LOG_ROWS = 12
_MAX_ROWS_NAMED = 5
_MIN_DEADLINE_SECONDS = 600.0
_DEADLINE_ROOM = 1.5


@dataclass(frozen=True, slots=True)
class LogLine:
    """A warning or an error of the last run's log."""

    time: str
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What is known of a job that has no manifest.

    Attributes:
        epoch: of the last run; 0 where none has begun.
        outcome: what its record says: ``running``, ``interrupted``, ``cancelled``, ``deadline``, ``failed`` or
            ``complete``.
        code, message: the error that ended it, where its log has one.
        seen_at: its last sign of life, ISO 8601. place: its process, in words.
        deadline: as it was asked for; None where it is not known.
        num_rows, num_parts: as planned. rows_done, parts_done: those in parts.
        rows_in_flight: finished or begun, and lost with the run; decoded again by the next one.
        remaining_seconds: what a run that goes on would take at the pace so far; None where nothing is known of it.
        remaining_from: what that rests on.
        errors_by_code: of finished rows, those whose part was never written too. num_judged: finished results.
        error_rows: for each code the first ``row_id`` in the parts.
        log: the last warnings and errors.
    """

    output: str
    standing: Standing
    epoch: int = 0
    outcome: str = ""
    code: ErrorCode | None = None
    message: str = ""
    seen_at: str = ""
    place: str = ""
    deadline: str | None = None
    num_rows: int = 0
    rows_done: int = 0
    num_parts: int = 0
    parts_done: int = 0
    rows_in_flight: int = 0
    remaining_seconds: float | None = None
    remaining_from: str = ""
    errors_by_code: Mapping[str, int] = field(default_factory=dict)
    num_judged: int = 0
    error_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    log: tuple[LogLine, ...] = ()

    @property
    def num_rows_left(self) -> int:
        return max(self.num_rows - self.rows_done, 0)

    @property
    def exit_codes(self) -> tuple[int, ...]:
        """Exit codes with which the command may have ended; empty where that is not known."""
        return _exit_codes(self)

    @property
    def cause(self) -> str:
        """Why there is no manifest, in one clause without a full stop."""
        return _cause(self)

    @property
    def next_command(self) -> str:
        """What to type next."""
        return _next_command(self)


def ending_headline(found: Unfinished) -> str:
    """What happened, why and how far it came, as one line."""
    how_far = f"{fmt.count(found.rows_done)} of {fmt.count(found.num_rows)} rows are done"
    if found.num_rows:
        how_far += f" ({fmt.percent(found.rows_done / found.num_rows)})"
    if found.standing == "running":
        return f"Not complete yet: {found.cause}. {how_far}{_to_go(found)}."
    codes = " or ".join(str(code) for code in found.exit_codes)
    start = f"NOT COMPLETE (exit {codes})" if codes else "NOT COMPLETE"
    return f"{start}: {found.cause}. {how_far}."


def ending_level(found: Unfinished) -> Level:
    """How bad it is that there is no manifest."""
    if found.standing == "running":
        return "note"
    asked = found.outcome in ("interrupted", "cancelled") or found.standing in ("never begun", "not committed")
    return "warning" if asked else "problem"


def ending_findings(found: Unfinished) -> list[Finding]:
    """The cause with what is known of it, and what going on would cost."""
    title, detail, remedy = _explained(found)
    result = [Finding(ending_level(found), title, detail, remedy)]
    if found.num_rows_left and found.standing != "running":
        flight = f"; {fmt.plural(found.rows_in_flight, 'row')} in flight" if found.rows_in_flight else ""
        lost = f"{flight} will be decoded again" if flight else ""
        result.append(
            Finding(
                "note",
                f"{fmt.plural(found.num_rows_left, 'row')} left{_to_go(found)}",
                f"what is in parts is kept{lost}" + (f"; {found.remaining_from}" if found.remaining_from else ""),
            )
        )
    return result


def where_errors_are(found: Unfinished, code: str) -> str:
    """The first rows with an error code, in words; empty where no part has one."""
    rows = found.error_rows.get(code, ())
    if not rows:
        return ""
    named = ", ".join(str(row) for row in rows[:_MAX_ROWS_NAMED])
    total = found.errors_by_code.get(code, len(rows))
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{', ...' if total > len(rows[:_MAX_ROWS_NAMED]) else ''}"


def describe_rest(found: Unfinished) -> Section:
    """What is there, what is left, and what the log said last."""
    share = f" ({fmt.percent(found.rows_done / found.num_rows)})" if found.num_rows else ""
    rows = f"{fmt.count(found.rows_done)} of {fmt.count(found.num_rows)} rows{share}"
    parts = f"{fmt.count(found.parts_done)} of {fmt.count(found.num_parts)} parts"
    facts = [Fact("done", f"{rows}, {parts}"), Fact("left", fmt.plural(found.num_rows_left, "row"))]
    if found.rows_in_flight:
        facts.append(Fact("in flight", f"{fmt.plural(found.rows_in_flight, 'row')} finished without a part"))
    if found.num_rows_left:
        known = None if found.remaining_seconds is None else f"about {fmt.duration(found.remaining_seconds)}"
        basis = f" ({found.remaining_from})" if found.remaining_from else ""
        facts.append(Fact("time to go", f"{known or 'not known'}{basis}"))
    if found.epoch:
        facts.append(Fact("last sign of life", f"{fmt.iso(found.seen_at)}, {fmt.clean(found.place)}"))
    facts.append(Fact("next", found.next_command))
    if found.epoch:
        facts.append(Fact("log", f"specbatch logs {shlex.quote(fmt.clean(found.output))}"))
    lines = tuple((fmt.iso(line.time), fmt.clean(line.level, 10), fmt.clean(line.message)[:400]) for line in found.log)
    table = Table("Last warnings of the log", ("time", "level", "what"), lines, texts=frozenset({0, 1, 2}))
    return Section("rest", "How far it came", tuple(facts), (table,) if lines else ())


def remaining(
    num_results_left: int, results_per_second: float, start_seconds: float, forecast: tuple[float, float] | None
) -> tuple[float | None, str]:
    """Seconds that going on would take, and what that rests on.

    Args:
        results_per_second: of the runs so far; 0 where nothing was decoded. start_seconds: until a worker is ready.
        forecast: seconds of the whole job and the share of it that is left; None without a forecast.
    """
    if num_results_left and results_per_second > 0:
        return start_seconds + num_results_left / results_per_second, "at the pace so far, a start included"
    if num_results_left and forecast is not None:
        return forecast[0] * forecast[1], "by the forecast that was made before"
    return None, "nothing was decoded that would tell" if num_results_left else ""


def _to_go(found: Unfinished) -> str:
    return "" if found.remaining_seconds is None else f", about {fmt.duration(found.remaining_seconds)} to go"


def _exit_codes(found: Unfinished) -> tuple[int, ...]:
    if found.code is not None:
        return (int(SpecbatchError(found.code, "").exit_code),)
    by_outcome = {
        "deadline": (ExitCode.NO_CAPACITY,),
        "interrupted": (ExitCode.INTERRUPTED, ExitCode.TERMINATED),
        "cancelled": (ExitCode.TERMINATED,),
    }
    codes = by_outcome.get(found.outcome, ()) if found.standing == "stopped" else ()
    return tuple(int(code) for code in codes)


def _cause(found: Unfinished) -> str:
    run = f"run {found.epoch}"
    if found.standing == "never begun":
        return "the job was planned, and no run has begun"
    if found.standing == "running":
        return f"{run} is at work ({fmt.clean(found.place)})"
    if found.standing == "not committed":
        return f"{run} decoded every row and ended before it wrote the manifest"
    if found.standing == "lost":
        return f"{run} ended without a word, last seen {fmt.iso(found.seen_at)}"
    if found.outcome == "deadline":
        after = f" of {fmt.clean(found.deadline)}" if found.deadline else ""
        return f"the deadline{after} came in {run}"
    if found.code is ErrorCode.JOB_ERROR_RATE and found.errors_by_code:
        code, count = max(found.errors_by_code.items(), key=lambda item: item[1])
        return f"{_first_clause(found.message)}, {fmt.count(count)} of them {fmt.clean(code, 40)}"
    if found.message:
        return _first_clause(found.message)
    if found.outcome == "cancelled":
        return f"{run} was asked to stop"
    return (
        f"a signal stopped {run}" if found.outcome == "interrupted" else f"{run} failed, and its log does not say why"
    )


def _first_clause(message: str) -> str:
    """What happened, without what to do about it."""
    return fmt.clean(message).split("; ")[0].rstrip(".")[:240]


def _explained(found: Unfinished) -> tuple[str, str, str]:
    """Title, detail and remedy of the cause. What to type next is said beside the headline."""
    logs = f"`specbatch logs {shlex.quote(fmt.clean(found.output))}` has the last words"
    if found.standing == "running":
        return "The job is still running", "what follows is what is there so far", ""
    if found.standing == "never begun":
        return "No run has begun", "the plan is stored, nothing was decoded", ""
    if found.standing == "not committed":
        return "Every row is decoded, the manifest is missing", "the next run writes it and decodes nothing", ""
    if found.standing == "lost":
        detail = f"{fmt.clean(found.place)}: killed, out of memory, or its machine or the store was lost"
        return f"Run {found.epoch} ended without a word", detail, logs
    if found.code is not None:
        text = EXPLANATIONS[found.code]
        detail = _first_clause(found.message)
        said = "" if found.cause.startswith(detail) else detail
        return f"{found.code.value}: {text.meaning.replace('`', '')}", said, text.remedy
    if found.outcome == "deadline":
        return "The deadline came", "shards in flight were finished, the rest was not begun", ""
    if found.outcome in ("interrupted", "cancelled"):
        how = "by a signal: Ctrl-C, a scheduler, a machine that goes" if found.outcome == "interrupted" else "as asked"
        return f"Run {found.epoch} was stopped", how, ""
    return f"Run {found.epoch} failed", found.cause, logs


def _next_command(found: Unfinished) -> str:
    output = shlex.quote(fmt.clean(found.output))
    if found.standing == "running":
        return f"specbatch status {output} --watch"
    if found.code == ErrorCode.JOB_INTEGRITY:
        return f"specbatch verify {output}"
    more = ""
    if found.code == ErrorCode.JOB_ERROR_RATE:
        more = " --max-error-rate 1"
    elif found.outcome == "deadline":
        more = f" --deadline {_deadline(found.remaining_seconds)}"
    return f"specbatch resume {output}{more}"


def _deadline(remaining_seconds: float | None) -> str:
    """A deadline with room for what is left."""
    seconds = max(_MIN_DEADLINE_SECONDS, _DEADLINE_ROOM * (remaining_seconds or 0.0))
    return f"{math.ceil(seconds / 60)}m" if seconds < 7200 else f"{math.ceil(seconds / 3600)}h"


def merged_errors(in_parts: Mapping[str, int], told: Mapping[str, int]) -> dict[str, int]:
    """Errors by code of the finished rows: those in parts, or what the last run told where it knew of more."""
    chosen: Iterable[tuple[str, int]] = (told if sum(told.values()) > sum(in_parts.values()) else in_parts).items()
    return dict(chosen)
