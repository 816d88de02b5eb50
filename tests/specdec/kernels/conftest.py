"""What the tests of kernels share, and what of them a machine without the other packages runs."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from device import IS_GPU

_MODELS = ["test_interface.py", "test_layer.py"]
_HAS_ENGINE = importlib.util.find_spec("pydantic") is not None
collect_ignore = [] if _HAS_ENGINE else _MODELS


def pytest_report_header() -> str:
    return "" if _HAS_ENGINE else f"left out, because pydantic is not installed: {', '.join(_MODELS)}"


@pytest.fixture
def _rows_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter a product that rounds a row alike wherever it stands; its own, by BLAS, does not."""
    if IS_GPU:
        return
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *__: Any) -> TensorHandle:
        left, right = (operand.data.astype(d.data.dtype) for operand in (a, b))
        return TensorHandle(np.add.reduce(left[:, :, None] * right[None], axis=1) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
