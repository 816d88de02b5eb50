"""Make a Llama model larger and slower without changing what it says.

Speculation pays when a target forward is dear, and a demo model of 5 M parameters is not: its weights fit in cache. An
inflated copy has the shape and the cost of a larger model and the same function, so acceptance stays the model's own:

- width: the residual stream is padded with zeros; norms average over more entries, so their weights and their epsilon
  are scaled to give the same result;
- heads, MLP columns and layers are added whose output projections are zero; groups of query heads may grow too;
- heads are widened by entries whose keys are zero, old entries placed where rotation turns them as before.

Every zero is filled with noise of 1e-9, so that no runtime can notice and skip it.

    python -m specbatch.specdec.inflate code-pair/target OUT --parameters 120M

Shape letters: none; matrices are [outputs, inputs] as in ``torch.nn.Linear``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models.folders import TOKENIZER_FILES, locate_model

ZERO_NOISE = 1e-9
_FILL_STD = 0.02
_COPIED = (*TOKENIZER_FILES, "special_tokens_map.json", "generation_config.json")
"""What stays as it is: how text becomes tokens, and when a text ends. Of weights and config there are new ones."""
_SUFFIXES = {"M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def group(self) -> int:
        """Query heads of one key-value head."""
        return self.heads // self.kv_heads

    @property
    def parameters(self) -> int:
        """Weights, with tied embeddings counted once."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        per_layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.vocab * self.hidden + self.layers * per_layer + self.hidden


def shape_of(config: dict[str, Any]) -> Shape:
    """Widths in a ``config.json``.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED for anything but a Llama model with tied embeddings and no biases.
    """
    if config.get("model_type") != "llama" or not config.get("tie_word_embeddings") or config.get("attention_bias"):
        raise SpecbatchError(ErrorCode.JOB_MODEL_UNSUPPORTED, "only Llama models with tied embeddings can be inflated")
    heads = config["num_attention_heads"]
    return Shape(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
    )


