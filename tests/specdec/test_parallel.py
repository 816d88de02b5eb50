"""A target that two processes share over gloo: the text of one process, and one death for both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CONTEXT, VOCAB, NumberTokenizer, context_of, decoder, perturbed, tiny_model

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec.engine import Engine
from specbatch.specdec.forward import cache
from specbatch.specdec.forward.feed import Layout
from specbatch.specdec.forward.runner import load_model
from specbatch.specdec.models.division import DIVISIONS, check_division, rank_kv_bytes_per_token, rank_weight_bytes
from specbatch.specdec.models.folders import ModelFolder
from specbatch.specdec.policy.controller import FixedPolicy
from specbatch.specdec.ranks import group, meeting
from specbatch.specdec.ranks.group import Leader
from specbatch.specdec.ranks.meeting import (
    End,
    GroupLostError,
    Hello,
    Seat,
    device_index_among,
    divided_device,
    take_device,
)
from specbatch.specdec.ranks.parallel import Load, ParallelDecoder, load_parallel
from specbatch.specdec.rows import overload

SCRIPT = Path(__file__).with_name("rank_process.py")
CPU = torch.device("cpu")
LIMIT_SECONDS = 90.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start a rank as a process; all are dead in the end."""
    if (divided := divided_device()) != "cpu":
        pytest.skip(f"torch is built for {divided}: the library divides no target over CPUs here")
    started = []

    def run(role: str, seat: Seat, rank: int, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), role, seat.folder, str(seat.num_ranks), str(rank)]
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def leader(start: Start) -> Iterator[Leader]:
    """This process leads a follower that serves any number of targets, one after another."""
    seat = Seat.make(2, "cpu")
    made = Leader(seat)
    process = start("follow", seat, 1)
    made.gather()
    yield made
    made.close()
    assert process.wait(LIMIT_SECONDS) == 0, "a follower that is let go ends well"
    assert not Path(seat.folder).exists()


