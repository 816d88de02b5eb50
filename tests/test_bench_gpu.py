"""The benchmark for GPUs, tried without one: its order, its aims, its faults, and the whole program at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench_gpu  # noqa: E402
from gpu import plan, report, roof  # noqa: E402
from gpu.shapes import SHAPES  # noqa: E402

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
    assert verdicts == ["not measured"] * 4
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
    assert "worst 2.25" in verdicts[2]


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


def test_a_process_that_never_starts_ends_the_run(tmp_path: Path) -> None:
    options = bench_gpu.parse(["--shapes", "tiny", "--batches", "4", "--out", str(tmp_path / "gpu.json")])
    run = bench_gpu.Run(options, "command", (sys.executable, "-c", "import sys; sys.stdin.read()"))
    run.go()
    reasons = {entry["reason"] for entry in run.document["results"]}
    assert reasons == {"the processes that measure did not start"}


@pytest.mark.parametrize("arguments", [["--shapes", "3B"], ["--sides", "vllm"], ["--acceptance", "1.2"]])
def test_what_there_is_not_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench_gpu.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


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
        ("left out", "there is no switch for captured rounds here")
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
    assert str(tmp_path) not in text


@pytest.mark.long
def test_the_engines_sides_run_over_pages_as_they_will_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are equal to those over slots; a second side takes other pages for the same models."""
    import torch
    from gpu import engine_sides, models

    from specbatch.specdec.lean_paged import PagedLeanDecoder

    def texts_of(side: str) -> list[list[int]]:
        return engine_sides.measure(pair, 2, prompts, side, 12, time.time() + 300)[1]

    cpu, float32 = torch.device("cpu"), torch.float32
    prompts = models.prompts(2, 64)
    pair = models.Pair("tiny", models.OWN, cpu, float32)
    plain = texts_of(plan.PLAIN)
    monkeypatch.setattr(models, "uses_pages", lambda device: True)
    pair = models.Pair("tiny", models.OWN, cpu, float32)
    assert isinstance(pair.target, PagedLeanDecoder)
    for side in (plan.PLAIN, "K=2"):
        assert models.equal_rows(texts_of(side), plain) == 1.0
