"""The engine and its slow twin side by side."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from tiny import CONTEXT, VOCAB, NumberTokenizer, decoder, engine

from specbatch.schemas.sampling import SamplingParams
from specbatch.specdec import reference
from specbatch.specdec.forward.feed import Decoder
from specbatch.specdec.output import SequenceOutput

Rows = list[tuple[list[int], SamplingParams]]


def twin(model: Any, rows: Rows, eos: tuple[int, ...] = (), path: str = "generic") -> list[tuple[tuple[int, ...], str]]:
    """Of the lean path the twin has the layers' arithmetic but neither cache nor batch; test_lean judges the layers."""
    return [(output.token_ids, output.finish_reason) for output in full_twin(model, rows, eos, path)]


def full_twin(
    model: Any, rows: Rows, eos: tuple[int, ...] = (), path: str = "generic"
) -> list[reference.ReferenceOutput]:
    subject = model if path.startswith("generic") else WholePrefix(decoder(model, 1, path))
    return [
        reference.generate(
            subject,
            ids,
            params,
            eos_ids=eos,
            vocab_size=VOCAB,
            context_length=CONTEXT,
            decode=NumberTokenizer().decode,
        )
        for ids, params in rows
    ]


class WholePrefix(torch.nn.Module):
    """A decoder that is asked for one whole prefix at a time, in the shape of a ``transformers`` model."""

    def __init__(self, subject: Decoder) -> None:
        super().__init__()
        self._subject = subject

    def forward(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        return SimpleNamespace(logits=self._subject.canonical_logits(input_ids[0])[None, None])


def run(rows: Rows, *args: Any, **kwargs: Any) -> list[SequenceOutput]:
    outputs = engine(*args, **kwargs).generate([ids for ids, _ in rows], [params for _, params in rows])
    for output in outputs:
        check_bookkeeping(output)
    return outputs


def tokens(outputs: list[SequenceOutput]) -> list[tuple[tuple[int, ...], str]]:
    return [(output.token_ids, output.finish_reason) for output in outputs]


def check_bookkeeping(output: SequenceOutput) -> None:
    """The identities that the columns promise."""
    stats = output.stats
    assert sum(stats.acceptance_histogram) == stats.num_spec_steps == sum(stats.draft_length_histogram)
    assert sum(i * n for i, n in enumerate(stats.acceptance_histogram)) == stats.num_accepted_draft_tokens
    assert sum(k * n for k, n in enumerate(stats.draft_length_histogram)) == stats.num_draft_tokens
    ends_with_draft = (
        stats.num_plain_steps + stats.num_spec_steps + stats.num_accepted_draft_tokens - len(output.token_ids)
    )
    assert ends_with_draft in (0, 1)
    assert stats.num_plain_steps >= 1
    if ends_with_draft:
        assert output.finish_reason == "stop"