def saved(model: Any, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def shared(leader: Leader, model: Any, path: Path, num_slots: int = 4) -> ParallelDecoder:
    return load_parallel(
        leader,
        saved(model, path),
        model.dtype,
        CPU,
        num_slots=num_slots,
        max_positions=16,
        context_length=context_of(model),
        vocab_size=VOCAB,
    )


def engine(target: Any, draft: Any, k: int, batch: int = 4) -> Engine:
    return Engine(
        target,
        None if draft is None else decoder(draft, batch),
        NumberTokenizer(),  # type: ignore[arg-type]
        eos_ids=(),
        policy=FixedPolicy(k, has_draft=draft is not None),
        max_batch_size=batch,
        max_sequence_tokens=CONTEXT,
    )


def make_rows() -> list[tuple[list[int], SamplingParams]]:
    """More rows than slots, so that prompts ride along; some begin alike, so that slots are copied."""
    header = [5, 9, 2, 33, 17, 4, 8, 51, 20, 11]
    lengths = (1, 12, 40, 3, 25, 7, 60, 2)
    prompts = [[(7 * i + 3 * j) % VOCAB for j in range(length)] for i, length in enumerate(lengths)]
    prompts = prompts[:4] + [header + prompt[:9] for prompt in prompts[4:]]
    return [
        (prompt, SamplingParams(max_new_tokens=4 + 3 * i, temperature=(0.0, 0.8)[i % 2], seed=i))
        for i, prompt in enumerate(prompts)
    ]


def said(subject: Engine) -> list[tuple[int, ...]]:
    rows = make_rows()
    return [output.token_ids for output in subject.generate([ids for ids, _ in rows], [p for _, p in rows])]


OFTEN = ("gemma2", "mixtral", "phi3", "qwen3")


def long(family: str) -> Any:
    """A family that takes part in ``make test-all`` only."""
    return pytest.param(family, marks=pytest.mark.long)


@pytest.mark.parametrize("family", ["llama", "gemma2", *(long(name) for name in ("qwen3", "gpt_neox", "phi3"))])
def test_the_text_is_that_of_one_process(leader: Leader, tmp_path: Path, family: str) -> None:
    model = tiny_model(family, seed=3)
    draft = perturbed(model, 0.15)
    target = shared(leader, model, tmp_path)
    model = load_model(tmp_path, torch.float64, CPU)
    for k in (0, 3):
        alone = engine(decoder(model, 4), draft if k else None, k)
        target.cache.resize(4, 16)
        together = engine(target, draft if k else None, k)
        assert said(together) == said(alone)
        assert together._batch.slots.max_positions > 16, "slots have grown on all ranks"
    heads = 2 if DIVISIONS[family] == "heads" else 1
    assert target.cache.num_bytes * heads == alone._batch.target.cache.num_bytes, "a rank holds its own heads"


@pytest.mark.parametrize("family", [name if name in OFTEN else long(name) for name in sorted(DIVISIONS)])
def test_every_family_with_a_plan(leader: Leader, tmp_path: Path, family: str) -> None:
    """Logits of one process, and what the ledger says of a rank is what it holds."""
    model = tiny_model(family, seed=4)
    target, alone = shared(leader, model, tmp_path), decoder(load_model(tmp_path, torch.float64, CPU), 4)
    token_T = torch.arange(23) % VOCAB
    torch.testing.assert_close(target.canonical_logits(token_T), alone.canonical_logits(token_T), rtol=0, atol=1e-9)
    layout = Layout(np.array([0, 1, 2]), np.array([0, 0, 0]), np.array([5, 0, 7]))
    keep_N = np.array([4, 11])
    found = [subject.run(layout.feed(torch.arange(12)), keep_N) for subject in (target, alone)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    folder = ModelFolder("tiny", None, tmp_path, (), sum(p.numel() for p in model.parameters()))
    assert target.weight_bytes <= rank_weight_bytes(folder, "float64", 2) <= 1.02 * target.weight_bytes
    per_token = rank_kv_bytes_per_token(folder.config, 8, 2)
    assert target.cache.num_bytes == per_token * 4 * target.cache.max_positions


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_four_ranks_say_what_one_process_says(start: Start, tmp_path: Path, family: str) -> None:
    """Of two, every sum is the same in either order; of four it is not."""
    model = tiny_model(family, seed=3, num_attention_heads=4, num_key_value_heads=4)
    draft = perturbed(model, 0.15)
    seat = Seat.make(4, "cpu")
    leading = Leader(seat)
    processes = [start("follow", seat, rank) for rank in range(1, 4)]
    leading.gather()
    try:
        target = shared(leading, model, tmp_path)
        alone = engine(decoder(load_model(tmp_path, torch.float64, CPU), 4), draft, 3)
        assert said(engine(target, draft, 3)) == said(alone)
        heads = 4 if DIVISIONS[family] == "heads" else 1
        assert target.cache.num_bytes * heads == alone._batch.target.cache.num_bytes
    finally:
        leading.close()
    assert [process.wait(LIMIT_SECONDS) for process in processes] == [0, 0, 0]
    assert not Path(seat.folder).exists()


@pytest.mark.long
def test_one_death_of_four_is_the_death_of_all(start: Start) -> None:
    """The third is killed while the leader waits for all in a collective and the others for the leader."""
    seat = Seat.make(4, "cpu")
    leading = start("lead", seat, 0, MOMENT="wait")
    while not Path(seat.address).exists():
        assert leading.poll() is None
        time.sleep(0.05)
    mates = [start("mate", seat, rank) for rank in range(1, 4)]
    assert leading.stdout is not None
    assert leading.stdout.readline() == "ready\n"
    mates[2].send_signal(signal.SIGKILL)
    lines = {leading.stdout.readline() for _ in range(2)}
    assert lines == {f"{word}: rank 3 of 4 is gone\n" for word in ("told", "raised")}
    assert [mate.wait(LIMIT_SECONDS) for mate in mates[:2]] == [1, 1]


def test_a_vocabulary_that_does_not_divide(leader: Leader, tmp_path: Path) -> None:
    model = tiny_model("llama", seed=3, vocab_size=VOCAB, tie_word_embeddings=True)
    assert said(engine(shared(leader, model, tmp_path), None, 0)) == said(engine(decoder(model, 4), None, 0))


def test_memory_that_runs_out_while_slots_grow_halves_them_everywhere(
    leader: Leader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's own slots fail here; the ranks stay in step, and the text is the same."""
    model = tiny_model("llama", seed=3)
    subject = engine(shared(leader, model, tmp_path), None, 0)
    resize, failed = cache.SlotLayer.resize, []

    def fails_once(layer: Any, num_slots: int, max_positions: int) -> None:
        if max_positions > 16 and not failed:
            failed.append(layer)
            raise torch.OutOfMemoryError("out of memory")
        resize(layer, num_slots, max_positions)

    monkeypatch.setattr(cache.SlotLayer, "resize", fails_once)
    assert said(subject) == said(engine(decoder(model, 4), None, 0))
    assert failed
    assert subject.max_batch_size == 2
    assert not leader._followers[1].poll(0), "every answer has been read"


@torch.inference_mode()
def test_an_error_of_a_follower_in_its_slots_is_the_leaders(leader: Leader, tmp_path: Path) -> None:
    target = shared(leader, tiny_model("llama"), tmp_path)
    target.run(Layout(np.array([0]), np.array([0]), np.array([3])).feed(torch.arange(3)), None)
    own, target.cache._own = target.cache._own, type("Silent", (), {"copy": lambda *arguments: None})()
    with pytest.raises(RuntimeError, match="IndexError"):
        target.cache.copy(99, 0, 3)
    target.cache._own = own
    target.cache.copy(0, 1, 3)


def test_a_model_that_cannot_be_loaded_says_so(leader: Leader, tmp_path: Path) -> None:
    """On the follower alone: its answer is the leader's error, and the next target is loaded all the same."""
    path = saved(tiny_model("llama"), tmp_path / "whole")
    broken = tmp_path / "broken"
    broken.mkdir()
    leader.tell(Load(broken, "float64", 4, 16, CONTEXT, VOCAB))
    with pytest.raises(SpecbatchError, match="cannot be loaded") as caught:
        leader.answers()
    assert caught.value.code is ErrorCode.JOB_MODEL_LOAD
    shared(leader, tiny_model("llama"), path)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_divided_is_refused() -> None:
    config = {"model_type": "llama", "num_attention_heads": 12, "num_key_value_heads": 3, "intermediate_size": 48}
    check_division("m", config, 3)
    with pytest.raises(SpecbatchError, match=r"num_key_value_heads is 3\b") as caught:
        check_division("m", config, 2)
    assert caught.value.code is ErrorCode.JOB_CONFIG
    with pytest.raises(SpecbatchError, match="has no proved plan") as caught:
        check_division("m", {"model_type": "gpt2"}, 2)
    assert caught.value.code is ErrorCode.JOB_MODEL_UNSUPPORTED
    check_division("m", {"model_type": "gpt2"}, 1)


# ---- one death is the group's ----------------------------------------------------------------------------------------


@pytest.fixture
def pair(start: Start) -> Callable[..., tuple[Any, Any]]:
    """Two processes that share nothing but barriers: a leader and its mate."""

    def make(moment: str, role: str = "mate", **variables: str) -> tuple[Any, Any]:
        seat = Seat.make(2, "cpu")
        leading = start("lead", seat, 0, MOMENT=moment, **variables)
        while not Path(seat.address).exists():
            assert leading.poll() is None
            time.sleep(0.05)
        mate = start(role, seat, 1, **variables)
        assert leading.stdout is not None
        assert leading.stdout.readline() == "ready\n"
        return leading, mate

    return make


@pytest.mark.parametrize("moment", ["collective", long("wait")])
def test_no_follower_outlives_its_leader(pair: Any, moment: str) -> None:
    """Nor one that is stuck where no error of a collective would reach it."""
    leading, mate = pair(moment)
    time.sleep(0.3)
    assert mate.poll() is None
    leading.send_signal(signal.SIGKILL)
    assert mate.wait(LIMIT_SECONDS) == 1


def test_a_leader_that_fails_in_a_forward_lets_no_follower_wait(pair: Any) -> None:
    """Its process goes on, to tell of it; the followers end at once."""
    leading, mate = pair("overload")
    assert leading.stdout.readline() == "raised: rank 0 of 2 failed in a forward: MemoryError\n"
    assert mate.wait(LIMIT_SECONDS) == 1
    assert leading.poll() is None


@pytest.mark.parametrize("moment", ["idle", long("wait")])
def test_a_leader_learns_at_once_that_a_follower_was_killed(pair: Any, moment: str) -> None:
    """From its own thread, and where it waits in a collective, from that too; nothing is left of the group then."""
    leading, mate = pair(moment)
    time.sleep(0.3)
    mate.send_signal(signal.SIGKILL)
    lines = {leading.stdout.readline() for _ in range(1 if moment == "idle" else 2)}
    assert lines == {
        f"{word}: rank 1 of 2 is gone\n" for word in (["told"] if moment == "idle" else ["told", "raised"])
    }


def test_a_follower_that_fails_in_a_forward_says_why_and_ends(pair: Any, tmp_path: Path) -> None:
    """Also where its process would go on, as Ray's do; and its error is none that the engine takes for overload."""
    model = saved(tiny_model("llama"), tmp_path)
    leading, mate = pair("forward", "keep", MODEL=str(model), SPECBATCH_FAILPOINT="rank_forward:before:1:error")
    lines = {leading.stdout.readline() for _ in range(2)}
    lost = "rank 1 of 2 is gone: RuntimeError: failpoint rank_forward:before"
    assert lines == {f"told: {lost}\n", f"raised: {lost}\n"}
    assert mate.wait(LIMIT_SECONDS) == 1
    assert not overload.is_out_of_memory(GroupLostError("rank 1 of 2 is gone: OutOfMemoryError: out of memory"))


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Leader, Connection, list[str]]]:
    """A leader in this process, a follower's end of the socket that has said hello, and what is told of the group."""
    told: list[str] = []
    seat = Seat.make(2, "cpu")
    leader = Leader(seat, lambda error: told.append(str(error)))
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(seat.address)
    follower = Connection(link.detach())
    follower.send(Hello(1, 7))
    monkeypatch.setattr(meeting, "divided_device", lambda: "cpu")
    monkeypatch.setattr(group, "join_collectives", lambda seat, rank: None)
    yield leader, follower, told
    follower.close()
    leader.close()
    assert not Path(seat.folder).exists()


def test_the_last_word_of_a_forward_is_not_taken_for_an_answer(led: Any) -> None:
    """On a GPU the leader goes on to its slots while a forward is still counted, and a follower may fail in it then."""
    leader, follower, _ = led
    leader.gather()
    follower.send(End("OutOfMemoryError: no room"))
    with pytest.raises(GroupLostError, match=r"^rank 1 of 2 is gone: OutOfMemoryError: no room$"):
        leader.answers()


def test_a_rank_that_ended_without_a_word_is_told_of(led: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket may be open still."""
    leader, _, told = led
    monkeypatch.setattr(group, "_NOTICE_SECONDS", 0.05)
    leader.gather()
    leader.abandon("rank 1 of 2: RuntimeError: no device")
    leader.abandon("said again")
    assert told == ["rank 1 of 2: RuntimeError: no device"]
    with pytest.raises(GroupLostError, match="no device"):
        leader.tell("anything")


def test_ranks_that_cannot_join_leave_nothing_behind(led: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(seat: Seat, rank: int) -> None:
        raise OSError("no rendezvous")

    leader, follower, _ = led
    monkeypatch.setattr(group, "join_collectives", fails)
    with pytest.raises(OSError, match="no rendezvous"):
        leader.gather()
    assert not Path(leader._seat.folder).exists()
    with pytest.raises((EOFError, ConnectionError)):
        follower.recv()


def test_a_torch_that_is_built_for_other_devices_is_refused(led: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anybody waits: a build for CUDA divides over GPUs, whether or not there are some to see."""
    leader, _, told = led
    monkeypatch.setattr(meeting, "divided_device", lambda: "cuda")
    with pytest.raises(SpecbatchError, match="torch is built for cuda; use --device cuda, or a build") as caught:
        leader.gather()
    assert caught.value.code is ErrorCode.JOB_CONFIG
    assert told == []
    assert not Path(leader._seat.folder).exists()


# ---- which device is a rank's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own_ids", "visible", "num_seen", "index"),
    [
        ([], None, 0, 0),  # a CPU
        ([3], "3", 1, 0),  # Ray has hidden the others
        ([3], None, 4, 3),  # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES
        (["6"], "4, 6", 2, 1),
        (["GPU-b"], "GPU-a,GPU-b", 2, 1),
        ([], None, 4, 0),  # not an actor of Ray's
    ],
)
def test_a_rank_takes_the_device_that_ray_gave_it(
    own_ids: list[int | str], visible: str | None, num_seen: int, index: int
) -> None:
    assert device_index_among(own_ids, visible, num_seen) == index


def test_an_inherited_local_rank_is_another_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library binds to it when it loads."""
    bound: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "5")
    monkeypatch.setattr(torch.cuda, "set_device", bound.append)
    assert take_device("cpu", 0) == CPU
    assert (os.environ["LOCAL_RANK"], bound) == ("0", [])
    assert take_device("cuda", 3) == torch.device("cuda", 3)
    assert (os.environ["LOCAL_RANK"], bound) == ("3", [3])
