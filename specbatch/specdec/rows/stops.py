"""Stop strings: after which token a row ends, and where its text is cut.

The definition, which ``naive_stop`` spells out and everything faster must equal:

* After n tokens the text of a completion is ``decode`` of all n, special tokens skipped. U+FFFD at its end is left out
  of the search: it may stand for the first bytes of a character that the next token completes.
* An occurrence of a stop string counts if it is not there yet after ``min_new_tokens - 1`` tokens, that is, if it ends
  behind the text of those. So a stop string that lies wholly in the protected part neither ends the row nor is cut.
* The row ends at the first n, at least ``min_new_tokens``, after which an occurrence counts. Those n tokens are the
  completion's ids.
* The text ends before the earliest occurrence that counts; where several stop strings occur, the earliest start wins.
* Stop ids and the token limit work on ids alone, and the earliest terminator wins. A stop id gives no text. Where a
  stop id (an ordinary token that the user named) is also the token that completes a stop string, the row ends at a stop
  id and its text still ends before the stop string.

All of it depends on the ids only, not on the rounds in which they were committed.

The search is incremental: with L the length of the longest stop string, only the last L - 1 bytes before the new tokens
can take part in a new occurrence. Byte-level tokenizers are searched in bytes: a stop string is whole characters, UTF-8
synchronises itself, hence bytes match exactly where characters do, and half a character matches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from specbatch.specdec.accept import IntArray
from specbatch.specdec.tokenizer import Tokenizer

UNDECODABLE = "\ufffd"

Ids = Sequence[int] | IntArray
"""Token ids of one completion."""


class Detokenizer(Protocol):
    """What is needed of a tokenizer; the fast ways need ``specbatch.specdec.tokenizer.Tokenizer``."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens skipped."""
        ...


def naive_stop(
    decode: Callable[[Sequence[int]], str], completion_ids: Sequence[int], stop: Sequence[str], min_new_tokens: int = 0
) -> tuple[int, str] | None:
    """The slow twin: decode the whole completion after every token.

    Args:
        stop: stop strings, none of them empty.

    Returns:
        number of tokens after which the row ends and its text, or None if no stop string ends it.
    """
    for n in range(max(min_new_tokens, 1), len(completion_ids) + 1):
        text = decode(completion_ids[:n])
        start = find_stop(text, stop, _protected(decode, completion_ids, min_new_tokens))
        if start is not None:
            return n, text[:start]
    return None


def find_stop(text: str, stop: Sequence[str], num_protected: int = 0) -> int | None:
    """Start of the earliest occurrence that ends behind the first ``num_protected`` characters, or None."""
    settled = text.rstrip(UNDECODABLE)
    starts = (settled.find(string, max(0, num_protected + 1 - len(string))) for string in stop)
    return min((start for start in starts if start >= 0), default=None)


def _protected(decode: Callable[[Sequence[int]], str], completion_ids: Sequence[int], min_new_tokens: int) -> int:
    """Characters in which a stop string may lie without effect."""
    return len(decode(completion_ids[: min_new_tokens - 1]).rstrip(UNDECODABLE)) if min_new_tokens > 1 else 0


