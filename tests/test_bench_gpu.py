"""The benchmark for GPUs, tried without one: its order, its aims, its faults, and the whole program at tiny size.

Shape letters: B rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(Path(__file__).resolve().parent / "specdec")]

import bench_gpu  # noqa: E402
import tiny  # noqa: E402
from gpu import (  # noqa: E402
    continuous,
    engine_checks,
    engine_sides,
    models,
    peer_sides,
    peer_timing,
    plan,
    report,
    roof,
    watch,
    worker,
)
from gpu.shapes import SHAPES  # noqa: E402

from specbatch.schemas.sampling import SamplingParams  # noqa: E402
from specbatch.specdec.forward.lean_paged import PagedLeanDecoder  # noqa: E402
from specbatch.specdec.policy.controller import RoundMeasure  # noqa: E402
from specbatch.specdec.rounds.graphs import GraphBook  # noqa: E402

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # the second is a name, which needs no device

# A process that answers as the real one does, and breaks or hangs at one side.
_FAULTY = """
import json, os, sys, time
orders = json.load(sys.stdin)
def say(line): print(json.dumps(line), flush=True)
say({"hello": {"device": "none"}})
for task in orders["tasks"]:
    say({"begin": task | {"name": task["side"]}, "limit_seconds": 1.0 if task["side"] == "K=2" else 60.0})
    if task["side"] == "auto": os._exit(7)
    if task["side"] == "K=2": time.sleep(60)
    say({"result": task | {"status": "measured", "tokens_per_second": 1.0, "draft_agreement": None}})
