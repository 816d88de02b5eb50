"""Text to ids and back through ``tokenizers`` alone, so that planning needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as _Backend


class Tokenizer:
    """The tokenizer of one model folder.

    The spelling of a special token inside a prompt is text, not a command: a prompt that quotes ``<|eos|>`` must not
    end anything. What the tokenizer itself puts around a prompt (a BOS token, say) is kept.

    Attributes:
        vocab_size: one past the largest token id.
    """

    def __init__(self, backend: _Backend) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` of a model folder."""
        return cls(_Backend.from_file(str(Path(path) / "tokenizer.json")))

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with what the tokenizer puts around it."""
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens give no text."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text
