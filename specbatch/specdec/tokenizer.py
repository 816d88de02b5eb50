"""Text to ids and back through ``tokenizers`` alone, so that planning needs no torch.

Besides text it tells how text comes about, which is what an incremental search for stop strings must know
(``rows.stops``): of most tokenizers a few tokens can be decoded without the ones before them, of some they cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer as _Backend

from specbatch.schemas.prompt import ChatText

Decoding = Literal["bytes", "pieces", "whole"]
"""How the text of a completion follows from its tokens.

``bytes``: every token stands for bytes, and the text is the UTF-8 reading of all of them (byte-level BPE).
``pieces``: every token stands for a piece of text or for one byte; a run of byte tokens is read together, and a space
at the very beginning may be dropped (SentencePiece).
``whole``: nothing is known; only decoding all tokens together gives the text.
"""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """The tokenizer of one model folder.

    The spelling of a special token inside a prompt is text, not a command: a prompt that quotes ``<|eos|>`` must not
    end anything. What the tokenizer itself puts around a prompt (a BOS token, say) is kept. In a ``ChatText`` it is the
    template that writes special tokens, the first one too: nothing is put around it.

    Attributes:
        vocab_size: one past the largest token id.
        decoding: how text follows from tokens.
    """

    def __init__(self, backend: _Backend) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.decoding: Decoding = decoding_of(json.loads(backend.to_str())["decoder"])
        self._silent = frozenset(token for token, added in backend.get_added_tokens_decoder().items() if added.special)
        self._bytes_of: dict[int, bytes] = {}
        self._chat_backend: _Backend | None = None

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load ``tokenizer.json`` of a model folder."""
        return cls(_Backend.from_file(str(Path(path) / "tokenizer.json")))

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, with what the tokenizer puts around it; of a ``ChatText``, what its template wrote."""
        if isinstance(text, ChatText):
            return self._encode_chat(text)
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens give no text, bytes that are no character give U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode_chat(self, chat: ChatText) -> list[int]:
        if self._chat_backend is None:
            self._chat_backend = _Backend.from_str(self._backend.to_str())
            self._chat_backend.no_truncation()
            self._chat_backend.no_padding()
            self._chat_backend.encode_special_tokens = False
        ids: list[int] = []
        for text, is_command in chat.pieces():
            backend = self._chat_backend if is_command else self._backend
            ids += backend.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to the text where ``decoding`` is ``bytes``; nothing for a special or unknown id."""
        known = self._bytes_of.get(token)
        if known is None:
            spelling = None if token in self._silent else self._backend.id_to_token(token)
            known = self._bytes_of[token] = _unspell(spelling or "")
        return known

    def is_text_piece(self, token: int) -> bool:
        """Where ``decoding`` is ``pieces``: the token stands for text, neither for a byte nor for nothing."""
        spelling = None if token in self._silent else self._backend.id_to_token(token)
        return spelling is not None and spelling != "" and _BYTE_TOKEN.fullmatch(spelling) is None


def decoding_of(decoder: Mapping[str, Any] | None) -> Decoding:
    """Class of the ``decoder`` entry of a ``tokenizer.json``; what is not recognised is ``whole``."""
    if decoder is None:
        return "whole"
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return "bytes"
    if kinds == ["Metaspace"]:
        return "pieces"
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        is_plain_replace = (steps[0]["pattern"], steps[0]["content"]) == ({"String": "▁"}, " ")
        is_short_strip = len(steps) == 3 or (steps[3]["start"] <= 1 and steps[3]["stop"] == 0)
        return "pieces" if is_plain_replace and is_short_strip else "whole"
    return "whole"


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE spells a byte as itself where that is a visible Latin-1 character, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _unspell(spelling: str) -> bytes:
    """Bytes of a byte-level token; one that is not spelt in this way (an added token) stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in spelling])
    except KeyError:
        return spelling.encode()
