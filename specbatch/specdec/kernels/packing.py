"""Linear layers on weights packed once for oneDNN: what decoding on a CPU spends nearly all its time in.

With a handful of rows, ``torch.nn.functional.linear`` in float32 repacks the weights inside every call. Packed once, a
product of 8 rows takes about 0.6 of the time and one of 40 rows 0.8 (``python benchmarks/bench_linears.py``). The
modules of the model are replaced one by one and its code is left alone; the unpacked model is the oracle in the tests.

Shape letters: M rows, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

_TYPICAL_ROWS = 16
"""The row count that oneDNN chooses its layout for; layouts for 1 to 256 rows measure alike within a few percent."""
_SAME_PRODUCT = ("FalconLinear",)
"""Subclasses of ``nn.Linear``, by name, that compute the same product in other steps."""


class PackedLinear(nn.Module):
    """A drop-in for a linear layer in float32 on CPU, for inference only. The packed weight cannot be read back."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight_OI = _weight(linear)
        self.out_features, self.in_features = weight_OI.shape
        # Neither a parameter nor a buffer: nothing may move, cast or save an opaque tensor.
        self._packed = pack(weight_OI)
        self._bias = linear.bias.detach() if isinstance(linear.bias, Tensor) else None

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weight and the bias."""
        return self.in_features * self.out_features * 4 + (0 if self._bias is None else self._bias.nbytes)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return out.view(*x.shape[:-1], self.out_features)


class RowProduct(Protocol):
    """x W^T + b for flat rows [M, I] to [M, O]; ``weight`` is [O, I], None where it cannot be read back."""

    weight: Tensor | None
    num_bytes: int
    in_features: int
    out_features: int

    def __call__(self, x_MI: Tensor) -> Tensor: ...


class Product:
    """x W^T + b for flat rows, without the ways of a module; packed where this torch packs.

    Attributes:
        weight: [O, I], None where it is packed. num_bytes: of weight and bias.
    """

    __slots__ = ("_bias", "_packed", "in_features", "num_bytes", "out_features", "weight")

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.out_features, self.in_features = weight_OI.shape
        self.num_bytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)
        self._bias = None if bias_O is None else bias_O.detach()
        is_packed = can_pack(weight_OI.device, weight_OI.dtype)
        self._packed = pack(weight_OI) if is_packed else None
        self.weight = None if is_packed else weight_OI.detach()

    def __call__(self, x_MI: Tensor) -> Tensor:
        """[M, I] to [M, O]."""
        if self.weight is not None:
            return functional.linear(x_MI, self.weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_MI, self._packed, self._bias, "none", [], "")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch packs: float32 on a CPU, with oneDNN built in."""
    return device.type == "cpu" and dtype == torch.float32 and bool(torch._C._has_mkldnn)


def pack(weight_OI: Tensor) -> Any:
    """The opaque packed form of a float32 weight, for ``torch.ops.mkldnn._linear_pointwise``."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), _TYPICAL_ROWS)


def pack_linears(model: nn.Module) -> int:
    """Replace every linear layer in a model; returns how many. An embedding that shared a weight keeps a copy.

    Experts held as one parameter of three dimensions are no linear layers and stay as they are.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _is_linear(child)
    ]
    num_found = len(found)
    while found:  # each is let go before the next is packed
        parent, name, child = found.pop()
        setattr(parent, name, PackedLinear(child))
    return num_found


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights that this process holds, packed ones included, shared ones counted once."""
    packed = sum(module.num_bytes for module in model.modules() if isinstance(module, PackedLinear))
    return packed + sum(_stored_bytes(_held(parameter)) for parameter in model.parameters())


def _held(parameter: Tensor) -> Tensor:
    """What this process holds of a weight that ranks may have divided among them."""
    share: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return share


def _stored_bytes(parameter: Tensor) -> int:
    """Bytes of a parameter as it lies in memory; behind the face of a float a quantized one has integers and scales."""
    if hasattr(parameter, "__tensor_flatten__"):
        names, _ = parameter.__tensor_flatten__()
        return sum(_stored_bytes(getattr(parameter, name)) for name in names)
    # 4-bit weights of bitsandbytes: scales of blocks, and where these are quantized again, theirs.
    num_bytes, state = parameter.nbytes, getattr(parameter, "quant_state", None)
    while state is not None:
        num_bytes += state.absmax.nbytes + state.code.nbytes
        state = state.state2
    return num_bytes


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    if type(getattr(module, "weight", None)) is not nn.Parameter:  # quantized weights know their own product
        return False
    return kind in (nn.Linear, Conv1D) or (issubclass(kind, nn.Linear) and kind.__name__ in _SAME_PRODUCT)


def _weight(linear: nn.Module) -> Tensor:
    """The weight [O, I]; GPT-2's layers keep theirs transposed."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t().contiguous() if isinstance(linear, Conv1D) else weight.detach()
