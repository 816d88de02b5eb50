"""The live view as lines: what stands where, what goes first when room is short, and that it always fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from progress_documents import BUSY, document

from specbatch.jobs.display.cells import char_width, head, left, right, tail, text_width
from specbatch.jobs.display.live_layout import Snapshot, WorkerLine, layout, snapshot_of, span, time_of_day

READY = WorkerLine(0, "ready", "node-1/cpu", 8, 123.4, 640_000_000)
BUSY_SNAPSHOT = Snapshot(
    output="/data/out-1a2b3c4d",
    state="running",
    elapsed_seconds=3723.4,
    rows_done=128,
    num_rows=256,
    parts_done=8,
    num_parts=16,
    eta_seconds=31.2,
    tokens_per_second=245.2,
    tokens_per_second_overall=240.0,
    acceptance_rate=0.712,
    mean_accepted=1.9,
    mean_emitted=2.846,
    k_shares=((0, 0.05), (2, 0.2), (4, 0.75)),
    workers=(READY,),
)


def farm(count: int) -> tuple[WorkerLine, ...]:
    return tuple(replace(READY, number=number, place=f"node-{number}/cuda:0") for number in range(count))


def test_a_view_with_everything() -> None:
    snapshot = replace(
        BUSY_SNAPSHOT,
        workers=(READY, WorkerLine(1, "suspect", "node-2/cpu", 3, 0.0, 700_000_000), WorkerLine(2, "starting")),
        num_errors=3,
        errors=(("ROW_TOO_LONG", 2), ("ROW_MEMORY", 1)),
        notes=(("10:00:05", "worker 1 died: out of memory"),),
    )
    assert layout(snapshot, 100, 24) == [
        "/data/out-1a2b3c4d  running  1:02:03",
        "rows 128/256  ━━━━━━━━━━━━━━━━━━━━────────────────────  50 %  ETA 0:31  parts 8/16",
        "245 tok/s  acceptance 0.71  240 tok/s overall  1.90 accepted/round  2.85 tok/round",
        "3 errors  ROW_TOO_LONG 2  ROW_MEMORY 1",
        "K lately  0: 5 %  2: 20 %  4: 75 %",
        "worker  state     rows  tok/s  memory  place",
        "     0  ready        8    123  640 MB  node-1/cpu",
        "     1  suspect      3   0.00  700 MB  node-2/cpu",
        "     2  starting     -      -       -",
        "10:00:05 worker 1 died: out of memory",
    ]


def test_before_the_first_row_nothing_is_promised() -> None:
    snapshot = Snapshot("out", "starting", 1.0, 0, 256, 0, 16)
    assert layout(snapshot, 60, 10) == [
        "out  starting  0:01",
        "rows 0/256  ──────────────────  0 %  ETA unknown  parts 0/16",
    ]


def test_a_job_that_is_done_has_no_eta_and_one_that_is_silent_says_so() -> None:
    done = replace(BUSY_SNAPSHOT, rows_done=256, parts_done=16, state="complete", eta_seconds=0.0)
    assert "ETA" not in layout(done, 100, 24)[1]
    assert "100 %" in layout(done, 100, 24)[1]
    silent = replace(BUSY_SNAPSHOT, silence_seconds=190.0)
    assert layout(silent, 100, 24)[0] == "/data/out-1a2b3c4d  no sign of life for 3 min  1:02:03"


def test_forty_workers_fold_to_what_fits_the_troubled_first() -> None:
    workers = list(farm(40))
    workers[17] = replace(workers[17], state="suspect")
    workers[30] = replace(workers[30], state="writing part 5 for 3:05")
    lines = layout(replace(BUSY_SNAPSHOT, workers=tuple(workers)), 100, 24)
    assert len(lines) == 24
    assert [line.split()[0] for line in lines[5:10]] == ["17", "30", "0", "1", "2"]
    assert lines[-1] == "… 22 more ready"
    tall = layout(replace(BUSY_SNAPSHOT, workers=tuple(workers)), 100, 60)
    assert [line.split()[0] for line in tall[5:45]] == [str(number) for number in range(40)]
    assert "…" not in tall[-1]


def test_the_rest_is_counted_by_state() -> None:
    workers = tuple(replace(worker, state="starting" if worker.number % 4 == 0 else "ready") for worker in farm(40))
    assert layout(replace(BUSY_SNAPSHOT, workers=workers), 100, 12)[-1] == "… 30 more ready, 4 more starting"
    assert layout(replace(BUSY_SNAPSHOT, workers=workers), 100, 6)[-1] == "40 workers: 30 ready, 10 starting"


@pytest.mark.parametrize(
    ("height", "first_words"),
    [
        (1, ["rows"]),
        (2, ["/data/out-1a2b3c4d", "rows"]),
        (3, ["/data/out-1a2b3c4d", "rows", "245"]),
        (4, ["/data/out-1a2b3c4d", "rows", "245", "2"]),
        (5, ["/data/out-1a2b3c4d", "rows", "245", "2", "K"]),
        (6, ["/data/out-1a2b3c4d", "rows", "245", "2", "K", "1"]),
        (7, ["/data/out-1a2b3c4d", "rows", "245", "2", "K", "worker", "0"]),
        (8, ["/data/out-1a2b3c4d", "rows", "245", "2", "K", "worker", "0", "10:00:06"]),
        (9, ["/data/out-1a2b3c4d", "rows", "245", "2", "K", "worker", "0", "10:00:05", "10:00:06"]),
    ],
)
def test_what_goes_first_when_room_is_short(height: int, first_words: list[str]) -> None:
    notes = (("10:00:05", "one"), ("10:00:06", "two"))
    snapshot = replace(BUSY_SNAPSHOT, num_errors=2, errors=(("ROW_MEMORY", 2),), notes=notes)
    assert [line.split()[0] for line in layout(snapshot, 90, height)] == first_words


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "rows 128/256  ━━━━━━━━━━━━━━━━━━╸───────────────────  50 %  ETA 0:31  parts 8/16"),
        (48, "rows 128/256  ━━━━━╸──────  50 %  ETA 0:31"),
        (36, "rows 128/256  ━━━━━━━━────────  50 %"),
        (22, "rows 128/256  ━━━━────"),
        (21, "rows 128/256"),
        (8, "rows 12…"),
        (1, "…"),
    ],
)
def test_the_line_of_rows_by_width(width: int, line: str) -> None:
    assert text_width(layout(BUSY_SNAPSHOT, width, 1)[0]) <= width
    assert layout(BUSY_SNAPSHOT, width, 1)[0].split("  ")[0] == line.split("  ")[0]
    assert len(layout(BUSY_SNAPSHOT, width, 1)[0].split("  ")) == len(line.split("  "))


def test_columns_of_workers_go_one_by_one() -> None:
    def headers(width: int) -> str:
        return layout(BUSY_SNAPSHOT, width, 20)[4].strip()

    assert headers(80) == "worker  state  rows  tok/s  memory  place"
    assert headers(38) == "worker  state  rows  tok/s  memory"
    assert headers(26) == "worker  state  rows  tok/s"
    assert headers(20) == "worker  state  tok/s"
    assert headers(13) == "worker  state"
    assert headers(8) == "0 ready"


def test_names_of_two_columns_stay_in_line() -> None:
    workers = (replace(READY, place="ノード一/cpu"), replace(READY, number=1, place="node-1/cpu"))
    lines = layout(replace(BUSY_SNAPSHOT, output="/データ/出力", workers=workers), 60, 20)
    assert lines[0].startswith("/データ/出力  running")
    assert lines[5].endswith("ノード一/cpu")
    assert lines[5].index("ノード") == lines[6].index("node-1")


def test_a_document_becomes_a_snapshot() -> None:
    doc = document(
        **{
            **BUSY,
            "output": "out\x1b[2J",
            "elapsed_seconds": 12.0,
            "k_shares": {"10": 0.5, "2": 0.5, "x": 1},
            "errors_by_code": {"ROW_A": 1, "ROW_B": 5},
            "notes": [{"at": "2026-11-23T10:00:05.123+00:00", "level": "warning", "message": "worker 0\nis slow"}],
            "workers": [
                {"worker": 0, "state": "ready", "writing_shard": 12, "writing_seconds": 185.0, "place": "a/cpu"},
                {"worker": 1, "state": "ready", "writing_shard": 13, "writing_seconds": 5.0},
                {"worker": "two", "state": None, "rows_active": float("nan"), "memory_bytes": True},
                {},
            ],
        }
    )
    snapshot = snapshot_of(doc, rows_done=20)
    assert (snapshot.output, snapshot.rows_done, snapshot.elapsed_seconds) == ("out?[2J", 20, 12.0)
    assert snapshot.k_shares == ((2, 0.5), (10, 0.5))
    assert snapshot.errors == (("ROW_B", 5), ("ROW_A", 1))
    assert snapshot.notes == (("10:00:05", "worker 0?is slow"),)
    assert [worker.state for worker in snapshot.workers] == ["writing part 12 for 3:05", "ready", "None", "ready"]
    assert snapshot.workers[2] == WorkerLine(0, "None")


def test_a_document_of_an_older_version_becomes_one_too() -> None:
    workers = [{"worker": 0, "pid": 1, "host": "h", "rows_done": 3, "rows_active": 2, "completion_tokens": 10}]
    snapshot = snapshot_of(document(**{**BUSY, "workers": workers}), rows_done=3)
    assert layout(snapshot, 60, 9)[-1] == "     0  ready     2      -       -"


def test_one_unit_of_time_and_the_time_of_day() -> None:
    assert [span(seconds) for seconds in (45, 190, 7300, 200_000)] == ["45 s", "3 min", "2 h", "2 d"]
    assert [time_of_day(at) for at in ("2026-11-23T10:00:05+00:00", "", "yesterday at noon, or so")] == [
        "10:00:05",
        "",
        "",
    ]


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_cells() -> None:
    assert [char_width(char) for char in "aé漢ｶ\u0301\u1161😀"] == [1, 1, 2, 1, 0, 0, 2]
    assert (head("漢字漢字", 5), tail("漢字漢字", 5)) == ("漢字…", "…漢字")
    assert (head("漢字", 4), head("漢字", 3), head("漢字", 1), head("漢字", 0)) == ("漢字", "漢…", "…", "")
    assert (left("漢", 4), right("漢", 4), left("漢字漢", 4)) == ("漢  ", "  漢", "漢… ")
    assert tail("cafe\u0301s", 3) == "…s"[:1] + "e\u0301s"


@given(st.text(max_size=30), st.integers(0, 20))
def test_cut_text_always_fits_and_filled_text_is_exact(text: str, width: int) -> None:
    assert text_width(head(text, width)) <= width
    assert text_width(tail(text, width)) <= width
    assert text_width(left(text, width)) == width
    assert text_width(right(text, width)) == width


# ---- properties ------------------------------------------------------------------------------------------------------

_TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("漢字ノード\u0301\x1b\n\r\u202e😀")), max_size=40
)
_NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-(10**20), 10**20))
_WORKERS = st.lists(
    st.dictionaries(
        st.sampled_from(
            ["worker", "state", "place", "rows_active", "tokens_per_second", "memory_bytes", "writing_seconds"]
        ),
        st.one_of(_NUMBERS, _TEXT, st.sampled_from(["ready", "suspect", "starting", "quarantined"])),
    ),
    max_size=50,
)
_COUNTS = st.integers(0, 10**12)
_RATES = st.floats(0, 1e9)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "output": draw(_TEXT),
        "state": draw(st.one_of(st.sampled_from(["starting", "running", "draining", "complete"]), _TEXT)),
        "num_rows": draw(_COUNTS),
        "num_parts": draw(_COUNTS),
        "parts_done": draw(_COUNTS),
        "num_errors": draw(_COUNTS),
        "tokens_per_second": draw(_RATES),
        "tokens_per_second_overall": draw(st.none() | _RATES),
        "acceptance_rate": draw(st.none() | st.floats(0, 1)),
        "mean_accepted": draw(st.none() | st.floats(0, 99)),
        "mean_emitted": draw(st.none() | st.floats(0, 99)),
        "eta_seconds": draw(st.none() | st.floats(0, 1e9)),
        "elapsed_seconds": draw(st.none() | st.floats(0, 1e9)),
        "k_shares": draw(st.dictionaries(st.integers(0, 20).map(str) | _TEXT, st.floats(0, 1), max_size=12)),
        "errors_by_code": draw(st.dictionaries(_TEXT, _COUNTS, max_size=8)),
        "notes": [
            {"at": draw(_TEXT), "level": "warning", "message": draw(_TEXT)} for _ in range(draw(st.integers(0, 5)))
        ],
        "workers": draw(_WORKERS),
    }


@settings(max_examples=300, deadline=None)
@given(documents(), _COUNTS, st.integers(1, 200), st.integers(1, 60), st.none() | st.floats(0, 1e9))
def test_it_always_fits_and_is_fit_to_be_written(
    changes: dict[str, Any], rows_done: int, width: int, height: int, silence_seconds: float | None
) -> None:
    snapshot = snapshot_of(document(**changes), rows_done=rows_done, silence_seconds=silence_seconds)
    lines = layout(snapshot, width, height)
    assert 1 <= len(lines) <= height
    for line in lines:
        assert text_width(line) <= width
        assert not any(category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in line), ascii(line)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(20, 160))
def test_no_worker_is_ever_lost(count: int, height: int, width: int) -> None:
    lines = layout(replace(BUSY_SNAPSHOT, workers=farm(count)), width, height)
    table = lines[4:]
    if height < 5:
        return
    if table[-1].startswith("…"):
        assert int(table[-1].split()[1]) + len(table) - 2 == count
    elif "worker" in table[0] and ":" in table[0]:
        assert table[0].startswith(f"{count} worker")
    else:
        assert len(table) == count + 1