def shape_for(base: Shape, parameters: int) -> Shape:
    """A shape of about so many parameters with the proportions of common models.

    Depth is about width / 64 and the MLP 2 to 6 times as wide as the model. The group size of the heads, the head width
    and the vocabulary stay.
    """
    best = base
    for hidden in range(base.hidden, 16385, base.head_dim * base.group):
        heads = hidden // base.head_dim
        layers = max(base.layers, round(hidden / 64))
        narrow = Shape(hidden, 0, layers, heads, heads // base.group, base.head_dim, base.vocab)
        wanted = (parameters - narrow.parameters) / (3 * hidden * layers)
        intermediate = round(min(max(wanted, 2 * hidden), 6 * hidden) / 64) * 64
        shape = replace(narrow, intermediate=max(intermediate, base.intermediate))
        if abs(shape.parameters - parameters) < abs(best.parameters - parameters):
            best = shape
    return best


def check_growth(config: dict[str, Any], base: Shape, goal: Shape) -> None:
    """Whether a model can be grown to a shape.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED; something would have to shrink, or heads be widened to no multiple.
    """
    sizes = ("hidden", "intermediate", "layers", "kv_heads", "group", "head_dim")
    smaller = next((name for name in sizes if getattr(goal, name) < getattr(base, name)), None)
    if smaller or goal.vocab != base.vocab:
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED,
            f"{base} cannot be inflated to {goal}: {smaller or 'vocab'} must not "
            + ("shrink" if smaller else "change"),
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if goal.head_dim % base.head_dim or (goal.head_dim > base.head_dim and rope.get("rope_type") != "default"):
        raise SpecbatchError(
            ErrorCode.JOB_MODEL_UNSUPPORTED,
            f"heads of {base.head_dim} cannot be widened to {goal.head_dim}; that takes a multiple, and rotary "
            "positions of the type 'default'",
        )


def inflated_config(config: dict[str, Any], base: Shape, goal: Shape, dtype: str = "float32") -> dict[str, Any]:
    """The larger model's ``config.json``."""
    return config | {
        "hidden_size": goal.hidden,
        "intermediate_size": goal.intermediate,
        "num_hidden_layers": goal.layers,
        "num_attention_heads": goal.heads,
        "num_key_value_heads": goal.kv_heads,
        "head_dim": goal.head_dim,
        "rms_norm_eps": config["rms_norm_eps"] * base.hidden / goal.hidden,
        "dtype": dtype,
    }


def weight_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights, by the names that ``transformers`` gives them."""
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    of_layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q_rows, shape.hidden),
        "self_attn.k_proj.weight": (kv_rows, shape.hidden),
        "self_attn.v_proj.weight": (kv_rows, shape.hidden),
        "self_attn.o_proj.weight": (shape.hidden, q_rows),
        "mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.up_proj.weight": (shape.intermediate, shape.hidden),
        "mlp.down_proj.weight": (shape.hidden, shape.intermediate),
        "input_layernorm.weight": (shape.hidden,),
        "post_attention_layernorm.weight": (shape.hidden,),
    }
    layers = range(shape.layers)
    return {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    } | {f"model.layers.{layer}.{name}": size for layer in layers for name, size in of_layer.items()}


@torch.no_grad()
def fill_weight(
    name: str, out: Tensor, state: Mapping[str, Tensor], base: Shape, goal: Shape, generator: torch.Generator
) -> None:
    """Write one weight of the larger model, of any dtype and wherever it lies.

    Args:
        out: written whole. state: weights of the small model. generator: on the device of ``out``.
    """
    small = state.get(name)
    if name.endswith("norm.weight"):
        out.fill_(1.0)
        if small is not None:
            out[: base.hidden] = (small.float() * math.sqrt(base.hidden / goal.hidden)).to(out)
        return
    # What reads the stream may hold anything where it is new: its new columns read zeros, and behind its new rows
    # stands a projection that is zero there. What writes to the stream must be zero where it is new.
    kind = name.split(".")[-2]
    out.normal_(std=ZERO_NOISE if kind in ("embed_tokens", "o_proj", "down_proj") else _FILL_STD, generator=generator)
    if small is None:
        return
    block = small.float()
    rows, columns = torch.arange(block.shape[0]), torch.arange(block.shape[1])
    if kind == "o_proj":
        columns = _places(base, goal, is_query=True, is_rotated=False)
    elif kind == "v_proj":
        rows = _places(base, goal, is_query=False, is_rotated=False)
    elif kind == "k_proj":
        rows = _places(base, goal, is_query=False, is_rotated=True)
        # A query's entries beyond the old ones may be anything only where the keys' are zero.
        if goal.head_dim > base.head_dim:
            out[: base.kv_heads * goal.head_dim].normal_(std=ZERO_NOISE, generator=generator)
    elif kind == "q_proj":
        rows = _places(base, goal, is_query=True, is_rotated=True)
        block = block * math.sqrt(goal.head_dim / base.head_dim)  # wider heads divide their scores by more
    rows, columns = rows.to(out.device), columns.to(out.device)
    out[rows.unsqueeze(1), columns] = block.to(out)


def _places(base: Shape, goal: Shape, *, is_query: bool, is_rotated: bool) -> Tensor:
    """Where the entries of the small model's heads stand among the larger one's.

    A query head stays with its key-value head though groups are larger. Rotation pairs entry i with entry i + D / 2 at
    the frequency theta ** (-2 i / D): in a head r times as wide the same frequency is that of entry r * i.
    """
    width, half, ratio = base.head_dim, base.head_dim // 2, goal.head_dim // base.head_dim
    entry = torch.arange(width)
    if is_rotated:
        entry = torch.where(entry < half, entry * ratio, goal.head_dim // 2 + (entry - half) * ratio)
    head = torch.arange(base.heads if is_query else base.kv_heads)
    if is_query:
        head = head // base.group * goal.group + head % base.group
    return (head.unsqueeze(1) * goal.head_dim + entry).flatten()


def inflate_state(state: Mapping[str, Tensor], base: Shape, goal: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the larger model, float32.

    Args:
        state: weights of the small one, named as ``transformers`` does.
    """
    generator = torch.Generator().manual_seed(seed)
    out = {name: torch.empty(size) for name, size in weight_shapes(goal).items()}
    for name, weight in out.items():
        fill_weight(name, weight, state, base, goal, generator)
    return out


def load_state(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder, as stored."""
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    return state


def inflate(source: str, out: Path, parameters: int) -> Shape:
    """Write an inflated copy of a model folder in float32; returns its shape.

    Raises:
        SpecbatchError: of ``locate_model``, ``shape_of`` and ``check_growth``.
    """
    folder = locate_model(source)
    base = shape_of(folder.config)
    goal = shape_for(base, parameters)
    check_growth(folder.config, base, goal)
    out.mkdir(parents=True, exist_ok=True)
    state = inflate_state(load_state(folder.path), base, goal)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = inflated_config(folder.config, base, goal)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in _COPIED:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, out / name)
    return goal


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m specbatch.specdec.inflate", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="model folder or bundled name")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--parameters", default="120M", help="size to reach, such as 120M or 1B (default: 120M)")
    options = parser.parse_args(arguments)
    size = options.parameters.upper()
    try:
        parameters = int(float(size.rstrip("MB")) * _SUFFIXES.get(size[-1], 1))
    except ValueError:
        parser.error(f"--parameters {options.parameters}: write it like 120M or 1B")
    try:
        shape = inflate(options.source, options.out, parameters)
    except SpecbatchError as error:
        sys.stderr.write(f"error: {error}\n")
        return int(error.exit_code)
    sys.stderr.write(
        f"{options.out}: {shape.parameters / 1e6:.1f} M parameters, {shape.layers} layers of {shape.hidden}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
