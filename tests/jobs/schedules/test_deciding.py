"""What is decided from state and time alone, as tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest

from specbatch.jobs.schedules.deciding import MAX_SEEN, Begin, Hold, Idle, next_step, see
from specbatch.jobs.schedules.nights import MAX_RETRY_SECONDS, Attempt, Holder, Night, begun, ended, stamp
from specbatch.jobs.schedules.schedule import Schedule

HOLDER = Holder(host="h", boot_id="b", pid=1, process_started="1", token="t")


def day(number: int, hour: int = 1) -> datetime:
    return datetime(2026, 11, number, hour, tzinfo=UTC)


def schedule(**changes: Any) -> Schedule:
    values: dict[str, Any] = {
        "name": "n",
        "cron": "0 1 * * *",
        "timezone": "UTC",
        "overlap": "skip",
        "missed": "run",
        "job": {"output": "/o/{date}"},
        "since": stamp(day(1)),
    }
    return Schedule(**{**values, **changes})


def night(number: int, state: str, *runs: tuple[datetime, datetime | None], **changes: Any) -> Night:
    attempts = tuple(
        Attempt(number=i, started_at=stamp(start), ended_at=None if end is None else stamp(end), log="l")
        for i, (start, end) in enumerate(runs, start=1)
    )
    return Night(
        schedule="n",
        planned=day(number).isoformat(),
        state=state,  # type: ignore[arg-type]
        seen_at="",
        output="",
        attempts=attempts,
        **changes,
    )


def verdicts(found: Any) -> list[str]:
    return [f"{each.planned.day} {each.state} {each.reason}".strip() for each in found]


@pytest.mark.parametrize(
    ("overlap", "missed", "expected"),
    [
        ("skip", "run", ["10 waiting missed", "11 skipped overlap", "12 waiting"]),
        ("skip", "skip", ["10 skipped missed", "11 skipped overlap", "12 waiting"]),
        ("wait", "run", ["10 waiting missed", "11 waiting overlap", "12 waiting"]),
        ("wait", "skip", ["10 skipped missed", "11 waiting overlap", "12 waiting"]),
    ],
)
def test_what_becomes_of_nights_by_the_rules(overlap: str, missed: str, expected: list[str]) -> None:
    """The 9th was run by hand late on the 10th and ended on the 11th; nobody looked until the 12th."""
    ran = night(9, "complete", (day(10, 20), day(11, 5)))
    rules = schedule(overlap=overlap, missed=missed)
    now = day(12) + timedelta(minutes=14)
    assert verdicts(see(rules, [ran], [day(10), day(11), day(12)], now)) == expected


@pytest.mark.parametrize(
    ("state", "runs", "is_overlap"),
    [
        ("running", [(day(9), None)], True),
        ("resumable", [(day(9), day(9, 2))], True),
        ("complete", [(day(9), day(9, 2))], False),
        ("failed", [(day(9), day(10, 2))], True),
        ("failed", [(day(9), day(10, 1))], False),
        ("running", [(day(10, 2), None)], False),
        ("waiting", [], False),
    ],
)
def test_when_a_night_is_an_overlap(state: str, runs: list[tuple[datetime, datetime | None]], is_overlap: bool) -> None:
    found = see(schedule(), [night(9, state, *runs)], [day(10)], day(10) + timedelta(minutes=1))
    assert verdicts(found) == (["10 skipped overlap"] if is_overlap else ["10 waiting"])


@pytest.mark.parametrize(("seconds", "state"), [(0, "waiting"), (899, "waiting"), (900, "skipped")])
def test_how_late_a_night_may_be_seen(seconds: int, state: str) -> None:
    found = see(schedule(missed="skip"), [], [day(10)], day(10) + timedelta(seconds=seconds))
    assert found[0].state == state


def test_after_a_long_absence_only_the_latest_nights_are_seen() -> None:
    times = [day(1) + timedelta(hours=hour) for hour in range(MAX_SEEN + 7)]
    found = see(schedule(), [], times, times[-1])
    assert (len(found), found[0].planned) == (MAX_SEEN, times[7])


def test_the_oldest_night_is_begun_first() -> None:
    assert next_step([], day(12), lambda _: "nobody") == Idle()
    nights = [
        night(11, "waiting"),
        night(10, "waiting"),
        night(9, "complete", (day(9), day(9, 2))),
        night(8, "skipped"),
    ]
    step = next_step(nights, day(12), lambda _: "nobody")
    assert isinstance(step, Begin)
    assert step.night.planned_time == day(10)


@pytest.mark.parametrize(("holding", "expected"), [("nobody", "begin"), ("live", "hold"), ("watched", "watch")])
def test_a_running_night_is_resumed_once_nobody_holds_it(holding: Any, expected: str) -> None:
    running = night(9, "running", (day(9), None))
    step = next_step([running, night(10, "waiting")], day(12), lambda _: holding)
    assert step.night is running  # type: ignore[union-attr]
    shown = "begin" if isinstance(step, Begin) else "watch" if isinstance(step, Hold) and step.is_watching else "hold"
    assert shown == expected


def test_a_night_is_tried_again_when_its_time_has_come_and_others_wait_for_it() -> None:
    retry_at = day(9, 2) + timedelta(minutes=30)
    again = night(9, "resumable", (day(9), day(9, 2)), retry_at=stamp(retry_at))
    nights = [again, night(10, "waiting")]
    assert next_step(nights, day(9, 2), lambda _: "nobody") == Hold(again, until=retry_at)
    assert next_step(nights, retry_at, lambda _: "nobody") == Begin(again)


def test_nights_whose_time_has_not_come_are_left_to_it() -> None:
    """A clock was ahead, saw them, and was set right."""
    early = [night(13, "waiting"), night(12, "waiting")]
    assert next_step(early, day(11), lambda _: "nobody") == Idle()
    assert next_step(early, day(12), lambda _: "nobody") == Begin(early[1])
    assert next_step([night(11, "waiting"), *early], day(11), lambda _: "nobody") == Begin(night(11, "waiting"))


def test_a_pause_that_a_clock_set_which_was_ahead_is_over() -> None:
    again = night(9, "resumable", (day(9), day(9, 2)), retry_at=stamp(day(20)))
    assert next_step([again], day(9, 3), lambda _: "nobody") == Begin(again)
    longest = day(20) - timedelta(seconds=MAX_RETRY_SECONDS)
    assert next_step([again], longest, lambda _: "nobody") == Hold(again, until=day(20))


def after(codes: list[int], *, is_stopped: bool = False, tries: int = 3) -> Night:
    """A night after runs that ended with these codes."""
    found = night(9, "waiting")
    for number, code in enumerate(codes, start=1):
        found = begun(found, HOLDER, day(9, number), {"output": "x"}, "log")
        found = ended(found, code, day(9, number), is_stopped=is_stopped, tries=tries, retry_seconds=60)
    return found


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "complete"),
        (3, "complete"),
        (1, "failed"),
        (2, "failed"),
        (4, "failed"),
        (5, "resumable"),
        (6, "resumable"),
        (7, "failed"),
        (8, "resumable"),
        (130, "resumable"),
        (143, "resumable"),
        (-9, "resumable"),
        (-15, "resumable"),
        (77, "failed"),
    ],
)
def test_what_an_exit_code_makes_of_a_night(code: int, state: str) -> None:
    found = after([code])
    assert found.state == state
    assert found.exit_code == (128 - code if code < 0 else code)
    assert found.holder is None


def test_tries_are_limited_and_their_pauses_grow() -> None:
    assert after([5]).retry_at == stamp(day(9, 1) + timedelta(seconds=60))
    assert after([5, 8]).retry_at == stamp(day(9, 2) + timedelta(seconds=120))
    last = after([5, 8, 143])
    assert (last.state, last.retry_at) == ("failed", None)
    assert "gave up after 3 tries" in last.reason
    assert after([5] * 20, tries=50).retry_at == stamp(day(9, 20) + timedelta(seconds=1800))


def test_a_night_says_who_holds_its_output() -> None:
    begun_once = begun(night(9, "waiting"), HOLDER, day(9), {"output": "x"}, "log")
    end = partial(ended, begun_once, now=day(9, 1), is_stopped=False, retry_seconds=60)
    held = end(6, tries=2, held_by="process 7 works on it")
    assert (held.state, held.reason) == ("resumable", "exit code 6: process 7 works on it")
    assert held.retry_at == stamp(day(9, 1) + timedelta(seconds=60))
    last = end(6, tries=1, held_by="process 7 works on it")
    assert last.reason == "gave up after 1 tries; the last one ended with exit code 6: process 7 works on it"
    assert end(6, tries=2).reason == "exit code 6"
    assert end(8, tries=2, held_by="process 7 works on it").reason == "exit code 8", "it was held, and is not now"


def test_a_run_that_was_stopped_with_its_daemon_is_no_try() -> None:
    found = after([143, 143, 143, 143], is_stopped=True)
    assert (found.state, found.retry_at, found.num_tries) == ("resumable", None, 0)
    assert after([0], is_stopped=True).state == "complete"


def test_a_night_is_known_by_its_time_in_utc() -> None:
    berlin = timezone(timedelta(hours=1))
    shifted = night(9, "waiting").model_copy(update={"planned": datetime(2026, 11, 9, 2, tzinfo=berlin).isoformat()})
    assert shifted.id == night(9, "waiting").id == "20261109T0100Z"
