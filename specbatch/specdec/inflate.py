"""Make a Llama model larger and slower without changing what it says.

Speculation pays when a target forward is dear, and a demo model of 5 M parameters is not: its weights fit in cache. An
inflated copy has the shape and the cost of a larger model and the same function, so acceptance stays the model's own:

- width: the residual stream is padded with zeros; norms average over more entries, so their weights and their epsilon
  are scaled to give the same result;
- heads, MLP columns and layers are added whose output projections are zero.

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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.models import locate_model

ZERO_NOISE = 1e-9
_FILL_STD = 0.02
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
    group = base.heads // base.kv_heads
    best = base
    for hidden in range(base.hidden, 16385, base.head_dim * group):
        heads = hidden // base.head_dim
        layers = max(base.layers, round(hidden / 64))
        narrow = Shape(hidden, 0, layers, heads, heads // group, base.head_dim, base.vocab)
        wanted = (parameters - narrow.parameters) / (3 * hidden * layers)
        intermediate = round(min(max(wanted, 2 * hidden), 6 * hidden) / 64) * 64
        shape = replace(narrow, intermediate=max(intermediate, base.intermediate))
        if abs(shape.parameters - parameters) < abs(best.parameters - parameters):
            best = shape
    return best


def inflate_state(state: dict[str, Tensor], base: Shape, goal: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the larger model, float32.

    Args:
        state: weights of the small one, named as ``transformers`` does.
    """
    generator = torch.Generator().manual_seed(seed)

    def widen(small: Tensor | None, rows: int, columns: int, std: float) -> Tensor:
        """Put a matrix into the upper left of a larger one filled with noise."""
        big = torch.empty(rows, columns).normal_(std=std, generator=generator)
        if small is not None:
            big[: small.shape[0], : small.shape[1]] = small.float()
        return big

    # What reads the stream may hold anything where it is new: its new columns read zeros, and behind its new rows
    # stands a projection that is zero there. What writes to the stream must be zero where it is new.
    grow = partial(widen, std=_FILL_STD)
    project = partial(widen, std=ZERO_NOISE)

    def norm(small: Tensor | None) -> Tensor:
        weight = torch.ones(goal.hidden)
        if small is not None:
            weight[: base.hidden] = small.float() * math.sqrt(base.hidden / goal.hidden)
        return weight

    q_rows, kv_rows = goal.heads * goal.head_dim, goal.kv_heads * goal.head_dim
    out = {
        "model.embed_tokens.weight": project(state["model.embed_tokens.weight"], goal.vocab, goal.hidden),
        "model.norm.weight": norm(state["model.norm.weight"]),
    }
    for layer in range(goal.layers):
        prefix = f"model.layers.{layer}."
        small = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        new = {
            "self_attn.q_proj.weight": grow(small.get("self_attn.q_proj.weight"), q_rows, goal.hidden),
            "self_attn.k_proj.weight": grow(small.get("self_attn.k_proj.weight"), kv_rows, goal.hidden),
            "self_attn.v_proj.weight": grow(small.get("self_attn.v_proj.weight"), kv_rows, goal.hidden),
            "self_attn.o_proj.weight": project(small.get("self_attn.o_proj.weight"), goal.hidden, q_rows),
            "mlp.gate_proj.weight": grow(small.get("mlp.gate_proj.weight"), goal.intermediate, goal.hidden),
            "mlp.up_proj.weight": grow(small.get("mlp.up_proj.weight"), goal.intermediate, goal.hidden),
            "mlp.down_proj.weight": project(small.get("mlp.down_proj.weight"), goal.hidden, goal.intermediate),
            "input_layernorm.weight": norm(small.get("input_layernorm.weight")),
            "post_attention_layernorm.weight": norm(small.get("post_attention_layernorm.weight")),
        }
        out |= {prefix + name: weight for name, weight in new.items()}
    return out


def inflate(source: str, out: Path, parameters: int) -> Shape:
    """Write an inflated copy of a model folder in float32; returns its shape."""
    folder = locate_model(source)
    config = folder.config
    base = shape_of(config)
    goal = shape_for(base, parameters)
    state: dict[str, Tensor] = {}
    for path in sorted(folder.path.glob("*.safetensors")):
        state |= load_file(path)
    out.mkdir(parents=True, exist_ok=True)
    save_file(inflate_state(state, base, goal), out / "model.safetensors", metadata={"format": "pt"})
    config |= {
        "hidden_size": goal.hidden,
        "intermediate_size": goal.intermediate,
        "num_hidden_layers": goal.layers,
        "num_attention_heads": goal.heads,
        "num_key_value_heads": goal.kv_heads,
        "head_dim": goal.head_dim,
        "rms_norm_eps": config["rms_norm_eps"] * base.hidden / goal.hidden,
        "dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.path.glob("*.json"):
        if path.name != "config.json":
            shutil.copyfile(path, out / path.name)
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