class StopMatcher:
    """Stop strings of one row. It holds no state of the row: what it says depends on the ids given.

    Args:
        tokenizer: that of the target.
        stop: stop strings, at least one, none of them empty.
        min_new_tokens: stop strings are not looked for before the completion has that many tokens.
    """

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str], min_new_tokens: int = 0) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._stop_bytes = tuple(string.encode() for string in self._stop)
        self._num_context_bytes = max(map(len, self._stop_bytes)) - 1
        self._num_context_characters = max(map(len, self._stop)) - 1
        self._min_new_tokens = min_new_tokens
        self._first_stop: Callable[[Ids, int], int | None] = self._first_in_whole
        # U+FFFD in a stop string may mean bytes that are no character: only the whole text shows those.
        if isinstance(tokenizer, Tokenizer) and not any(UNDECODABLE in string for string in self._stop):
            if tokenizer.decoding == "bytes":
                self._first_stop = self._first_in_bytes
            elif tokenizer.decoding == "pieces":
                self._first_stop = self._first_in_pieces

    def first_stop(self, completion_ids: Ids, num_known: int) -> int | None:
        """Number of tokens after which a stop string ends the row, None if it goes on.

        Args:
            completion_ids: the whole completion as it would be committed.
            num_known: its first tokens, of which an earlier call has said that the row goes on behind them.
        """
        num_before = max(num_known, self._min_new_tokens - 1, 0)
        return self._first_stop(completion_ids, num_before) if num_before < len(completion_ids) else None

    def text(self, token_ids: Sequence[int], *, ends_in_stop_id: bool = False) -> str:
        """Text of a row that has ended, without the stop string and without the text of a stop id.

        Args:
            token_ids: the completion's ids, with the tokens of the stop string or the stop id.
            ends_in_stop_id: the last one is a stop id.
        """
        ids = [int(token) for token in token_ids]
        text = self._tokenizer.decode(ids)
        start = find_stop(text, self._stop, _protected(self._tokenizer.decode, ids, self._min_new_tokens))
        if not ends_in_stop_id:
            return text[:start]
        without_id = self._tokenizer.decode(ids[:-1])
        return without_id[:start]

    def _first_in_bytes(self, completion_ids: Ids, num_before: int) -> int | None:
        """Search bytes, for tokenizers whose text is the UTF-8 reading of all tokens' bytes."""
        assert isinstance(self._tokenizer, Tokenizer)
        token_bytes = self._tokenizer.token_bytes
        context = b""
        for index in range(num_before - 1, -1, -1):
            if len(context) >= self._num_context_bytes:
                break
            context = token_bytes(int(completion_ids[index])) + context
        new_bytes = [token_bytes(int(token)) for token in completion_ids[num_before:]]
        searched = context + b"".join(new_bytes)
        ends = []
        for string in self._stop_bytes:
            # Only an occurrence that ends in the new tokens: one before them lies in the protected part.
            start = searched.find(string, max(0, len(context) + 1 - len(string)))
            if start >= 0:
                ends.append(start + len(string))
        if not ends:
            return None
        num_bytes, num_tokens = len(context), num_before
        for piece in new_bytes:
            num_bytes, num_tokens = num_bytes + len(piece), num_tokens + 1
            if num_bytes >= min(ends):
                break
        return num_tokens

    def _first_in_pieces(self, completion_ids: Ids, num_before: int) -> int | None:
        """Search a window of text, for tokenizers whose tokens are pieces of text or single bytes."""
        assert isinstance(self._tokenizer, Tokenizer)
        anchor = self._anchor(completion_ids, num_before)
        if anchor is None:
            return self._first_in_whole(completion_ids, num_before)
        ids = [int(token) for token in completion_ids[anchor:]]
        # The beginning of a text is decoded in its own way (a space is dropped), so the anchor's text is not searched.
        num_skipped = len(self._tokenizer.decode(ids[:1]))
        for n in range(num_before + 1, len(completion_ids) + 1):
            window = self._tokenizer.decode(ids[: n - anchor])
            if find_stop(window[num_skipped:], self._stop) is not None:
                return n
        return None

    def _anchor(self, completion_ids: Ids, num_before: int) -> int | None:
        """Index of a token from which on decoding gives the text that can take part in a new occurrence.

        The run of byte tokens before the new ones may still read differently, so the context is what stands before it.
        None where the window would touch the protected part or the beginning: they are few tokens then.
        """
        assert isinstance(self._tokenizer, Tokenizer)
        tokenizer, first = self._tokenizer, max(self._min_new_tokens - 1, 0)
        end = num_before
        while end > first and not tokenizer.is_text_piece(int(completion_ids[end - 1])):
            end -= 1
        num_tokens = self._num_context_characters + 2
        while end - num_tokens >= first:
            anchor = end - num_tokens
            if tokenizer.is_text_piece(int(completion_ids[anchor])):
                ids = [int(token) for token in completion_ids[anchor:end]]
                num_skipped = len(tokenizer.decode(ids[:1]))
                if len(tokenizer.decode(ids)) - num_skipped >= self._num_context_characters:
                    return anchor
            num_tokens += 1
        return None

    def _first_in_whole(self, completion_ids: Ids, num_before: int) -> int | None:
        """Decode everything after every new token, for tokenizers of which nothing is known."""
        ids = [int(token) for token in completion_ids]
        num_protected = _protected(self._tokenizer.decode, ids, self._min_new_tokens)
        for n in range(num_before + 1, len(ids) + 1):
            if find_stop(self._tokenizer.decode(ids[:n]), self._stop, num_protected) is not None:
                return n
        return None