"""


def test_the_most_telling_cells_come_first_and_nothing_twice() -> None:
    tasks = plan.schedule(["8B", "1B"], plan.BATCHES, plan.CONTEXTS, plan.SIDES, plan.CHECKS)
    assert len(tasks) == len(set(tasks))
    cells = list(dict.fromkeys(task.cell for task in tasks if not task.check))
    assert cells[:3] == [("8B", 1, 512), ("8B", 8, 512), ("8B", 32, 512)]
    assert len(cells) == 2 * len(plan.BATCHES) * len(plan.CONTEXTS)
    assert {task.batch for task in tasks if task.side == plan.ASSISTED} == {1}
    assert [task.check for task in tasks if task.check] == list(plan.CHECKS)
    # Against plain decoding the others are compared, so it is there before them.
    for cell in cells:
        sides = [task.side for task in tasks if task.cell == cell]
        assert sides[0] == plan.PLAIN
        assert set(plan.MAIN_SIDES) <= set(sides)
    # What an aim rests on is there before anything that only explains it.
    places = {task: place for place, task in enumerate(tasks)}
    rest = min(places[plan.Task(*cell, plan.FIXED[0])] for cell in cells[3:])
    for cell in cells:
        assert (places[plan.Task(*cell, plan.GENERATE)] < rest) == (8 <= cell[1] <= 64 or cell in cells[:3])
    assert places[plan.Task(check="float32")] < places[plan.Task(*cells[3], plan.PLAIN)]
    assert places[plan.Task(*cells[11], plan.PLAIN)] < places[plan.Task(check="float64")]


def test_the_bytes_of_a_round_are_weights_once_and_all_keys_and_values() -> None:
    """By hand, for the shape of Llama-3.1-8B with a vocabulary of 4,096 in bfloat16."""
    shapes = SHAPES["8B"]
    target, draft = roof.Model(shapes.target, 2), roof.Model(shapes.draft, 2)
    per_layer = 4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 14336 + 2 * 4096
    assert target.weight_bytes == 2 * (32 * per_layer + 4096 * 4096 + 4096)
    assert target.kv_bytes == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert roof.round_bytes(target, None, 8 * 512, 0, 0) == target.weight_bytes + 8 * 512 * 128 * 1024
    with_drafts = roof.round_bytes(target, draft, 1000, 4, 4000) - roof.round_bytes(target, None, 1000, 0, 0)
    assert with_drafts == 4 * draft.weight_bytes + 4000 * 2 * 12 * 8 * 64 * 2
    assert 15 < target.weight_bytes / draft.weight_bytes < 25
    products = 2 * 32 * (per_layer - 2 * 4096)
    attention = 4 * 32 * 32 * 128
    assert target.prefill_flops(3, 512) == pytest.approx(3 * (512 * products + attention * 512**2 / 2), rel=1e-4)


def result(batch: int, side: str, speed: float, over_roof: float = 1.0) -> dict[str, Any]:
    return {
        "model": "8B", "batch": batch, "context": 512, "side": side, "check": "", "status": "measured",
        "tokens_per_second": speed, "round_seconds": over_roof, "roof_seconds": 1.0, "draft_agreement": 0.8,
    }  # fmt: skip


def test_an_aim_is_met_only_where_every_cell_meets_it() -> None:
    verdicts = [verdict for _, verdict in report.aims({}, "0.8")]
    assert verdicts == ["not measured"] * 6
    good = [
        result(8, plan.PLAIN, 100, 1.2), result(8, plan.AUTO, 300, 1.25), result(8, plan.AUTO_MODEL, 250),
        result(8, plan.GENERATE_BATCH, 100), result(64, plan.PLAIN, 100, 1.9), result(64, plan.AUTO, 100, 1.9),
    ]  # fmt: skip
    verdicts = [verdict for _, verdict in report.aims(report.cells_of(good), "0.8")]
    assert all(verdict.startswith("yes") for verdict in verdicts)
    bad = [
        *good, result(32, plan.PLAIN, 100, 1.3), result(32, plan.AUTO, 99), result(32, plan.GENERATE_BATCH, 40),
        result(32, plan.AUTO_MODEL, 90),
    ]  # fmt: skip
    verdicts = [verdict for _, verdict in report.aims(report.cells_of(bad), "0.8")]
    assert all(verdict.startswith("**no**") for verdict in verdicts)
    assert "worst 1.30 (plain, 8B batch 32 x 512)" in verdicts[0]
    assert "worst 0.99" in verdicts[1]
    assert "worst 2.25 (8B batch 32 x 512, against generate_batch)" in verdicts[2]
    # Where another peer is faster, the engine is held against that one too, by name.
    faster = [*good, result(8, plan.GENERATE, 120), result(8, plan.STATIC, 110)]
    verdicts = [verdict for _, verdict in report.aims(report.cells_of(faster), "0.8")]
    assert verdicts[2].startswith("yes: worst 2.50 (8B batch 8 x 512, against generate_batch)")
    assert verdicts[3].startswith("**no**: worst 2.08 (8B batch 8 x 512, against generate)")


def test_a_side_that_breaks_or_hangs_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(_FAULTY)
    options = bench_gpu.parse(
        ["--shapes", "tiny", "--batches", "4", "--contexts", "64", "--only", "cells", "--out", str(tmp_path / "gpu")]
    )
    run = bench_gpu.Run(options, "command", (sys.executable, str(script)))
    run.go()
    document = json.loads((tmp_path / "gpu.json").read_text())
    by_side = {entry["side"]: entry for entry in document["results"]}
    assert set(by_side) == set(plan.SIDES) - {plan.ASSISTED}
    assert by_side["auto"]["reason"] == "its process ended (exit code 7)"
    assert by_side["K=2"]["reason"].startswith("it did not end in its time")
    others = [entry["status"] for side, entry in by_side.items() if side not in ("auto", "K=2")]
    assert others == ["measured"] * (len(by_side) - 2)
    text = (tmp_path / "gpu.md").read_text()
    assert "tiny batch 4 x 64, auto: its process ended" in text


# Whatever drafts in captured rounds breaks: half of it dies, half tells its fault before its process ends.
_SYSTEMATIC = """
import json, os, sys
orders = json.load(sys.stdin)
def say(line): print(json.dumps(line), flush=True)
say({"hello": {"device": "none"}})
if not orders["warmed"]:
    say({"begin": {"name": "warm", "warming": "tiny"}, "limit_seconds": 60.0})
    os._exit(9)
