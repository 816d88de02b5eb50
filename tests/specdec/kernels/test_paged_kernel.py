"""The kernel of paged attention without a GPU: run by Triton's interpreter, and compiled for one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*arguments: str, **environment: str) -> str:
    """Triton decides at its import whether to interpret, so it has a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.slow
def test_the_kernel_in_the_interpreter() -> None:
    file = HERE / "interpreted_paged_attention.py"
    assert " passed" in run("-m", "pytest", "-p", "no:cacheprovider", str(file), TRITON_INTERPRET="1")


@pytest.mark.slow
def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    out = run(str(HERE / "compile_paged_attention.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert out.splitlines()[-1] == "compiled"
