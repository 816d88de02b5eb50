"""Paged attention for unmodified ``transformers`` modules, registered under a name of its own.

The modules see one flat row of tokens. Their cache writes the tokens' keys and values into pages and gives back the
pools; where the tokens stand travels beside them, through the keyword arguments of the model's forward.

Shape letters: M tokens of the forward, Q query heads, H key-value heads, D head width, N pages of S positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from specbatch.specdec.kernels import attend
from specbatch.specdec.kernels.attention import grouped_attention, refuse_what_is_not_computed, unsupported
from specbatch.specdec.kernels.spans import Spans
from specbatch.specdec.models.families import FAMILIES

PAGED_ATTENTION_NAME = "specbatch_paged"

_KEEPS_ARGUMENTS = frozenset({"stablelm"})
"""Families whose layers, in transformers 5.23, do not hand keyword arguments on to their attention."""


def takes_pages(config: Mapping[str, Any]) -> bool:
    """Whether a supported model's unmodified modules can run over pages.

    Falcon's and gptj's take no attention function, and the layers of ``qwen2_moe`` do not tell it their windows.
    """
    kind = str(config["model_type"])
    keeps_windows = kind == "qwen2_moe" and bool(config.get("use_sliding_window"))
    return FAMILIES[kind].attention == "own" and kind not in _KEEPS_ARGUMENTS and not keeps_windows


def paged_interface(
    module: nn.Module,
    query_1QMD: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    specbatch_spans: Spans | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function of ``transformers``' interface.

    Args:
        query_1QMD: of one flat row of tokens.
        key, value: the pools [N, S, H, D] that the cache's ``update`` returned.
        attention_mask: None; what a token sees is said by the spans and the window.
        scaling: D ** -0.5 if None.
        specbatch_spans: where the tokens stand; None for a whole prefix without pages, which is computed by
            ``grouped_attention`` from keys and values [B, H, P, D].

    Returns:
        [1, M, Q, D] and no weights.

    Raises:
        SpecbatchError: JOB_MODEL_UNSUPPORTED for an argument that is not computed here.
    """
    if specbatch_spans is None:
        if key.shape[0] != query_1QMD.shape[0]:
            raise unsupported(module, "pages and does not say where its tokens stand (specbatch_spans)")
        return grouped_attention(
            module, query_1QMD, key, value, attention_mask, scaling, softcap, sliding_window, **kwargs
        )
    refuse_what_is_not_computed(module, kwargs)
    if attention_mask is not None:
        raise unsupported(module, "a mask over pages")
    if sliding_window is None and getattr(module, "sliding_window", None) is not None:
        raise unsupported(module, f"a window of {module.sliding_window} keys that it does not tell its function")
    assert query_1QMD.shape[0] == 1, "the tokens of all rows are one flat row"
    out_MQD = attend(
        query_1QMD[0].transpose(0, 1),
        key,
        value,
        specbatch_spans,
        scaling=query_1QMD.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out_MQD.unsqueeze(0), None


def register() -> None:
    """Make the function known to ``transformers``; harmless when repeated."""
    AttentionInterface.register(PAGED_ATTENTION_NAME, paged_interface)