for task in orders["tasks"]:
    say({"begin": task | {"name": task["side"]}, "limit_seconds": 60.0})
    if task["side"] == "auto": os._exit(7)
    if task["side"] in ("auto, draft model alone", "K=2", "K=4"):
        say({"result": task | {"status": "failed", "reason": "an illegal memory access"}})
        os._exit(3)
    say({"result": task | {"status": "measured", "tokens_per_second": 1.0, "draft_agreement": None}})
"""


def test_what_breaks_twice_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    """Also: a process that breaks while kernels are compiled costs no task, and that is not tried again."""
    script = tmp_path / "faulty.py"
    script.write_text(_SYSTEMATIC)
    options = bench_gpu.parse(
        ["--shapes", "tiny", "--batches", "4,8", "--contexts", "64", "--only", "cells", "--out", str(tmp_path / "gpu")]
    )
    run = bench_gpu.Run(options, "command", (sys.executable, str(script)))
    run.go()
    document = json.loads((tmp_path / "gpu.json").read_text())
    by_task = {(entry["batch"], entry["side"]): entry for entry in document["results"]}
    drafting = {plan.AUTO, plan.AUTO_MODEL, *plan.FIXED}
    for (batch, side), entry in by_task.items():
        if side not in drafting:
            assert entry["status"] == "measured", (batch, side)
        elif (batch, side) in ((4, plan.AUTO), (4, plan.AUTO_MODEL)):
            assert entry["status"] == "failed"
        else:
            assert entry["status"] == "left out"
            names = "tiny batch 4 x 64: auto and tiny batch 4 x 64: auto, draft model alone"
            assert entry["reason"] == f"the last two tasks like it broke their process ({names})"
    assert {(8, plan.AUTO), (8, plan.GENERATE_BATCH), (8, plan.PLAIN)} < by_task.keys()
    assert "broke their process" in (tmp_path / "gpu.md").read_text()


def test_only_two_breaks_in_a_row_on_one_way_condemn_it() -> None:
    def lost(task: plan.Task, *ended: tuple[plan.Task, bool]) -> bool:
        return bool(plan.lost_alike(task, ended))

    plain, other = plan.Task("8B", 1, 512, plan.PLAIN), plan.Task("8B", 8, 512, plan.PLAIN)
    auto, fixed = plan.Task("8B", 1, 512, plan.AUTO), plan.Task("8B", 1, 512, "K=2")
    peer, uncaptured = plan.Task("8B", 1, 512, plan.GENERATE), plan.Task("8B", 1, 512, plan.AUTO + plan.UNCAPTURED)
    small, check = plan.Task("1B", 1, 512, plan.AUTO), plan.Task(check="float32")
    broken = ((auto, True), (peer, False), (fixed, True))
    assert lost(auto, *broken)
    assert not any(lost(task, *broken) for task in (plain, peer, uncaptured, small, check))
    assert not lost(auto, (auto, True), (fixed, False), (fixed, True))
    assert not lost(peer, (peer, True), (peer, True))
    # What breaks without drafts breaks with them.
    assert lost(auto, (plain, True), (other, True))
    assert not lost(auto, (plain, True), (auto, True))


def test_a_model_is_made_and_its_kernels_compiled_before_a_task_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both fell into the first task, which was killed where they took long, and never tried again."""
    said: list[dict[str, Any]] = []
    tasks = [plan.Task("8B", 1, 512, plan.PLAIN), plan.Task("8B", 1, 512, plan.AUTO), plan.Task("1B", 1, 512, "K=2")]
    subject = a_worker("cuda", tasks=[task.record() for task in tasks])
    measured: list[Any] = []
    monkeypatch.setattr(subject, "_say", said.append)
    monkeypatch.setattr(subject, "_hardware", dict)
    monkeypatch.setattr(subject, "_reason_to_leave_out", lambda task, left: None)
    monkeypatch.setattr(subject, "_attempt", lambda task, deadline: {"status": "measured"})
    monkeypatch.setattr(subject, "_ready", lambda model: SimpleNamespace(fit_caches=lambda num_slots: None))
    monkeypatch.setattr(worker, "prompts", lambda batch, context: [[1] * context] * batch)

    def measure(*what: Any, rounds: int) -> None:
        measured.append(what[3])
        raise RuntimeError("which the task will meet itself")

    monkeypatch.setattr(engine_sides, "measure", measure)
    subject.run()
    begun = [line["begin"].get("warming") or line["begin"]["side"] for line in said if "begin" in line]
    assert begun == ["8B", plan.PLAIN, plan.AUTO, "1B", "K=2"]
    assert measured == [plan.PLAIN, plan.PLAIN]
    assert [line["limit_seconds"] for line in said if "warming" in line.get("begin", {})] == [180.0, 180.0]
    said.clear()
    subject.run()
    assert not any("warming" in line.get("begin", {}) for line in said), "once is enough"


