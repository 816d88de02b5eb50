"""Linear layers on weights packed once for oneDNN: what decoding on a CPU spends nearly all its time in.

With a handful of rows, ``torch.nn.functional.linear`` in float32 repacks the weights inside every call. Packed once, a
product of 8 rows takes about 0.6 of the time and one of 40 rows 0.8 (``python benchmarks/bench_linears.py``). The
modules of the model are replaced one by one and its code is left alone; the unpacked model is the oracle in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TYPICAL_ROWS = 16
"""The row count that oneDNN chooses its layout for; layouts for 1 to 256 rows measure alike within a few percent."""


class PackedLinear(nn.Module):
    """A drop-in for ``nn.Linear`` in float32 on CPU, for inference only. The packed weight cannot be read back."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Neither a parameter nor a buffer: nothing may move, cast or save an opaque tensor.
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weight."""
        return self.in_features * self.out_features * 4

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return out.view(*x.shape[:-1], self.out_features)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs: float32 on a CPU, with oneDNN built in."""
    return device.type == "cpu" and dtype == torch.float32 and bool(torch._C._has_mkldnn)


def pack_linears(model: nn.Module) -> int:
    """Replace every ``nn.Linear`` in a model; returns how many. An embedding that shared a weight keeps a copy."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, packed ones included, shared ones counted once."""
    packed = sum(module.num_bytes for module in model.modules() if isinstance(module, PackedLinear))
    return packed + sum(parameter.nbytes for parameter in model.parameters())
