"""The log of a run: what goes into it, how it lies in storage, and ``specbatch logs`` that reads it from anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from finished_output import Output, build, make_run
from progress_documents import write_progress

from specbatch.jobs.cli import app as cli
from specbatch.jobs.coordinator.events import (
    Assign,
    AttemptFailed,
    Beat,
    Cancelled,
    CapacityChanged,
    DrainWorker,
    DropShard,
    Interrupted,
    KillWorker,
    PreemptionNotice,
    ProbePassed,
    Say,
    StartWorker,
    Tick,
    WorkerDied,
    WorkerJoined,
)
from specbatch.jobs.running import run_log
from specbatch.jobs.running.run_log import Fact, RunLog, fact_of, said
from specbatch.jobs.watching.logs import RunLogReader, read_log, render_line
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import Lease, ProbeDone, ShardFailed
from specbatch.schemas.plan import Segment, Shard
from specbatch.schemas.stats import PartStats
from specbatch.storage.store import Store, open_store


def lease(attempt: int = 1, probe: tuple[int, int] | None = None) -> Lease:
    return Lease(Shard(4, (Segment("in.parquet", 100, "a" * 64, 0, 20, 0),)), attempt, probe)


def test_what_happens_to_workers_and_shards_becomes_facts() -> None:
    facts = [
        fact_of(item)
        for item in (
            StartWorker(1),
            WorkerJoined(1, "node-1/cpu"),
            AttemptFailed(1, ShardFailed(4, 2, "SHARD_OOM", "memory ran out")),
            Assign(2, lease(attempt=2)),
            Assign(2, lease(probe=(8, 16))),
            ProbePassed(2, ProbeDone(4, 8, 16)),
            PreemptionNotice(1, 30.0),
            DrainWorker(1),
            KillWorker(1, "no sign of life for 130 s"),
            WorkerDied(1, "no sign of life for 130 s", cause="hung"),
            CapacityChanged(1),
            Interrupted(),
            Cancelled(),
        )
    ]
    assert [(fact.level, fact.event, fact.worker, fact.shard, fact.attempt) for fact in facts if fact] == [
        ("info", "worker_starting", 1, None, None),
        ("info", "worker_ready", 1, None, None),
        ("warning", "shard_failed", 1, 4, 2),
        ("info", "shard_again", 2, 4, 2),
        ("info", "probe", 2, 4, 1),
        ("info", "probe_passed", 2, 4, None),
        ("warning", "worker_preempted", 1, None, None),
        ("info", "worker_draining", 1, None, None),
        ("warning", "worker_killed", 1, None, None),
        ("warning", "worker_died", 1, None, None),
        ("info", "capacity", None, None, None),
        ("warning", "interrupted", None, None, None),
        ("warning", "cancelled", None, None, None),
    ]
    assert [fact_of(item) for item in (Tick(1.0), Beat(1, 0.0), Assign(1, lease()), DropShard(1, 4), Say("x"))] == [
        None
    ] * 5
    words = "shard 7 failed on worker 12, 3 times"
    assert said(words) == Fact("warning", "note", words, 12, 7)


def test_a_log_lies_in_objects_of_bounded_size_that_never_change_once_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "CHUNK_BYTES", 1000)
    stored: dict[str, str] = {}
    full: dict[str, str] = {}
    log = RunLog(lambda: "2026-11-24T02:58:31.123+00:00")

    def write(name: str, text: str) -> None:
        assert name not in full or full[name] == text
        stored[name] = text

    for number in range(40):
        log.add(Fact("info", "note", f"line {number}", worker=number))
        if number % 3 == 0:
            log.flush(write)
            full = {name: text for name, text in stored.items() if name != max(stored)}
    log.flush(write)
    assert sorted(stored) == [f"run-{number:04d}.jsonl" for number in range(1, len(stored) + 1)]
    assert len(stored) > 4
    assert max(map(len, stored.values())) <= 1000
    lines = [json.loads(line) for name in sorted(stored) for line in stored[name].splitlines()]
    assert [line["message"] for line in lines] == [f"line {number}" for number in range(40)]
    assert list(lines[0]) == [
        *("time", "level", "event", "message", "job", "epoch", "worker", "shard", "attempt", "code")
    ]
    written: list[str] = []
    log.flush(lambda name, text: written.append(name))
    assert written == [], "only what has changed is written"


def test_a_write_that_fails_is_made_up_for() -> None:
    log, stored = RunLog(lambda: "now"), dict[str, str]()
    log.add(Fact("info", "note", "one"))

    def fail(name: str, text: str) -> None:
        raise SpecbatchError(ErrorCode.JOB_STORE_LOST, "no route")

    with pytest.raises(SpecbatchError):
        log.flush(fail)
    log.add(Fact("info", "note", "two"))
    log.flush(stored.__setitem__)
    assert [json.loads(line)["message"] for line in stored["run-0001.jsonl"].splitlines()] == ["one", "two"]


def test_of_very_much_plain_news_goes_first_and_the_end_is_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "MAX_INFO_BYTES", 1000)
    monkeypatch.setattr(run_log, "MAX_BYTES", 2000)
    log, stored = RunLog(lambda: "now"), dict[str, str]()
    for number in range(100):
        log.add(Fact("info", "note", f"plain {number}"))
    for number in range(100):
        log.add(Fact("warning", "note", f"bad {number} " + "漢" * 10_000))
    log.add(Fact("info", "run_ended", "run 1 ended: failed"))
    log.flush(stored.__setitem__)
    text = "".join(stored[name] for name in sorted(stored))
    assert len(text) < 20_000
    messages = [json.loads(line)["message"] for line in text.splitlines()]
    assert messages[0] == "plain 0"
    assert any(message.startswith("bad") for message in messages)
    left_out = 200 - (len(messages) - 1)
    assert messages[-1] == f"run 1 ended: failed ({left_out} lines left out)"
    assert [note.message[:6] for note in log.notes] == [f"bad {number}" for number in range(92, 100)]


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return build(tmp_path / "out", num_parts=2)


def put(output: Output, epoch: int, name: str, text: str) -> None:
    path = output.root / f"_specbatch/logs/{epoch}/{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def put_run(output: Output, epoch: int, **changes: Any) -> None:
    path = output.root / f"_specbatch/runs/{epoch}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(make_run(epoch, PartStats(), k=0, **changes).model_dump_json())


def line(event: str, message: str, worker: int | None = None) -> str:
    values = {"time": "2026-11-24T02:58:31.123+00:00", "level": "info", "event": event, "message": message}
    return json.dumps({**values, "worker": worker, "shard": None, "attempt": None}) + "\n"


def read(output: Output, **options: Any) -> list[str]:
    return [found["message"] for found in read_log(str(output.root), **options)]


def fill(output: Output) -> None:
    put_run(output, 1)
    put_run(output, 2)
    put(output, 1, "run-0001.jsonl", line("note", "of the first run"))
    put(output, 2, "run-0001.jsonl", line("run_started", "begins") + line("worker_died", "worker 3 died", 3))
    put(output, 2, "run-0002.jsonl", line("crash", "broken") + "{damaged\n" + line("run_ended", "ends"))
    put(output, 2, "worker-3.txt", "Fatal error\n\x1b[2Jlast words\n")
    put(output, 2, "worker-4.txt", "of one that no line tells of\n")
    put(output, 2, "crash.txt", "Traceback\n")


def test_the_last_run_is_told_with_last_words_in_their_places(output: Output) -> None:
    fill(output)
    told = read(output)
    assert told == [
        "begins",
        "worker 3 died",
        "Fatal error\n\x1b[2Jlast words\n",
        "broken",
        "Traceback\n",
        "ends",
        "of one that no line tells of\n",
    ]
    assert read(output, epoch=1) == ["of the first run"]
    assert read(output, worker=3) == ["worker 3 died", "Fatal error\n\x1b[2Jlast words\n"]
    told: list[str] = []
    assert list(read_log(str(output.root), worker=8, say=told.append)) == []
    assert told == ["nothing in the log of run 2 is about worker 8"]
    with pytest.raises(SpecbatchError, match="has no such run; its runs are: 1, 2"):
        read(output, epoch=7)


def test_lines_for_people_are_safe_and_those_for_programs_whole(output: Output) -> None:
    fill(output)
    lines = list(read_log(str(output.root)))
    assert render_line(lines[1], "human") == "2026-11-24T02:58:31Z  info     worker 3 died\n"
    assert render_line(lines[2], "human") == "    | Fatal error\n    | ?[2Jlast words\n"
    assert json.loads(render_line(lines[2], "jsonl")) == {
        "time": "",
        "level": "info",
        "event": "stderr",
        "worker": 3,
        "shard": None,
        "attempt": None,
        "message": "Fatal error\n\x1b[2Jlast words\n",
    }
    long = {**lines[2], "message": "\n".join(map(str, range(100)))}
    assert render_line(long, "human").splitlines()[:2] == ["    | ... 40 lines before", "    | 40"]


def test_runs_of_older_versions_show_the_events_of_their_record(output: Output) -> None:
    put_run(output, 1, events=((2.5, "worker 3 died: out of memory"),), outcome="interrupted")
    put(output, 1, "worker-3.txt", "last words\n")
    lines = list(read_log(str(output.root)))
    messages = [found["message"] for found in lines]
    assert messages == ["worker 3 died: out of memory", "run 1: interrupted", "last words\n"]
    assert (lines[0]["time"], lines[0]["worker"]) == ("2026-11-23T10:00:02.500+00:00", 3)


def test_no_job_and_no_run_are_told_apart(tmp_path: Path, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", str(output.root)]) == 0
    assert capsys.readouterr() == ("", f"no run has begun on {output.root} yet\n")
    assert cli.run(["logs", str(tmp_path)]) == 2
    assert "error: JOB_OUTPUT_MISSING: " in capsys.readouterr().err


def test_following_ends_with_the_run(output: Output) -> None:
    put_run(output, 1)
    write_progress(output, epoch=1, host="elsewhere", updated_at="2099-01-01T00:00:00+00:00")
    told = ""
    texts = [line("run_started", "begins"), line("note", "goes on"), "", line("run_ended", "ends")]

    def sleep(seconds: float) -> None:
        nonlocal told
        assert texts, "it goes on although the run has ended"
        told += texts.pop(0)
        put(output, 1, "run-0001.jsonl", told)

    sleep(0)
    assert read(output, follow=True, sleep=sleep) == ["begins", "goes on", "ends"]
    assert texts == []


def test_following_goes_over_to_the_next_object_and_reads_little(output: Output) -> None:
    put_run(output, 1)
    store = open_store(str(output.root))
    reads: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def read(self, key: str) -> bytes:
            reads.append(key.rpartition("/")[2])
            return store.read(key)

    counting: Store = Counting()  # type: ignore[assignment]
    reader = RunLogReader(counting, 1)
    assert reader.read() == []
    put(output, 1, "run-0001.jsonl", line("note", "one"))
    assert [found["message"] for found in reader.read()] == ["one"]
    put(output, 1, "run-0001.jsonl", line("note", "one") + line("note", "two"))
    put(output, 1, "run-0002.jsonl", line("note", "three"))
    assert [found["message"] for found in reader.read()] == ["two", "three"]
    reads.clear()
    assert reader.read() == []
    assert reads == ["run-0002.jsonl", "run-0003.jsonl"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "interrupted"}, []),
        ({"state": "complete"}, []),
        ({"epoch": 2, "host": "elsewhere", "updated_at": "five minutes ago"}, []),
        ({"host": "elsewhere", "updated_at": "five minutes ago"}, ["no sign of life of run 1 for 5 min"]),
    ],
)
def test_following_a_run_that_was_killed_ends_too(output: Output, changes: dict[str, Any], words: list[str]) -> None:
    put_run(output, 1)
    put(output, 1, "run-0001.jsonl", line("note", "one"))
    if "updated_at" in changes:
        changes = {**changes, "updated_at": (datetime.now(UTC) - timedelta(minutes=5)).isoformat()}
    write_progress(output, **{"epoch": 1, **changes})
    said_lines: list[str] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        assert words, "what has ended is not waited for"
        clock[0] += 1000

    assert read(output, follow=True, epoch=1, say=said_lines.append, sleep=sleep, clock=lambda: clock[0]) == ["one"]
    assert len(said_lines) >= len(words)
    assert all(line.startswith(word) for line, word in zip(said_lines, words, strict=False))


def test_the_command_line_reads_it_without_torch_and_ray(output: Output) -> None:
    fill(output)
    script = (
        "import sys\nfrom specbatch.jobs.cli import app as cli\ncode = cli.run(sys.argv[1:])\n"
        "print(code, *(n for n in ('torch', 'transformers', 'ray', 'boto3', 'pyarrow') if n in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "logs", str(output.root), "-f", "--epoch", "2"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert "    | ?[2Jlast words" in done.stdout