def test_a_process_that_never_starts_ends_the_run(tmp_path: Path) -> None:
    options = bench_gpu.parse(["--shapes", "tiny", "--batches", "4", "--out", str(tmp_path / "gpu.json")])
    lacks = "import sys; sys.stdin.read(); import there_is_no_such_module"
    run = bench_gpu.Run(options, "command", (sys.executable, "-c", lacks))
    run.go()
    reasons = {entry["reason"] for entry in run.document["results"]}
    why = "ModuleNotFoundError: No module named 'there_is_no_such_module'"
    assert reasons == {f"the processes that measure did not start, with the last words {why!r}"}
    assert why in (tmp_path / "gpu.md").read_text()
    assert run.document["not_reached"] == []


@pytest.mark.parametrize("arguments", [["--shapes", "3B"], ["--sides", "vllm"], ["--acceptance", "1.2"]])
def test_what_there_is_not_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_gpu.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def a_round(seconds: float, num_tokens: int, drafts_B: list[int], matched_B: list[int], **more: Any) -> watch.Round:
    """One of two rows, all of whose drafts are the draft model's; without ``measured`` a graph was captured."""
    drafts = np.array(drafts_B)
    measure = RoundMeasure(
        num_scored=2 + int(drafts.sum()),
        num_draft_steps=int(drafts.max()),
        propose_seconds=0.0,
        score_seconds=seconds,
        other_seconds=0.0,
        catch_up_seconds=0.0,
        num_catch_up_tokens=0,
        draft_length_B=drafts,
        matched_B=np.array(matched_B),
        is_model_B=drafts > 0,
        match_B=np.zeros(2, dtype=np.int64),
    )
    return watch.Round(seconds, num_tokens, more.get("has_captured", False), measure)


def test_captures_are_out_of_the_speed_and_out_of_its_tokens() -> None:
    """Three rounds of two rows, of 1,000 tokens together at first: one of them is captured and takes a second."""
    target, draft = (roof.Model(shape, 2) for shape in (SHAPES["8B"].target, SHAPES["8B"].draft))
    rounds = [
        a_round(0.01, 5, [3, 1], [2, 1]),
        a_round(1.0, 4, [4, 4], [1, 1], has_captured=True),
        a_round(0.02, 3, [2, 0], [1, 0]),
    ]
    figures = watch.figures(target, draft, rounds, 2, 1000, 1012)
    assert (figures["tokens"], figures["rounds"], figures["captured_rounds"]) == (8, 2, 1)
    assert figures["captured_seconds"] == 1.0
    assert figures["captured_tokens"] == 4
    assert figures["tokens_per_second"] == pytest.approx(8 / 0.03)
    assert figures["round_seconds"] == pytest.approx(0.015)
    assert figures["draft_steps_per_round"] == 2.5
    assert figures["accepted_share"] == pytest.approx(4 / 6)
    # Rows that draft less are read less often: 3 + 1 and 2 times the 503 tokens of a row, and not 2 x 3 and 1 x 2.
    expected = roof.round_bytes(target, draft, 1006, 2.5, 6 / 2 * 503)
    assert figures["round_bytes"] == pytest.approx(expected)
    with pytest.raises(RuntimeError, match="no time was left for a single round"):
        watch.figures(target, draft, rounds[1:2], 2, 1000, 1004)


