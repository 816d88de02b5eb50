"""The shell's parts without a Ray: what it sees of a cluster, how calls are repeated, how processes are ended."""

from __future__ import annotations

import fcntl
import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from specbatch.jobs.coordinator.coordinator import Coordinator
from specbatch.jobs.coordinator.events import Beat, CapacityChanged, PreemptionNotice, WorkerDrained
from specbatch.jobs.output.lease import process_started
from specbatch.jobs.running import cluster
from specbatch.jobs.running.cluster import _sweep, open_cluster
from specbatch.jobs.running.cluster_joined import LOST_SECONDS, JoinedCluster
from specbatch.jobs.running.cluster_view import ClusterView, choose_node, count_slots
from specbatch.jobs.running.interrupt import Interrupts
from specbatch.jobs.running.killing import PATIENCE_SECONDS, Killing
from specbatch.jobs.running.need import Node, WorkerNeed
from specbatch.jobs.running.placing import Placing
from specbatch.jobs.running.processes import AGAIN_SECONDS, WorkerProcess
from specbatch.jobs.running.runner import Runner
from specbatch.jobs.running.tally import RunTally
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.messages import (
    MemoryReport,
    ProbeDone,
    Progress,
    ShardFailed,
    WorkerConfig,
    WorkerPoll,
    WorkerReady,
)
from specbatch.schemas.prompt import PromptSpec
from specbatch.schemas.spec import GenerationSpec
from specbatch.schemas.stats import PartStats
from specbatch.workers.actor import News, Whereabouts, WorkerActor, kill_process, process_start
from specbatch.workers.worker import Worker

HEAD, FIRST, SECOND = Node("head", 0, 0), Node("a", 8, 2), Node("b", 8, 1)
VIEW = ClusterView((HEAD, FIRST, SECOND))
CPU, CUDA = WorkerNeed("cpu"), WorkerNeed("cuda")
MEMORY = MemoryReport(0, 0, 0, 0, 0)
HERE = Whereabouts("a", "somewhere", 7, "now")


def make_config(device: str = "cpu") -> WorkerConfig:
    return WorkerConfig(0, "out", "p" * 16, "t", None, "auto", device, "off", 4, 1, PromptSpec(), GenerationSpec())


def make_poll(**changes: Any) -> WorkerPoll:
    return WorkerPoll((), (), (), replace(Progress(), **changes), MEMORY)


# ---- the cluster -----------------------------------------------------------------------------------------------------


def test_room_for_workers() -> None:
    assert count_slots(VIEW, CUDA) == 3
    assert count_slots(VIEW, CPU) == 2
    assert count_slots(VIEW, CPU, num_wanted=5) == 5
    assert count_slots(ClusterView((HEAD,)), CPU, num_wanted=5) == 0
    assert count_slots(replace(VIEW, draining={"a": math.inf}), CUDA) == 1


def test_a_worker_goes_where_fewest_are() -> None:
    assert choose_node(VIEW, CPU, {}) == "a"
    assert choose_node(VIEW, CPU, {"a": 1}) == "b"
    assert choose_node(VIEW, CPU, {"a": 1, "b": 1}) is None, "one each is all that was wanted"
    assert choose_node(VIEW, CPU, {"a": 2, "b": 1}, num_wanted=5) == "b"
    assert choose_node(VIEW, CPU, {"a": 2, "b": 1}, {"b"}, num_wanted=5) == "a"
    assert choose_node(replace(VIEW, draining={"a": 1.0}), CPU, {"b": 2}, num_wanted=3) == "b"
    assert choose_node(ClusterView((HEAD,)), CPU, {}) is None


