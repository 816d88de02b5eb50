"""The ledger: its figures against loaded models, and what it decides at the border of what fits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specbatch.schemas.errors import ErrorCode, ExitCode, SpecbatchError
from specbatch.specdec.kernels.packing import pack_linears
from specbatch.specdec.kernels.packing import weight_bytes as loaded_weight_bytes
from specbatch.specdec.models.folders import ModelFolder, locate_model
from specbatch.specdec.models.footprint import weight_bytes
from specbatch.specdec.models.host import host_available_bytes
from specbatch.specdec.models.memory import AUTO_MAX_ROWS, MemoryPlan, auto_batch_size, make_ledger, plan_memory

TARGET = locate_model("code-pair/target")
DRAFT = locate_model("code-pair/draft-taught")
ROW_TOKENS = 300
GIB = 1 << 30


def plan(available_bytes: int, **changes: Any) -> MemoryPlan:
    values: dict[str, Any] = {"dtype": "float32", "device": "cpu", "row_tokens": ROW_TOKENS, **changes}
    return plan_memory(TARGET, values.pop("draft", DRAFT), available_bytes=available_bytes, **values)


def least_bytes(draft: ModelFolder | None, draft_length: int = 8) -> int:
    """Free bytes with which one row just fits, at the fraction of 0.9."""
    ledger = make_ledger(
        TARGET,
        draft,
        dtype="float32",
        available_bytes=0,
        draft_length=draft_length if draft is not None else 0,
        row_tokens=ROW_TOKENS,
    )
    row_bytes = ledger.row_bytes + ROW_TOKENS * ledger.kv_bytes_per_token
    return math.ceil((ledger.fixed_bytes + row_bytes) / 0.9) + 1


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_weights_are_those_of_the_loaded_model(tmp_path: Path, family: str, tied: bool) -> None:
    from tiny import tiny_model

    model = tiny_model(family, dtype=torch.float32, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    folder = ModelFolder("tiny", None, tmp_path, (), parameters)
    pack_linears(model)
    assert loaded_weight_bytes(model) == weight_bytes(folder, "float32")
    assert weight_bytes(folder, "bfloat16") == 2 * parameters


def test_a_ledger_adds_up() -> None:
    ledger = replace(plan(2 * GIB).ledger, batch_size=4)
    entries = {entry.name: entry.num_bytes for entry in ledger.entries}
    assert list(entries) == [
        "target weights",
        "draft weights",
        "prefill workspace",
        "process",
        "target KV",
        "draft KV",
        "round workspace",
    ]
    assert sum(entries.values()) == ledger.total_bytes <= ledger.budget_bytes == int(2 * GIB * 0.9)
    # 6 layers, keys and values, 2 heads of 64 numbers of 4 bytes.
    assert entries["target KV"] == 4 * ROW_TOKENS * 6 * 2 * 2 * 64 * 4
    assert ledger.kv_bytes_per_token * 4 * ROW_TOKENS == entries["target KV"] + entries["draft KV"]


def test_ranks_divide_the_target_and_the_draft_is_one_ranks() -> None:
    """test_parallel holds the shares against what ranks really load."""
    alone, shared = (
        {entry.name: entry.num_bytes for entry in ledger.fixed + ledger.kv}
        for ledger in (plan(2 * GIB, dtype="bfloat16", num_ranks=ranks).ledger for ranks in (1, 2))
    )
    assert 0.5 * alone["target weights"] < shared["target weights"] < 0.501 * alone["target weights"]
    assert shared["target KV"] * 2 == alone["target KV"]
    for name in ("draft weights", "draft KV", "process", "prefill workspace"):
        assert shared[name] == alone[name]


def test_on_gpus_ranks_keep_room_for_their_collectives_and_capture_no_rounds() -> None:
    alone, shared = (
        {entry.name: entry.num_bytes for entry in plan(64 * GIB, device="cuda", num_ranks=ranks).ledger.fixed}
        for ranks in (1, 2)
    )
    assert alone.keys() - shared.keys() == {"captured rounds"}
    assert shared.keys() - alone.keys() == {"collectives"}
    assert shared["collectives"] == GIB
    assert not {"collectives", "captured rounds"} & {entry.name for entry in plan(GIB, num_ranks=2).ledger.fixed}


@pytest.mark.parametrize("available_bytes", [GIB, 2 * GIB, 5 * GIB])
@pytest.mark.parametrize("draft", [None, DRAFT])
def test_capacities_are_the_largest_that_fit(available_bytes: int, draft: ModelFolder | None) -> None:
    ledger = plan(available_bytes, draft=draft).ledger
    row_bytes = ledger.row_bytes + ROW_TOKENS * ledger.kv_bytes_per_token
    rows = ledger.row_capacity
    assert ledger.fixed_bytes + rows * row_bytes <= ledger.budget_bytes < ledger.fixed_bytes + (rows + 1) * row_bytes
    tokens = ledger.kv_token_budget
    held = ledger.fixed_bytes + ledger.batch_size * ledger.row_bytes
    assert held + tokens * ledger.kv_bytes_per_token <= ledger.budget_bytes
    assert held + (tokens + 1) * ledger.kv_bytes_per_token > ledger.budget_bytes


def test_the_automatic_batch_is_bounded_by_memory_and_by_the_device() -> None:
    assert plan(64 * GIB).batch_size == AUTO_MAX_ROWS["cpu"] == 32
    assert plan(64 * GIB, device="cuda").batch_size == AUTO_MAX_ROWS["cuda"] == 256
    small = plan(least_bytes(DRAFT))
    assert (small.batch_size, small.ledger.row_capacity) == (1, 1)
    full = replace(small.ledger, available_bytes=0)
    assert auto_batch_size(full, "cpu") == 1


def test_without_the_draft_there_is_room_for_a_larger_batch() -> None:
    decided = plan(least_bytes(DRAFT) + 20_000_000)
    assert decided.with_draft is not None
    assert decided.uses_draft
    assert decided.with_draft.batch_size < decided.without_draft.batch_size <= 32
    assert decided.batch_size == decided.with_draft.batch_size


def test_a_target_that_does_not_fit_is_refused_with_the_numbers() -> None:
    assert plan(least_bytes(None)).ledger.row_capacity == 1
    for speculation in ("off", "auto", 3):
        with pytest.raises(SpecbatchError) as caught:
            plan(least_bytes(None) - 10, speculation=speculation)
        assert caught.value.code is ErrorCode.JOB_MEMORY
        assert caught.value.exit_code is ExitCode.NO_CAPACITY
        assert "target code-pair/target needs 0.58 GB (target weights 25.8 MB" in caught.value.message
        assert "--memory-fraction 0.9 gives 0.58 GB" in caught.value.message
        assert "\n" not in caught.value.message


def test_where_only_the_pair_does_not_fit_auto_goes_without_the_draft_and_says_so() -> None:
    available = least_bytes(DRAFT) - 10
    decided = plan(available)
    assert not decided.uses_draft
    assert decided.note is not None
    assert decided.note.startswith("decoding without the draft: target code-pair/target with draft")
    assert decided.ledger is decided.without_draft
    assert decided.batch_size > 1
    with pytest.raises(SpecbatchError, match="--speculation auto") as caught:
        plan(least_bytes(DRAFT, draft_length=3) - 10, speculation=3)
    assert caught.value.code is ErrorCode.JOB_MEMORY
    assert plan(least_bytes(DRAFT, draft_length=3), speculation=3).uses_draft


def test_a_batch_that_was_asked_for_is_kept_and_rows_wait() -> None:
    crowded = plan(least_bytes(DRAFT) + 20_000_000, batch_size=500)
    assert crowded.batch_size == 500
    assert crowded.note is not None
    assert "long rows wait" in crowded.note
    assert crowded.kv_token_budget == ROW_TOKENS, "room for one row at least"
    assert plan(64 * GIB, batch_size=500).note is None


def test_speculation_off_leaves_the_draft_out() -> None:
    decided = plan(4 * GIB, speculation="off")
    assert (decided.with_draft, decided.uses_draft) == (None, False)


def test_what_is_not_asked_of_the_engine_is_free() -> None:
    half = plan(4 * GIB, memory_fraction=0.5).ledger
    assert half.budget_bytes == 2 * GIB
    lean = plan(4 * GIB, process_bytes=0).ledger
    assert half.fixed_bytes - lean.fixed_bytes == 512 << 20


def test_bfloat16_halves_what_is_held_per_token() -> None:
    full, half = plan(4 * GIB).ledger, plan(4 * GIB, dtype="bfloat16").ledger
    assert full.kv_bytes_per_token == 2 * half.kv_bytes_per_token


def test_8_bits_count_only_where_keys_and_values_are_kept_in_them() -> None:
    """A quantized draft beside a lean target decodes by its modules, whose pool has the model's own type."""
    from specbatch.specdec.models.quantization import find_quantization

    quantized = replace(DRAFT, quantization=find_quantization("draft", DRAFT.config, "torchao-int8"))
    assert quantized.quantization is not None

    def kv(draft: ModelFolder, kv_cache_dtype: Any) -> dict[str, int]:
        ledger = make_ledger(
            TARGET, draft, dtype="bfloat16", available_bytes=0, batch_size=1, kv_cache_dtype=kv_cache_dtype
        )
        return {entry.name: entry.num_bytes for entry in ledger.kv}

    whole, dense, mixed = kv(DRAFT, "auto"), kv(DRAFT, "fp8"), kv(quantized, "fp8")
    assert dense == {name: num_bytes // 2 for name, num_bytes in whole.items()}
    assert mixed == {"target KV": dense["target KV"], "draft KV": whole["draft KV"]}


# ---- the host's free memory -----------------------------------------------------------


def host(root: Path, *, meminfo: int, files: dict[str, str] | None = None, groups: str = "0::/\n") -> int:
    written = {
        "proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {meminfo >> 10} kB\n",
        "proc/self/cgroup": groups,
        **(files or {}),
    }
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return host_available_bytes(root)


def group(folder: str, limit: str, usage: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {inactive}\n",
    }


def test_without_limits_the_kernel_decides(tmp_path: Path) -> None:
    assert host(tmp_path, meminfo=4 * GIB) == 4 * GIB
    assert host(tmp_path, meminfo=4 * GIB, files=group("sys/fs/cgroup", "max", GIB)) == 4 * GIB


def test_a_containers_limit_counts_without_its_page_cache(tmp_path: Path) -> None:
    files = group("sys/fs/cgroup", str(2 * GIB), GIB, inactive=GIB // 2)
    assert host(tmp_path, meminfo=4 * GIB, files=files) == GIB + GIB // 2
    assert host(tmp_path, meminfo=GIB, files=files) == GIB


def test_the_tightest_group_above_the_process_decides(tmp_path: Path) -> None:
    files = {
        **group("sys/fs/cgroup/a", str(3 * GIB), 2 * GIB),
        **group("sys/fs/cgroup/a/b", "max", 0),
        **group("sys/fs/cgroup/other", "1", 0),
    }
    assert host(tmp_path, meminfo=8 * GIB, files=files, groups="0::/a/b\n") == GIB


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 5\ntotal_inactive_file 1024\n",
    }
    assert host(tmp_path, meminfo=8 * GIB, files=files, groups="4:memory:/job\n1:cpu:/\n") == GIB + 1024


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert host(tmp_path, meminfo=GIB, files=group("sys/fs/cgroup", "1000", 2000)) == 0


def test_a_system_without_proc_tells_its_physical_memory(tmp_path: Path) -> None:
    assert host_available_bytes(tmp_path) > 0


def test_planning_the_memory_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, specbatch.specdec.models.memory, specbatch.specdec.models.host; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.strip().lower()) is False
