"""The lean model path: a decoder of our own for the Llama family, on the weights of the loaded module.

Eager modules spend about a millisecond per layer and step around their matrix products. Here a layer is four products
(query, key and value in one; gate and up in one) and a dozen small operations on a flat row of tokens without padding.
The unmodified module stays the oracle: logits must agree and tokens be equal.

Shape letters: M tokens of the forward, E hidden width, Q query heads, H key-value heads, D head width, R = Q / H,
B rows and T queries of an attention group, P positions, N kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbatch.specdec.accept import IntArray
from specbatch.specdec.forward.feed import Feed, Group, Padded, on_device
from specbatch.specdec.forward.lean_memory import LeanMemory
from specbatch.specdec.forward.rotary import Rotary
from specbatch.specdec.forward.threads import single_threaded
from specbatch.specdec.kernels.attention import visibility_mask, whole_attention
from specbatch.specdec.kernels.packing import Product, RowProduct
from specbatch.specdec.models import families

ProductMaker = Callable[[Tensor, Tensor | None], RowProduct]


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """One layer's weights, fused; plain values, because finding things in modules takes as long as a small product."""

    input_norm: Tensor
    qkv: RowProduct
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: RowProduct
    mlp_norm: Tensor
    gate_up: RowProduct
    down: RowProduct
    scaling: float
    window: int | None

    @staticmethod
    def of(layer: Any, window: int | None, make_product: ProductMaker) -> LeanLayer:
        """Take the weights out of a module of the Llama family, which is left without those of its products."""

        def fused(*linears: nn.Linear) -> RowProduct:
            """One product for several over the same input; what it was made of is let go at once."""
            bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
            weights = [linear.weight for linear in linears]
            product = make_product(weights[0] if len(weights) == 1 else torch.cat(weights), bias)
            for linear in linears:
                linear.register_parameter("weight", None)
                linear.register_parameter("bias", None)
            return product

        attention, mlp = layer.self_attn, layer.mlp
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return LeanLayer(
            input_norm=layer.input_layernorm.weight,
            qkv=fused(attention.q_proj, attention.k_proj, attention.v_proj),
            query_norm=None if query_norm is None else query_norm.weight,
            key_norm=None if key_norm is None else key_norm.weight,
            out=fused(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=fused(mlp.gate_proj, mlp.up_proj),
            down=fused(mlp.down_proj),
            scaling=float(attention.scaling),
            window=window,
        )

    @property
    def products(self) -> tuple[RowProduct, ...]:
        """The layer's matrix products."""
        return (self.qkv, self.out, self.gate_up, self.down)

    @property
    def norms(self) -> tuple[Tensor, ...]:
        """The layer's norm weights."""
        all_norms = (self.input_norm, self.query_norm, self.key_norm, self.mlp_norm)
        return tuple(norm for norm in all_norms if norm is not None)


class LeanDecoder:
    """A decoder of the Llama family with its slot memory; takes over the weights of ``model``.

    Args:
        model: a loaded causal language model for which ``families.model_path`` says so; its weights are taken out of
            it layer by layer, so that never more than one layer is held twice, and it cannot be used afterwards.
        num_slots, max_positions: shape of the key-value memory.
        context_length: positions that the model knows; what stands beyond belongs to drafts that are ignored.
        vocab_size: real vocabulary; padding rows behind it are cut off.
    """

    path = "lean"

    @property
    def settles_near_ties(self) -> bool:
        """See ``feed.Decoder``."""
        return True

    @property
    def is_invariant(self) -> bool:
        """See ``feed.Decoder``."""
        return False

    def __init__(self, model: Any, *, num_slots: int, max_positions: int, context_length: int, vocab_size: int) -> None:
        config = model.config
        self.context_length, self.vocab_size = context_length, vocab_size
        self.embedding = model.get_input_embeddings().weight
        windows = families.layer_windows(config)
        is_by_layer = families.FAMILIES[config.model_type].windows == "by_layer"
        kinds = config.layer_types if is_by_layer else ["full_attention"] * config.num_hidden_layers
        self.layers = []
        for layer, kind in zip(model.model.layers, kinds, strict=True):
            self.layers.append(LeanLayer.of(layer, windows[kind], self.make_product))
            _give_back(self.device)
        self.norm, self.epsilon = model.model.norm.weight, float(config.rms_norm_eps)
        head = model.get_output_embeddings()
        # A whole head on a device: its rows of logits begin at 16 bytes, as the fast kernels of a library ask. Most
        # tokenizers have an odd number of tokens.
        self.head = self.make_product(head.weight if self.is_on_device else head.weight[:vocab_size], None)
        head.register_parameter("weight", None)  # where the embedding's is the same one, that still holds it
        _give_back(self.device)
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(config.num_key_value_heads)
        self.head_dim = families.head_width(config.to_dict())
        self._rotary = Rotary(model.model.rotary_emb, self.embedding, context_length, has_table=self.is_on_device)
        self.cache = self.make_memory(num_slots, max_positions)

    def make_product(self, weight_OI: Tensor, bias_O: Tensor | None) -> RowProduct:
        """A matrix product of this model."""
        return Product(weight_OI, bias_O)

    def as_stored(self, states: Tensor) -> Tensor:
        """Keys or values as they come back from memory."""
        return states

    def make_memory(self, num_slots: int, max_positions: int) -> Any:
        """Keys and values of so many rows."""
        heads = (self.num_kv_heads, self.head_dim)
        return LeanMemory(len(self.layers), num_slots, max_positions, heads, self.dtype, self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.embedding.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.embedding.dtype
        return dtype

    @property
    def is_on_device(self) -> bool:
        """Whether launches and fast kernels count for more than the memory that they ask for, as they do on a GPU."""
        return self.device.type != "cpu"

    def cut(self, logits_NV: Tensor) -> Tensor:
        """A product of the head without padding behind the vocabulary: a view, whose rows may have gaps."""
        return logits_NV[:, : self.vocab_size]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and of tables made of them.

        An embedding that is the head's weight too is held twice where products are packed.
        """
        is_shared = self.head.weight is not None and self.head.weight.data_ptr() == self.embedding.data_ptr()
        norms = [self.norm, *(norm for layer in self.layers for norm in layer.norms)]
        products = sum(product.num_bytes for product in self.products) - is_shared * self.head.num_bytes
        return int(self.embedding.nbytes + products + sum(norm.nbytes for norm in norms) + self._rotary.num_bytes)

    @property
    def products(self) -> tuple[RowProduct, ...]:
        """All matrix products of a forward, in order."""
        return (*(product for layer in self.layers for product in layer.products), self.head)

    @torch.inference_mode()
    def run(self, feed: Feed, keep_N: IntArray | None) -> Tensor:
        """See ``feed.Decoder``."""
        padded = feed.padded
        flat_M = padded.slot_M * self.cache.max_positions + padded.position_M
        masks = self._masks(padded)
        x_ME = functional.embedding(feed.token_M, self.embedding)
        cos_M1D, sin_M1D = self._rotary(x_ME, padded.position_M)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            query_MQD, key_MHD, value_MHD = self._project(layer, x_ME, cos_M1D, sin_M1D)
            self.cache.write(number, flat_M, key_MHD, value_MHD)
            attended = [
                self._attend(layer, group, mask, query_MQD[group.begin : group.end], number)
                for group, mask in zip(padded.groups, masks[layer.window], strict=True)
            ]
            out_ME = attended[0] if len(attended) == 1 else torch.cat(attended)
            if number == last and keep_N is not None:
                # Behind the last layer's attention only the kept tokens are worth computing.
                index_N = on_device(keep_N, self.device)
                x_ME, out_ME = x_ME[index_N], out_ME[index_N]
            x_ME = self._finish(layer, x_ME, out_ME)
        return self._logits(x_ME)

    @torch.inference_mode()
    def canonical_logits(self, token_T: Tensor) -> Tensor:
        """See ``feed.Decoder``: no cache, and one thread on CPU; the shapes depend on the prefix only."""
        with single_threaded(self.device):
            T = token_T.shape[0]
            position_T = torch.arange(T, device=self.device)
            x_ME = functional.embedding(token_T, self.embedding)
            cos_M1D, sin_M1D = self._rotary(x_ME, position_T)
            for layer in self.layers:
                query_MQD, key_MHD, value_MHD = self._project(layer, x_ME, cos_M1D, sin_M1D)
                keys, values = (self.as_stored(states) for states in (key_MHD, value_MHD))
                out_MQD = whole_attention(query_MQD, keys, values, scaling=layer.scaling, window=layer.window)
                x_ME = self._finish(layer, x_ME, out_MQD.flatten(1))
            return self._logits(x_ME[-1:])[0]

    def _masks(self, padded: Padded) -> dict[int | None, list[Tensor]]:
        """Masks [B, 1, T, P] of every group, by the windows that layers have."""
        windows = {layer.window for layer in self.layers}
        return {
            window: [visibility_mask(group.position_BT, group.num_keys, self.dtype, window) for group in padded.groups]
            for window in windows
        }

    def _project(
        self, layer: LeanLayer, x_ME: Tensor, cos_M1D: Tensor, sin_M1D: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [M, Q, D] and keys [M, H, D], and values [M, H, D]."""
        normed_ME = functional.rms_norm(x_ME, x_ME.shape[-1:], layer.input_norm, self.epsilon)
        states = layer.qkv(normed_ME).view(x_ME.shape[0], -1, self.head_dim)
        Q, H = self.num_heads, self.num_kv_heads
        both = states[:, : Q + H]
        if layer.query_norm is not None:
            query = functional.rms_norm(states[:, :Q], (self.head_dim,), layer.query_norm, self.epsilon)
            key = functional.rms_norm(states[:, Q : Q + H], (self.head_dim,), layer.key_norm, self.epsilon)
            both = torch.cat((query, key), dim=1)
        # Half-rotation: (a, b) -> (a cos - b sin, b cos + a sin); the first half's sign is in the sine.
        half = self.head_dim // 2
        swapped = torch.cat((both[..., half:], both[..., :half]), dim=-1)
        rotated = torch.addcmul(both * cos_M1D, swapped, sin_M1D)
        return rotated[:, :Q], rotated[:, Q:], states[:, Q + H :]

    def _attend(self, layer: LeanLayer, group: Group, mask: Tensor, query_GQD: Tensor, number: int) -> Tensor:
        """Attention of one group over its slots, [G, Q * D]."""
        keys, values = self.cache.read(number, group.first_slot, group.num_rows, group.num_keys)
        if not group.is_dense:
            query_GQD = query_GQD[group.gather_BT.flatten()]
        query_BTQD = query_GQD.view(group.num_rows, group.width, self.num_heads, self.head_dim)
        out: Tensor = self._attention(layer, query_BTQD, keys, values, mask).flatten(0, 1)
        return out if group.is_dense else out[group.scatter_G]

    def _attention(
        self, layer: LeanLayer, query_BTQD: Tensor, key_BHPD: Tensor, value_BHPD: Tensor, mask_B1TP: Tensor
    ) -> Tensor:
        """[B, T, Q * D]; the query heads of a group become further queries, so that keys are read where they lie."""
        B, T, Q, D = query_BTQD.shape
        H = self.num_kv_heads
        query = query_BTQD.view(B, T, H, Q // H, D).permute(0, 2, 3, 1, 4).reshape(B, H, Q // H * T, D)
        if T > 1 and Q > H:
            mask_B1TP = mask_B1TP.repeat(1, 1, Q // H, 1)
        out = functional.scaled_dot_product_attention(
            query, key_BHPD, value_BHPD, attn_mask=mask_B1TP, scale=layer.scaling
        )
        return out.view(B, H, Q // H, T, D).permute(0, 3, 1, 2, 4).reshape(B, T, Q * D)

    def _finish(self, layer: LeanLayer, x_ME: Tensor, out_ME: Tensor) -> Tensor:
        """Output product, then the MLP, each with its residual."""
        x_ME = x_ME + layer.out(out_ME)
        normed_ME = functional.rms_norm(x_ME, x_ME.shape[-1:], layer.mlp_norm, self.epsilon)
        gate, up = layer.gate_up(normed_ME).chunk(2, dim=-1)
        down_ME: Tensor = layer.down(functional.silu(gate) * up)
        return x_ME + down_ME

    def _logits(self, x_NE: Tensor) -> Tensor:
        return self.cut(self.head(functional.rms_norm(x_NE, x_NE.shape[-1:], self.norm, self.epsilon)))


def _give_back(device: torch.device) -> None:
    """Let a device have what its allocator keeps for later: what comes next is larger, or is somebody else's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