def test_workers_wait_for_a_place_and_notices_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults 14 and 20."""
    views = [ClusterView((HEAD,))]
    placing = Placing(make_config(), lambda: views[-1], 0, CPU)
    monkeypatch.setattr(placing, "_start_actor", lambda worker, node: f"actor {worker} on {node}")
    assert placing.news([]) == [CapacityChanged(0)]
    placing.add(4)
    placing.add(5)
    assert placing.start([]) == []
    assert placing.news([]) == [Beat(4, 0.0), Beat(5, 0.0)]
    views.append(VIEW)
    assert placing.news([])[0] == CapacityChanged(2)
    started = placing.start([])
    assert [process.actor for process in started] == ["actor 4 on a", "actor 5 on b"]
    assert placing.remove(4) is False
    for process in started:
        process.whereabouts = HERE
    end = time.time() + 60
    views.append(replace(VIEW, draining={"b": end}))
    capacity, notice = placing.news(started)
    assert capacity == CapacityChanged(1)
    assert isinstance(notice, PreemptionNotice)
    assert notice.worker == 5
    assert notice.grace_seconds == pytest.approx(60, abs=5)
    assert placing.news(started) == []
    assert (placing.judge(started[0]), placing.judge(started[1])) == (None, "preempted")
    views.append(ClusterView((HEAD, SECOND)))
    placing.news(started)
    assert placing.judge(started[0]) == "lost"
    placing.avoid("b")
    placing.add(6)
    assert placing.start([]) == []


def test_a_silent_head_is_lost(tmp_path: Path) -> None:
    """Fault 21."""

    class Watch:
        silent_seconds = 0.0
        view: ClusterView | None = VIEW

    watch: Any = Watch()
    cluster = JoinedCluster("head:6379", tmp_path, "a", watch)
    cluster.check()
    watch.view = ClusterView((HEAD, SECOND))
    with pytest.raises(SpecbatchError, match="JOB_CLUSTER_LOST: the Ray node of this machine has left"):
        cluster.check()
    watch.view, watch.silent_seconds = VIEW, LOST_SECONDS + 1
    with pytest.raises(SpecbatchError, match="has not answered for 20 s"):
        cluster.check()


def test_an_address_that_cannot_be_one() -> None:
    with (
        pytest.raises(SpecbatchError, match="JOB_CONFIG: --address ray://head:10001"),
        open_cluster("ray://head:10001", 0),
    ):
        pass


# ---- calls -----------------------------------------------------------------------------------------------------------


class Method:
    def __init__(self, log: list[tuple[str, Any]], name: str) -> None:
        self._log, self._name = log, name

    def remote(self, *arguments: Any) -> str:
        self._log.append((self._name, arguments))
        return f"call {len(self._log)}"


class FakeActor:
    """Writes down what it was asked."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Method:
        return Method(self.log, name)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> deque[Any]:
    waiting: deque[Any] = deque()

    def get(call: str) -> Any:
        answer = waiting.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.get", get)
    return waiting


def join(process: WorkerProcess, answers: deque[Any]) -> None:
    answers.extend([HERE, WorkerReady(0, "somewhere", 7, "cpu", "float32", 1, 0.1, MEMORY, ())])
    for _ in range(2):
        process.take(process.ask(0.0)[0], 0.0)
    assert process.is_ready


def test_calls_of_which_nobody_knows_are_made_again(answers: deque[Any]) -> None:
    """Faults 16 to 19: the same numbers again, after a while; nothing is started anew, and nothing told twice."""
    actor = FakeActor()
    process = WorkerProcess(0, actor)
    join(process, answers)
    process.tell("assign", "lease")
    process.tell("drop", 3)
    question, delivery = process.ask(0.0)
    answers.extend([ActorUnavailableError("no route", None)] * 2)
    assert process.take(question, 10.0).error is None
    assert process.take(delivery, 10.0).error is None
    assert process.ask(10.0) == []
    question, delivery = process.ask(10.0 + AGAIN_SECONDS)
    answers.extend([News(1, make_poll()), None])
    assert process.take(question, 11.0).value == make_poll()
    process.take(delivery, 11.0)
    process.ask(11.0)
    made = actor.log[2:]
    assert made == [
        ("news", (0, 1.0)), ("deliver", (1, "assign", "lease")),
        ("news", (0, 1.0)), ("deliver", (1, "assign", "lease")),
        ("news", (1, 1.0)), ("deliver", (2, "drop", 3)),
    ]  # fmt: skip
    assert process.take_news(News(1, make_poll())) is None
    answers.append(ActorDiedError())
    assert isinstance(process.take(process.question, 12.0).error, ActorDiedError)


def test_a_worker_has_drained_when_every_row_is_in_a_part(answers: deque[Any]) -> None:
    process = WorkerProcess(0, FakeActor())
    join(process, answers)
    process.tell("drain")
    question, delivery = process.ask(0.0)
    answers.extend([None, News(1, make_poll(idle_seconds=1.0))])
    process.take(delivery, 0.0)
    before = process.take(question, 0.0).value
    assert not process.has_drained(before, 0.0), "this poll was asked for before the worker knew"
    process.ask(1.0)
    assert not process.has_drained(make_poll(idle_seconds=2.0, num_rows_done=4), 1.0), "four rows are in no part yet"
    process.num_settled_rows = 4
    assert not process.has_drained(make_poll(idle_seconds=2.0, num_rows_done=4), 2.0), "it does not wait"
    assert process.has_drained(make_poll(idle_seconds=3.0, num_rows_done=4), 3.0)


def test_rows_that_end_in_no_part_do_not_keep_a_worker_draining_for_ever(answers: deque[Any]) -> None:
    process = WorkerProcess(0, FakeActor())
    join(process, answers)
    process.take_news(News(1, replace(make_poll(), probes=(ProbeDone(1, 0, 3),))))
    process.tell("drain")
    _, delivery = process.ask(0.0)
    answers.extend([None, News(2, make_poll())])
    process.take(delivery, 0.0)
    process.take(process.question, 0.0)
    process.ask(0.0)
    ends = [
        process.has_drained(make_poll(num_rows_done=3, idle_seconds=float(now)), float(now)) for now in range(1, 13)
    ]
    assert ends == [False] * 10 + [True] * 2


