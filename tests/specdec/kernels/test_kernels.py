"""The kernels, each way in a process of its own: by Triton's interpreter, compiled for a GPU without one, and on one.

On a machine with a GPU one command runs all that is worth running there, and leaves the interpreter out:

TRITON_INTERPRET=0 python -m pytest tests/specdec/kernels
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
IS_ASKED = os.environ.get("TRITON_INTERPRET") == "0"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None and not IS_ASKED, reason="triton is not installed"),
]
CHECKS = pytest.mark.parametrize(
    "checks", ["paged_kernel_checks.py", "layer_kernel_checks.py", "draw_kernel_checks.py"]
)


def run(*arguments: str, **environment: str) -> str:
    """Triton decides at its import whether to interpret, so it has a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


def passed(checks: str, **environment: str) -> bool:
    return " passed" in run("-m", "pytest", "-p", "no:cacheprovider", str(HERE / checks), **environment)


@pytest.mark.skipif(IS_ASKED, reason="TRITON_INTERPRET=0 asks for the compiled kernels")
@CHECKS
def test_the_kernels_in_the_interpreter(checks: str) -> None:
    assert passed(checks, TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available() and not IS_ASKED, reason="needs a GPU")
@CHECKS
def test_the_kernels_on_a_gpu(checks: str) -> None:
    assert passed(checks, TRITON_INTERPRET="0")


@pytest.mark.long
def test_paged_attention_compiles_for_a_gpu(tmp_path: Path) -> None:
    out = run(str(HERE / "compile_paged_attention.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert out.splitlines()[-1] == "compiled"


@pytest.mark.long
def test_the_kernels_of_a_layer_compile_for_a_gpu(tmp_path: Path) -> None:
    """For compute capability 9.0; what runs on such a device is another question."""
    out = run("-W", "error", str(HERE / "compile_layer.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    found = [json.loads(line) for line in out.splitlines()]
    assert {one["kernel"] for one in found} == {
        "add_rms_norm_kernel", "silu_mul_kernel", "rotate_and_write_kernel", "invariant_linear_kernel",
    }  # fmt: skip
    products = [one for one in found if one["kernel"] == "invariant_linear_kernel"]
    for product in products:
        expected = ["m16n8k16"] if product["type"] in ("bf16", "fp16") else []
        assert product["matrix"] == expected
        assert not product["is_wgmma"]
        assert product["async_copies"] > 0
        assert product["shared_bytes"] <= 227 * 1024 // 3
    assert any(one["is_8_bits"] for one in found)
    # Both tiles add up the inputs of a step in one order, every output of theirs.
    orders = [product["orders"] for product in products if product["type"] == "bf16"]
    assert {product["rows"] for product in products if product["type"] == "bf16"} == {16, 64}
    assert all(order == orders[0] for order in orders)
    assert len(orders[0]) == 1
    assert len(set(map(tuple, orders[0][0]))) == 128 // 16


@pytest.mark.long
def test_the_kernels_of_draws_compile_for_a_gpu(tmp_path: Path) -> None:
    """The bound on the noise asks for the library's logarithm; Triton has a fast one for exponentials and the like.

    The kernels of the checks must compile in time, too: a block that suits the interpreter need not suit a GPU.
    """
    out = run("-W", "error", str(HERE / "compile_draw.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 9
    assert not any(one["has_fast_logarithm"] for one in found)
    assert not any(one["local_accesses"] for one in found)
    assert all(one["widest_load"] > 1 for one in found if one["kernel"] == "draw_tiles_kernel")
