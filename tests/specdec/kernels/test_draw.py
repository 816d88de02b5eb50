"""The draw's kernels in the interpreter and compiled; what is asked of them stands in ``interpreted_draw.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_layer import run

from specbatch.specdec.kernels.draw import is_drawn_by_kernel

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    file = HERE / "interpreted_draw.py"
    assert " passed" in run("-m", "pytest", "-p", "no:cacheprovider", str(file), TRITON_INTERPRET="1")


@pytest.mark.long
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """The bound on the noise asks for the library's logarithm; Triton has a fast one for exponentials and the like."""
    pytest.importorskip("triton")
    out = run("-W", "error", str(HERE / "compile_draw.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 7
    assert not any(one["has_fast_logarithm"] for one in found)
    assert not any(one["local_accesses"] for one in found)
    assert all(one["widest_load"] > 1 for one in found if one["kernel"] == "draw_tiles_kernel")


def test_a_cpu_draws_in_torch() -> None:
    assert not is_drawn_by_kernel(torch.zeros(1, 4))
