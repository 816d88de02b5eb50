"""Where kernels are checked: in Triton's interpreter on a CPU, or on a GPU; Triton decides when it is imported.

TRITON_INTERPRET=1 python -m pytest tests/specdec/kernels/layer_kernel_checks.py
TRITON_INTERPRET=0 python -m pytest tests/specdec/kernels
"""

from __future__ import annotations

import os

import torch

IS_GPU = os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = "cuda" if IS_GPU else "cpu"
# The interpreter cuts bfloat16 off instead of rounding it, and multiplies its bits as whole numbers.
HALF = torch.bfloat16 if IS_GPU else torch.float16
