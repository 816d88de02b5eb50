"""When nights are, above all where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from specbatch.jobs.schedules.calendar import calendar_lines
from specbatch.jobs.schedules.times import check_cron, last_time, next_time, times_after, times_between
from specbatch.jobs.spec.placeholders import parse_zone
from specbatch.schemas.errors import SpecbatchError

BERLIN = ZoneInfo("Europe/Berlin")


def first(cron: str, after: str, number: int, zone: ZoneInfo = BERLIN) -> list[str]:
    found = islice(times_after(cron, zone, datetime.fromisoformat(after)), number)
    return [planned.isoformat(timespec="minutes") for planned in found]


def test_a_time_that_does_not_exist_in_spring_comes_at_the_first_minute_that_does() -> None:
    assert first("30 2 * * *", "2027-03-27T00:00Z", 3) == [
        "2027-03-27T02:30+01:00",
        "2027-03-28T03:00+02:00",
        "2027-03-29T02:30+02:00",
    ]


def test_a_time_that_comes_twice_in_autumn_is_taken_once() -> None:
    expected = ["2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]
    assert first("30 2 * * *", "2026-10-24T00:00Z", 3) == expected
    # Asked between the two, or just behind the second: the night is over.
    assert first("30 2 * * *", "2026-10-25T00:45Z", 1) == expected[2:]
    assert first("30 2 * * *", "2026-10-25T01:45Z", 1) == expected[2:]


def test_an_hourly_line_follows_the_elapsed_hours() -> None:
    autumn = ["2026-10-25T01:30+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00"]
    assert first("30 * * * *", "2026-10-24T23:00Z", 4) == autumn
    spring = ["2027-03-28T01:30+01:00", "2027-03-28T03:30+02:00"]
    assert first("30 * * * *", "2027-03-28T00:00Z", 2) == spring


def test_other_nights_of_a_day_with_a_change_are_as_ever() -> None:
    assert first("15 1 * * *", "2027-03-27T12:00Z", 2) == ["2027-03-28T01:15+01:00", "2027-03-29T01:15+02:00"]
    assert first("15 4 * * *", "2026-10-24T12:00Z", 2) == ["2026-10-25T04:15+01:00", "2026-10-26T04:15+01:00"]


@pytest.mark.parametrize("cron", ["30 2 * * *", "15 1 * * *", "30 * * * *", "*/20 1-3 * * *", "0 3 * * 0", "0 0 L * *"])
@pytest.mark.parametrize("day", ["2026-10-25", "2027-03-28", "2026-11-24"])
def test_the_last_time_is_the_last_of_all_times_before(cron: str, day: str) -> None:
    start = datetime.fromisoformat(f"{day}T00:00Z") - timedelta(hours=4)
    every = list(times_between(cron, BERLIN, start - timedelta(days=32), start + timedelta(days=32)))
    for minutes in range(0, 720, 45):
        now = start + timedelta(minutes=minutes)
        assert last_time(cron, BERLIN, now) == max(planned for planned in every if planned <= now)
        assert next_time(cron, BERLIN, now) == min(planned for planned in every if planned > now)


def test_times_between_takes_the_end_and_leaves_the_beginning() -> None:
    start, end = datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 11, 26, tzinfo=UTC)
    found = list(times_between("0 0 * * *", ZoneInfo("UTC"), start, end))
    assert [planned.day for planned in found] == [25, 26]


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("15 1 * *", "five fields"),
        ("0 15 1 * * *", "five fields"),
        ("99 1 * * *", "bad minute"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("0 0 * * " + "1," * 200 + "1", "five fields"),
    ],
)
def test_a_line_that_is_none_is_refused_with_the_reason(cron: str, reason: str) -> None:
    with pytest.raises(SpecbatchError, match=reason) as caught:
        check_cron(cron)
    assert caught.value.code == "JOB_CONFIG"
    assert len(caught.value.message) < 500


def test_a_line_is_kept_with_single_spaces() -> None:
    assert check_cron(" 15  1 *\t* mon-fri ") == "15 1 * * mon-fri"


@pytest.mark.parametrize("name", ["Europe/Berlim", "", "../etc/passwd", "/etc/localtime", "Europe", "x" * 999, "a\0b"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SpecbatchError, match="no such time zone"):
        parse_zone(name)


@pytest.mark.parametrize(
    ("cron", "lines"),
    [
        ("15 1 * * *", ["*-*-* 01:15:00"]),
        ("0 */6 * * *", ["*-*-* 00,06,12,18:00:00"]),
        ("0 2 * * 1-5", ["Mon,Tue,Wed,Thu,Fri *-*-* 02:00:00"]),
        ("0 2 * * 7", ["Sun *-*-* 02:00:00"]),
        ("0 2 1 1,7 *", ["*-01,07-01 02:00:00"]),
        ("0 2 L * *", ["*-*~01 02:00:00"]),
        ("0 2 13 * 5", ["*-*-13 02:00:00", "Fri *-*-* 02:00:00"]),
    ],
)
def test_a_cron_line_in_the_words_of_systemd(cron: str, lines: list[str]) -> None:
    assert list(calendar_lines(cron)) == lines


def test_days_that_systemd_has_no_words_for_are_refused() -> None:
    for cron in ("0 2 * * MON#2", "0 2 LW * *", "0 2 * * 5L"):
        with pytest.raises(SpecbatchError, match="systemd has no words"):
            calendar_lines(cron)