def test_the_warm_up_ends_behind_rounds_without_a_capture_or_at_its_bound() -> None:
    seen = watch.Watch(an_engine())
    calm, captured = a_round(0.01, 2, [0, 0], [0, 0]), a_round(0.01, 2, [0, 0], [0, 0], has_captured=True)
    seen.rounds = [calm] * 39
    assert not seen.is_warm(40, 56)
    seen.rounds = [calm] * 40
    assert seen.is_warm(40, 56)
    seen.rounds = [*[calm] * 35, captured, *[calm] * 9]
    assert not seen.is_warm(40, 56)
    seen.rounds += [calm]
    assert seen.is_warm(40, 56)
    seen.rounds = [captured] * 56
    assert seen.is_warm(40, 56)


def an_engine() -> Any:
    model = tiny.tiny_model()
    return tiny.engine(model, tiny.perturbed(model, 0.3), k=2, batch=2, path="ahead")


def test_every_settled_round_is_seen_and_what_captures_take_falls_into_those_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a device: work takes long when its key is first met, which is while the round before is under way."""
    keys: set[Any] = set()
    run_twin, sleep_seconds = GraphBook.run, 0.2

    def run_captured(book: GraphBook, key: Any, work: Callable[[], Any], **options: Any) -> Any:
        if key not in keys:
            keys.add(key)
            time.sleep(sleep_seconds)
        return run_twin(book, key, work, **options)

    monkeypatch.setattr(GraphBook, "run", run_captured)
    monkeypatch.setattr(GraphBook, "num_unusual", property(lambda book: len(keys)))
    subject = an_engine()
    seen, started = watch.Watch(subject), time.perf_counter()
    for row in range(2):
        subject.submit(row, [1 + row, 2, 3], SamplingParams(max_new_tokens=40, ignore_eos=True))
    said = 0
    while subject.num_queued or subject.num_active:
        said += sum(len(output.token_ids) for output in subject.step())
    wall_seconds = time.perf_counter() - started
    # The first token of a row comes with its prompt, in no round.
    assert sum(each.num_tokens for each in seen.rounds) == said - 2 == 78
    assert sum(each.seconds for each in seen.rounds) <= wall_seconds
    left_out = [each for each in seen.rounds if each.has_captured]
    assert len(keys) >= 2
    assert sum(each.seconds for each in left_out) >= sleep_seconds * len(keys)
    assert seen.num_timed == len(seen.rounds) - len(left_out) > 5
    assert seen.num_timed_tokens == sum(each.num_tokens for each in seen.rounds if not each.has_captured)
    assert all(each.measure is not None for each in seen.rounds if not each.has_captured)


def fake_pair(name: str = "8B", device: torch.device = CPU) -> Any:
    return SimpleNamespace(name=name, device=device)


def test_a_peer_whose_decoding_is_lost_in_its_reading_is_an_error_and_no_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def timed(first: float, whole: float) -> dict[str, Any]:
        seconds = iter([first, whole, first, whole])
        monkeypatch.setattr(peer_timing, "_seconds", lambda pair, run: (next(seconds), [[1]]))
        return peer_timing.timed(fake_pair(), lambda length: [[0] * length], 48)[0]

    assert timed(1.0, 3.0)["seconds"] == 2.0
    for whole in (1.05, 0.9):
        with pytest.raises(RuntimeError, match="its decoding cannot be told from its reading of prompts"):
            timed(1.0, whole)


def test_the_setting_of_generate_batch_is_chosen_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int, str]] = []

    def in_manager(pair: Any, prompts: Any, new_tokens: int, deadline: float, setting: dict[str, Any]) -> Any:
        rows, name = len(prompts), next(key for key, value in offered(len(prompts)).items() if value == setting)
        runs.append((rows, new_tokens, name))
        if name == "sdpa, CUDA graphs":
            raise RuntimeError("no graph today")
        assert deadline <= time.time() + (100.5 if new_tokens == 96 else 50.5)  # one that hangs leaves time to others
        return {"seconds": 1.0 if (name == "sdpa") == (rows < 16) else 2.0}, [[1]] * rows

    def offered(rows: int) -> dict[str, dict[str, Any]]:
        return continuous.settings_of(CUDA, rows)

    monkeypatch.setattr(continuous, "_in_manager", in_manager)
    monkeypatch.setattr(continuous, "_best_settings", {})
    pair, deadline = fake_pair(device=CUDA), time.time() + 100
    before = continuous.num_passes("8B", 32, 96, CUDA)
    chosen = {rows: continuous.measure(pair, [[1]] * rows, 96, deadline)[0] for rows in (1, 32)}
    assert chosen[1]["setting"] == "sdpa"
    assert chosen[32]["setting"] == "sdpa, CUDA graphs, narrow"
    assert chosen[32]["failed_settings"] == {"sdpa, CUDA graphs": "no graph today"}
    assert {new_tokens for _, new_tokens, _ in runs} == {48, 96}
    assert continuous.num_passes("8B", 32, 96, CUDA) < before
    runs.clear()
    continuous.measure(pair, [[1]] * 32, 96, deadline)  # other prompts of as many rows
    assert runs == [(32, 96, "sdpa, CUDA graphs, narrow")]


def test_the_settings_of_generate_batch_are_options_that_the_library_has() -> None:
    import dataclasses

    from transformers import ContinuousBatchingConfig

    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    settings = continuous.settings_of(CUDA, 24)
    assert all(set(setting) - {"attention"} <= known for setting in settings.values())
    assert settings["sdpa, CUDA graphs, narrow"]["q_padding_interval_size"] == 24


def test_generate_batch_runs_what_a_setting_says_in_every_version_of_the_library() -> None:
    """Version 5.17 takes flash kernels for "sdpa" where it finds some, and names its pages otherwise."""
    newer = {
        "page_size", "num_blocks", "max_batch_tokens", "max_requests_per_batch", "max_blocks_per_request",
        "allow_block_sharing", "auto_switch_to_flash", "use_cuda_graph",
    }  # fmt: skip
    older = newer - {"page_size", "auto_switch_to_flash"} | {"block_size"}
    setting = {"attention": "sdpa", "use_cuda_graph": False}
    attention, options = continuous.options_of(setting, 8, 16384 + 96, newer)
    assert attention == "sdpa"
    assert options.keys() == newer
    assert options["auto_switch_to_flash"] is False
    # 65 pages, and one more as the library takes it for the same inputs, an even number.
    assert options["max_blocks_per_request"] == 66
    assert continuous.options_of(setting, 8, 257, newer)[1]["max_blocks_per_request"] == 4
    attention, options = continuous.options_of(setting, 8, 16384 + 96, older)
    assert attention == "paged|sdpa"
    assert options.keys() == older
    assert continuous.options_of({"attention": "flash_attention_2"}, 8, 64, older)[0] == "flash_attention_2"


def test_a_second_shape_is_compiled_for_itself_alone() -> None:
    """Without forgetting, the second number of rows in a process is compiled for any number."""
    is_static: list[bool] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        is_static.append(all(isinstance(size, int) for each in inputs for size in getattr(each, "shape", [each])))
        return graph.forward

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    for forgets in (False, True):
        is_static.clear()
        module = Module()
        torch._dynamo.reset()
        for rows in (2, 8):
            if forgets:
                peer_sides.forget_compiled(module)
            if not hasattr(module, "_compiled_call"):
                module._compiled_call = torch.compile(module.__call__, backend=backend)  # as the library keeps it
            module._compiled_call(torch.zeros(rows, 3))
        assert is_static == [True, forgets]
    torch._dynamo.reset()


def a_worker(device: str, left: float = 540.0, **more: Any) -> worker.Worker:
    orders: dict[str, Any] = {
        "device": device, "dtype": "bfloat16", "acceptance": "0.8", "new_tokens": 96, "check_tokens": 24,
        "check_rows": 32, "rounds": 40, "deadline": time.time() + left, "tasks": [], "warmed": [],
        "roof": {"bytes_per_second": 4e12, "flops_per_second": 7e14},
    }  # fmt: skip
    return worker.Worker(worker.Orders(**(orders | more)), None)


def test_a_check_ends_itself_and_nothing_that_hangs_costs_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, task = a_worker("cuda"), plan.Task(check="float32")
    deadlines: list[float] = []

    def check(device: Any, dtype: str, new_tokens: int, deadline: float) -> dict[str, Any]:
        deadlines.append(deadline)
        return {"is_whole": False}

    monkeypatch.setattr(engine_checks, "against_twin", check)
    subject._check(task, time.time() + 500)
    assert deadlines[0] <= time.time() + 60
    assert subject._estimate(task) == 60
    assert subject._limit(task, 500) == 120
    for side in plan.SIDES:
        assert subject._limit(plan.Task("8B", 8, 512, side), 400) <= 400 / 2, side


def test_what_does_not_fit_is_known_before_it_is_tried() -> None:
    """By hand: both copies of the weights, 6 GiB of workspace, and the pages that the engine takes for its rows."""
    subject = a_worker("cuda")
    target, draft = (roof.Model(shape, 2) for shape in (SHAPES["8B"].target, SHAPES["8B"].draft))
    # 64 rows of 2,048 tokens fill in 16 rounds; 96 tokens, and 16 + 80 + 24 rounds of one or nine tokens.
    for side, room in ((plan.PLAIN, 96 + 120), (plan.AUTO, 96 + 9 * 120), ("K=4", 96 + 5 * 120)):
        assert engine_sides.room_tokens(side, 64 * 2048, 96, 40) == room
        tokens = 32 * (1 + 64 * -(-(2048 + room) // 32))
        weights = 2 * (target.weight_bytes + draft.weight_bytes)
        kv = tokens * (target.kv_bytes + draft.kv_bytes)
        assert subject._bytes(plan.Task("8B", 64, 2048, side)) == weights + kv + 6 * 2**30
    most = 139 * 2**30
    for task in plan.schedule(["8B", "1B"], plan.BATCHES, plan.CONTEXTS, plan.SIDES, ()):
        is_telling = task.batch <= 64 and task.batch * task.context <= 65536
        assert not is_telling or subject._bytes(task) < most, task
        if task.model == "8B" and task.batch * task.context >= 64 * 16384:
            assert subject._bytes(task) > most, task


def test_a_run_that_is_ended_at_any_time_leaves_a_report(tmp_path: Path) -> None:
    options = bench_gpu.parse(["--batches", "4", "--contexts", "512", "--shapes", "8B", "--out", str(tmp_path / "gpu")])
    run = bench_gpu.Run(options, "python benchmarks/bench_gpu.py --batches 4")
    hello = {"device": "NVIDIA", "memory_bytes": 139 * 2**30, "cores": 16, "versions": {"torch": "2.11"}}
    run._take({"hello": hello | {"flash_kernels": ["flash_attention_2"]}})
    text = (tmp_path / "gpu.md").read_text()
    for said in ("NVIDIA with 139 GiB, 16 cores", "torch 2.11", "flash_attention_2", "bench_gpu.py --batches 4`"):
        assert said in text
    assert "## Not reached" in text
    assert "8B batch 4 x 512, auto; " in text
    run._take({"result": result(4, plan.PLAIN, 123.0) | {"captured_rounds": 2, "captured_seconds": 0.5, "rounds": 72}})
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert [entry["side"] for entry in document["results"]] == [plan.PLAIN]
    assert len(document["not_reached"]) == len(run._todo) > 0
    text = (tmp_path / "gpu.md").read_text()
    assert "| 4 | plain | 123.0 | 72 (2, 0.50 s) |" in text
    assert "8B batch 4 x 512, plain;" not in text.split("## Not reached")[1]


_BARE = """
import sys
BLOCKED = {"pydantic", "pydantic_core", "ray", "typer", "rich", "pyarrow", "boto3", "botocore"}
class Bare:
    # Whoever asks whether a module is there is told that it is not, like on a machine that lacks it.
    def __init__(self, finder):
        self._finder = finder
    def __getattr__(self, name):
        return getattr(self._finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self._finder.find_spec(name, path, target)
sys.meta_path[:] = map(Bare, sys.meta_path)
import bench_gpu, gpu.worker
"""


def test_the_program_starts_on_a_machine_that_has_torch_and_little_else() -> None:
    """Such a machine has no network, so nothing can be installed there."""
    done = subprocess.run([sys.executable, "-c", _BARE], cwd=BENCHMARKS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_program_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "bench_gpu.py"), "--device", "cpu", "--shapes", "tiny"]
    command += [
        "--batches",
        "1,2",
        "--contexts",
        "64",
        "--new-tokens",
        "16",
        "--rounds",
        "8",
        "--check-tokens",
        "4",
        "--check-rows",
        "4",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path / "gpu.json")], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text())
    measured = [entry for entry in document["results"] if entry["status"] == "measured"]
    others = [entry for entry in document["results"] if entry["status"] != "measured"]
    assert {(entry["status"], entry["reason"]) for entry in others} <= {
        ("left out", "rounds are captured on a GPU only")
    }
    for entry in measured:
        if entry["check"] in ("float32", "float64"):
            assert entry["is_whole"]
            assert all(setting["equal_to_twin"] == 1.0 for setting in entry["entries"]), entry
        elif not entry["check"] and entry["side"] != plan.PLAIN:
            assert entry["equal_rows"] == 1.0, entry
    drafted = [entry for entry in measured if entry["side"] in plan.FIXED]
    assert len(drafted) == 4
    assert all(0.5 < entry["draft_agreement"] < 0.95 and entry["acceptance"] > 0.3 for entry in drafted)
    text = (tmp_path / "gpu.md").read_text()
    assert "## tiny, prompts of 64 tokens" in text
    assert all(entry["rounds"] >= 8 for entry in measured if entry["side"] in (plan.PLAIN, plan.AUTO))
    for said in (document["command"], document["hardware"]["device"], "transformers", "none is installed"):
        assert said in text
    assert str(tmp_path) not in text


@pytest.mark.long
def test_the_engines_sides_run_over_pages_as_they_will_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are equal to those over slots; a second side takes other pages for the same models.

    What the worker counts for a side is what is taken for it.
    """
    subject = a_worker("cpu", dtype="float32", new_tokens=12, rounds=4)
    taken: list[tuple[int, int]] = []
    num_pages = models.num_pages

    def counted(num_slots: int, row_tokens: int) -> int:
        taken.append((num_slots, row_tokens))
        return num_pages(num_slots, row_tokens)

    def texts_of(side: str) -> list[list[int]]:
        return engine_sides.measure(pair, 2, prompts, side, 12, time.time() + 300, rounds=4)[1]

    prompts = models.prompts(2, 64)
    pair = models.Pair("tiny", models.OWN, CPU, torch.float32)
    plain = texts_of(plan.PLAIN)
    monkeypatch.setattr(models, "uses_pages", lambda device: True)
    monkeypatch.setattr(models, "num_pages", counted)
    monkeypatch.setattr(worker, "num_pages", counted)
    pair = models.Pair("tiny", models.OWN, CPU, torch.float32)
    assert isinstance(pair.target, PagedLeanDecoder)
    for side in (plan.PLAIN, "K=2", plan.AUTO):
        taken.clear()
        assert models.equal_rows(texts_of(side), plain) == 1.0
        first = taken[0]
        taken.clear()
        subject._bytes(plan.Task("tiny", 2, 64, side))
        assert taken == [first]
