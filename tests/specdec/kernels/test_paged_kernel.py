"""The kernel of paged attention: run by Triton's interpreter, compiled for a GPU without one, and run on one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]
HERE = Path(__file__).parent
CHECKS = ("-m", "pytest", "-p", "no:cacheprovider", str(HERE / "paged_kernel_checks.py"))


def run(*arguments: str, **environment: str) -> str:
    """Triton decides at its import whether to interpret, so it has a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


def test_the_kernel_in_the_interpreter() -> None:
    assert " passed" in run(*CHECKS, TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_on_a_gpu() -> None:
    assert " passed" in run(*CHECKS, TRITON_INTERPRET="0")


@pytest.mark.long
def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    out = run(str(HERE / "compile_paged_attention.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert out.splitlines()[-1] == "compiled"