def test_a_part_that_is_being_written_keeps_its_worker_draining(answers: deque[Any]) -> None:
    """Whatever the count says, and however long the rows of probes have been still."""
    process = WorkerProcess(0, FakeActor())
    process._asked_after_drain = process._has_loose_rows = True
    writing = [
        process.has_drained(make_poll(idle_seconds=float(now), writing_shard=2), float(now)) for now in range(1, 13)
    ]
    assert writing == [False] * 12
    assert process.has_drained(make_poll(idle_seconds=13.0), 13.0)


def test_a_shard_that_could_not_be_read_does_not_stand_for_rows_of_another() -> None:
    runner = Runner(
        Coordinator((), num_workers=1), make_config(), RunTally(), Interrupts(), clock=lambda: 0.0,
        check_cluster=lambda: None, on_tick=lambda: True, find_parts=lambda shards: (),
        on_death=lambda worker, pid, reason: None, on_interrupt=lambda: None,
    )  # fmt: skip
    runner._tally.add_ready(WorkerReady(0, "somewhere", 7, "cpu", "float32", 1, 0.1, MEMORY, ()), 0.0)
    process = WorkerProcess(0, FakeActor())
    process._asked_after_drain = True
    unread, unwritten = ShardFailed(1, 1, "SHARD_OOM", "no memory"), ShardFailed(2, 1, "SHARD_OOM", "no memory", 10)
    runner._take_poll(process, replace(make_poll(), failures=(unread,)))
    done = make_poll(idle_seconds=1.0, num_rows_done=10)
    assert WorkerDrained(0) not in runner._take_poll(process, done), "the part of ten rows is on its way to the writer"
    assert runner._tally.progress_fields(100, PartStats())["job_rows_done"] == 10
    runner._take_poll(process, replace(done, failures=(unwritten,)))
    assert WorkerDrained(0) in runner._take_poll(process, make_poll(idle_seconds=2.0, num_rows_done=10))
    assert runner._tally.progress_fields(100, PartStats())["job_rows_done"] == 0


class Scripted(Worker):
    """A worker that says how often it was asked."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.num_polls = 0

    def poll(self, timeout_seconds: float) -> WorkerPoll:
        self.num_polls += 1
        return make_poll(num_rows_done=self.num_polls)

    def drop(self, shard: int) -> None:
        self.taken.append(shard)


def test_the_actor_tells_lost_news_again_and_takes_a_delivery_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 17 and 18."""
    monkeypatch.chdir(tmp_path)
    worker = Scripted()
    monkeypatch.setattr("specbatch.workers.actor.Worker", lambda config: worker)
    actor = WorkerActor(make_config())
    first = actor.news(0, 0.0)
    assert actor.news(0, 0.0) == first == News(1, make_poll(num_rows_done=1))
    assert actor.news(1, 0.0) == News(2, make_poll(num_rows_done=2))
    for number in (1, 1, 2, 1, 2):
        actor.deliver(number, "drop", number * 10)
    assert worker.taken == [10, 20]


def test_what_the_constructor_raises_is_told_by_ready() -> None:
    actor = WorkerActor(replace(make_config(), output="ftp://nowhere/at/all"))
    with pytest.raises(SpecbatchError):
        actor.ready()


# ---- killing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def whereabouts_of(pid: int) -> Whereabouts:
    import socket

    return Whereabouts("a", socket.gethostname(), pid, process_start(pid))


def test_fault_4_a_stopped_process_is_killed_after_a_moment(sleeper: subprocess.Popen[bytes]) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    now = [0.0]
    victims = Killing(lambda: now[0])
    victims.add(None)
    victims.add(whereabouts_of(sleeper.pid))
    victims.advance()
    assert sleeper.poll() is None
    now[0] = PATIENCE_SECONDS
    victims.advance()
    assert sleeper.wait(5) == -signal.SIGKILL


def test_the_ranks_of_a_worker_die_with_it(sleeper: subprocess.Popen[bytes]) -> None:
    victims = Killing(lambda: 0.0)
    victims.add(replace(whereabouts_of(sleeper.pid), pid=0, started="", ranks=(whereabouts_of(sleeper.pid),)))
    victims.finish()
    assert sleeper.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("code", [ErrorCode.JOB_CLUSTER_LOST, ErrorCode.JOB_STORE_LOST])
