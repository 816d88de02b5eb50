"""The shapes that the bundled pair is inflated to, and the pairs made of them."""

from __future__ import annotations

from dataclasses import dataclass

from specbatch.specdec.inflate import Shape

VOCAB = 4096
"""The pair's own: a real model of these shapes has 128,256, so its output head reads 0.25 to 1 GB more."""


@dataclass(frozen=True, slots=True)
class PairShape:
    """Target and draft of one size of model."""

    target: Shape
    draft: Shape


def _shape(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int) -> Shape:
    return Shape(hidden, intermediate, layers, heads, kv_heads, head_dim, VOCAB)


SHAPES: dict[str, PairShape] = {
    "8B": PairShape(_shape(4096, 14336, 32, 32, 8, 128), _shape(1024, 8192, 12, 16, 8, 64)),
    "1B": PairShape(_shape(2048, 8192, 16, 32, 8, 64), _shape(512, 2816, 8, 16, 8, 64)),
    "tiny": PairShape(_shape(512, 1024, 7, 16, 4, 128), _shape(256, 768, 6, 16, 8, 64)),
}
"""Layers as in Llama-3.1-8B and Llama-3.2-1B; drafts of about a twentieth. ``tiny`` is for trying the program."""