def test_a_lost_ray_is_not_asked_before_the_processes_are_dead(
    code: ErrorCode, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 21: asking is at most in vain; what ended the run stays the reason."""
    asked = []

    def out_of_reach(group: str) -> None:
        asked.append((group, sleeper.wait(5)))
        raise TimeoutError("the head does not answer")

    module = importlib.import_module("ray.util.placement_group")  # ``ray.util`` has a function of this name
    monkeypatch.setattr(module, "remove_placement_group", out_of_reach)
    process = WorkerProcess(3, FakeActor(), whereabouts=whereabouts_of(sleeper.pid), group="group")
    with pytest.raises(SpecbatchError, match=code), Killing(lambda: 0.0).of_all({3: process}):
        raise SpecbatchError(code, "gone")
    assert sleeper.wait(5) == -signal.SIGKILL
    assert asked == ([] if code is ErrorCode.JOB_CLUSTER_LOST else [("group", -signal.SIGKILL)])


def test_at_the_end_nobody_waits(sleeper: subprocess.Popen[bytes]) -> None:
    victims = Killing(lambda: 0.0)
    victims.add(whereabouts_of(sleeper.pid))
    victims.finish()
    assert sleeper.wait(5) == -signal.SIGKILL


_KILL_ON_A_NODE = """
import sys
import time
import ray
from specbatch.jobs.running import killing
from specbatch.jobs.running.cluster import open_cluster
from specbatch.jobs.output.lease import process_started
from specbatch.workers.actor import Whereabouts

host, pid, started = sys.argv[1:]
with open_cluster(None, 0) as cluster:
    assert cluster.view() is None
    cluster.check()
    killing._kill_there(Whereabouts(ray.get_runtime_context().get_node_id(), host, int(pid), started))
    deadline = time.monotonic() + 60
    while process_started(int(pid)) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
"""


@pytest.mark.ray
def test_fault_5_a_process_of_another_host_is_killed_by_its_own_node(sleeper: subprocess.Popen[bytes]) -> None:
    """In a process of its own: Ray keeps the token of its first cluster, and other tests start one without any."""
    place = whereabouts_of(sleeper.pid)
    arguments = [place.host, str(place.pid), str(place.started)]
    subprocess.run([sys.executable, "-c", _KILL_ON_A_NODE, *arguments], check=True, timeout=400)
    assert sleeper.wait(60) == -signal.SIGKILL


def test_only_folders_of_runs_that_are_gone_are_swept(tmp_path: Path) -> None:
    """A number of another container says nothing here, so a living owner holds a lock on its folder."""
    owners = {
        "locked": f"{2**22 + 1} 7",
        "alive": f"{os.getpid()} {process_started(os.getpid())}",
        "gone": f"{2**22 + 1} 7",
    }
    for name, owner in owners.items():
        (tmp_path / f"specbatch-{name}").mkdir()
        (tmp_path / f"specbatch-{name}" / "owner").write_text(owner)
    handle = os.open(tmp_path / "specbatch-locked", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    _sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["specbatch-alive", "specbatch-locked"]
    os.close(handle)
    _sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["specbatch-alive"]


def test_a_cluster_of_our_own_holds_its_folder_while_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[list[str]] = []

    def start(folder: Path, num_gpus: int) -> None:
        (folder / "owner").write_text(f"{2**22 + 1} 7")  # as it looks from another container
        _sweep(tmp_path)
        swept.append([path.name for path in folder.iterdir()])
        raise SpecbatchError(ErrorCode.JOB_CLUSTER_LOST, "seen enough")

    monkeypatch.setattr(cluster, "_short_temp_folder", lambda: str(tmp_path))
    monkeypatch.setattr(cluster, "_start", start)
    with pytest.raises(SpecbatchError, match="seen enough"), cluster.local_cluster(0):
        raise AssertionError
    assert swept == [["owner"]]
    assert list(tmp_path.iterdir()) == []


def test_another_process_under_the_same_number_lives(sleeper: subprocess.Popen[bytes]) -> None:
    mine = whereabouts_of(sleeper.pid)
    assert not kill_process(replace(mine, started="earlier"))
    assert not kill_process(replace(mine, host="elsewhere"))
    assert not kill_process(replace(mine, pid=2**22 + 1))
    assert sleeper.poll() is None
    assert mine.is_here


_RAY_AFTER_A_JOB = """
import ray
from specbatch.jobs.running.cluster import local_cluster
with local_cluster(0):
    pass
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
assert ray.get(ray.remote(lambda: 7).remote(), timeout=60) == 7
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_notebook_may_start_its_own_ray_after_a_job(tmp_path: Path) -> None:
    """Ray keeps the token of its first cluster for as long as the process lives, unless it is told to forget it."""
    foreign = ("RAY_", "SPECBATCH_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = {**kept, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _RAY_AFTER_A_JOB], env=environment, cwd=tmp_path, check=True, timeout=400)
