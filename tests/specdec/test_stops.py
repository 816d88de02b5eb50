"""Stop strings: literal cases, then everything fast against decoding the whole completion after every token."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

import specbatch
from specbatch.specdec.rows.stops import StopMatcher, find_stop, naive_stop
from specbatch.specdec.tokenizer import Tokenizer, decoding_of

FOLDER = Path(specbatch.__file__).parent / "assets" / "code-pair" / "target"
BYTE_LEVEL = Tokenizer.from_folder(FOLDER)
EOS = 2
TEXTS = ["def f(x):\n    return x\n", "ab\n\nba", "Zürich 東京 €5", "👩‍💻🙂", "naïve ￼ end", "STOP", "\n\n\n"]


def sentencepiece(*, with_strip: bool) -> Tokenizer:
    """A tokenizer as SentencePiece models have it: pieces with a visible space, and every byte."""
    pieces = ["</s>", "▁", "▁a", "a", "b", "ab", "▁▁", "\n", "S", "TOP", "STOP", "▁STOP", "é", "京"]
    spellings = [*pieces, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(models.BPE({spelling: i for i, spelling in enumerate(spellings)}, []))
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    strip = [decoders.Strip(" ", 1, 0)] if with_strip else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return Tokenizer(backend)


def metaspace() -> Tokenizer:
    spellings = ["</s>", "▁", "▁a", "a", "b", "ab▁", "▁▁", "S", "TOP", "▁ST", "OP▁", "a▁b"]
    backend = tokenizers.Tokenizer(models.BPE({spelling: i for i, spelling in enumerate(spellings)}, []))
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


STRIPPED, UNSTRIPPED, METASPACE = sentencepiece(with_strip=True), sentencepiece(with_strip=False), metaspace()


class WordsTokenizer:
    """A tokenizer of which nothing is known but ``decode``; a dot takes back the space before it."""

    WORDS = ("a", "b", ".", "ab", "c")

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.WORDS[i] for i in ids).replace(" .", ".")


def in_rounds(matcher: StopMatcher, ids: Sequence[int], sizes: Iterable[int]) -> int | None:
    """Where the row ends if its tokens come in rounds of these sizes."""
    num_known = 0
    for end in accumulate(sizes):
        end = min(end, len(ids))
        found = matcher.first_stop(ids[:end], num_known)
        if found is not None:
            assert num_known < found <= end
            return found
        num_known = end
        if end == len(ids):
            return None
    return matcher.first_stop(ids, num_known)


def check(tokenizer: object, ids: list[int], stop: Sequence[str], min_new_tokens: int, sizes: Sequence[int]) -> None:
    decode = tokenizer.decode  # type: ignore[attr-defined]
    expected = naive_stop(decode, ids, stop, min_new_tokens)
    matcher = StopMatcher(tokenizer, stop, min_new_tokens)  # type: ignore[arg-type]
    num_tokens = expected[0] if expected else None
    assert in_rounds(matcher, ids, sizes) == num_tokens
    assert in_rounds(matcher, ids, [1] * len(ids)) == num_tokens
    assert matcher.first_stop(ids, 0) == num_tokens
    assert matcher.first_stop(np.array(ids, dtype=np.int64), 0) == num_tokens
    assert matcher.text(ids[:num_tokens]) == (expected[1] if expected else decode(ids))


def spell(text: str) -> list[int]:
    """One token per byte."""
    by_bytes = {BYTE_LEVEL.token_bytes(token): token for token in range(3, 259)}
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def ended(text: str, *stop: str, min_new_tokens: int = 0, tail: Sequence[int] = ()) -> tuple[int | None, str]:
    """Where a text spelt byte by byte ends, and its text."""
    ids = [*spell(text), *tail]
    matcher = StopMatcher(BYTE_LEVEL, stop, min_new_tokens)
    end = matcher.first_stop(ids, 0)
    return end, matcher.text(ids[:end])


def test_a_stop_string_across_tokens_ends_the_row_at_its_last_token() -> None:
    assert ended("say STOP now", "STOP") == (8, "say ")


def test_the_text_ends_before_the_earliest_start() -> None:
    assert ended("xabcd", "bc", "abc", "c") == (4, "x")


def test_the_row_ends_at_the_first_stop_string_that_is_complete() -> None:
    assert ended("xabcd", "abcd", "b") == (3, "xa")


def test_a_stop_string_within_one_token_ends_there_and_cuts_what_the_token_says_more() -> None:
    token = BYTE_LEVEL.encode(" self")
    assert len(token) == 1
    matcher = StopMatcher(BYTE_LEVEL, ("el",))
    assert matcher.first_stop([70, *token, 70], 0) == 2
    assert matcher.text([70, *token]) == "d s"


def test_half_a_character_matches_nothing_until_it_is_whole() -> None:
    assert ended("5 €!", "€") == (5, "5 ")
    assert ended("東", "京") == (None, "東")
    assert [StopMatcher(BYTE_LEVEL, ("\ufffd",)).first_stop(spell("€")[:n], 0) for n in (1, 2, 3)] == [None] * 3


def test_bytes_that_are_no_character_match_u_fffd_once_more_text_follows() -> None:
    broken = spell("€")[:2]
    assert StopMatcher(BYTE_LEVEL, ("\ufffd",)).first_stop([*broken, *spell("ab")], 0) == 3
    assert ended("\ufffd", "\ufffd", tail=spell("x")) == (4, "")


def test_an_unfinished_character_at_the_end_of_a_row_stays_visible() -> None:
    assert StopMatcher(BYTE_LEVEL, ("x",)).text([*spell("a"), *spell("€")[:2]]) == "a\ufffd"


def test_special_tokens_give_no_text_and_do_not_part_a_stop_string() -> None:
    ids = [*spell("ST"), EOS, *spell("OP!")]
    matcher = StopMatcher(BYTE_LEVEL, ("STOP", "<|eos|>"))
    assert matcher.first_stop(ids, 0) == 5
    assert matcher.text(ids[:5]) == ""


def test_a_stop_string_in_the_protected_part_does_not_end_the_row_and_is_not_cut() -> None:
    assert ended("a.b.c", ".", min_new_tokens=2) == (2, "a")
    assert ended("a.b.c", ".", min_new_tokens=3) == (4, "a.b")
    assert ended("aaaa", "aa", min_new_tokens=3) == (3, "a")
    assert ended("a.b", ".", min_new_tokens=9) == (None, "a.b")


def test_a_stop_string_that_only_ends_behind_the_protected_part_counts() -> None:
    assert ended("xSTOP", "STOP", min_new_tokens=5) == (5, "x")
    assert ended("€€", "€", min_new_tokens=3) == (3, "")
    assert ended("€€", "€", min_new_tokens=4) == (6, "€")


def test_a_stop_id_gives_no_text_and_the_text_still_ends_before_a_stop_string() -> None:
    ids = spell("go END")
    matcher = StopMatcher(BYTE_LEVEL, ("END",))
    assert matcher.text(ids, ends_in_stop_id=True) == "go "
    assert matcher.text([*spell("go"), EOS], ends_in_stop_id=True) == "go"
    assert matcher.text(spell("go!"), ends_in_stop_id=True) == "go"
    assert (
        StopMatcher(BYTE_LEVEL, ("elf",)).text([*spell("a"), *BYTE_LEVEL.encode(" self")], ends_in_stop_id=True) == "a"
    )


def test_the_completions_of_the_engine_may_be_arrays() -> None:
    ids = np.array([*spell("€ STOP"), 70])
    for stop in ("STOP", "\ufffd STOP"):
        matcher = StopMatcher(BYTE_LEVEL, (stop,), min_new_tokens=2)
        assert matcher.first_stop(ids, 0) == matcher.first_stop(ids.tolist(), 0)  # type: ignore[arg-type]
    assert StopMatcher(BYTE_LEVEL, ("STOP",)).text(ids) == "€ "  # type: ignore[arg-type]


def test_the_definition_finds_the_earliest_start_behind_the_protected_part() -> None:
    assert find_stop("abcab", ("ca", "b")) == 1
    assert find_stop("abcab", ("ca", "b"), 2) == 2
    assert find_stop("abcab", ("ab",), 5) is None
    assert find_stop("ab\ufffd", ("b\ufffd", "\ufffd")) is None
    assert naive_stop(lambda ids: "ab"[: len(ids)], (1, 2, 3), ("b",)) == (2, "a")


byte_token = st.integers(3, 258)
any_token = st.integers(0, BYTE_LEVEL.vocab_size - 1)


@st.composite
def completions(draw: st.DrawFn) -> list[int]:
    """Random tokens, random bytes, real text token by token and byte by byte, in any order."""
    parts = st.one_of(
        st.lists(any_token, max_size=6),
        st.lists(byte_token, max_size=6),
        st.sampled_from(TEXTS).map(BYTE_LEVEL.encode),
        st.sampled_from(TEXTS).map(spell),
        st.text(max_size=4).map(lambda text: spell(text.encode("utf-8", "ignore").decode())),
    )
    return [token for part in draw(st.lists(parts, max_size=5)) for token in part][:60]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], tuple[str, ...], int, list[int]]:
    """A completion, stop strings of which some occur in it, protected tokens and sizes of rounds."""
    ids = draw(completions())
    text = BYTE_LEVEL.decode(ids) or "x"
    stop = []
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text) - 1))
        found = text[start : start + draw(st.integers(1, 8))]
        stop.append(draw(st.sampled_from([found, found, "\n\n", "€", "京", "\ufffd", "STOP"])))
    return ids, tuple(stop), draw(st.integers(0, 20)), draw(st.lists(st.integers(1, 7), max_size=30))


@given(cases())
@settings(max_examples=500, deadline=None, derandomize=True)
def test_byte_level_search_equals_decoding_everything(case: tuple[list[int], tuple[str, ...], int, list[int]]) -> None:
    check(BYTE_LEVEL, *case)


@given(completions())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_bytes_of_the_tokens_are_the_text(ids: list[int]) -> None:
    assert b"".join(map(BYTE_LEVEL.token_bytes, ids)).decode("utf-8", "replace") == BYTE_LEVEL.decode(ids)


def test_every_token_of_the_vocabulary_has_the_bytes_that_decoding_shows() -> None:
    for token in range(BYTE_LEVEL.vocab_size + 2):
        assert BYTE_LEVEL.token_bytes(token).decode("utf-8", "replace") == BYTE_LEVEL.decode([token])


def test_added_tokens_stand_for_their_own_text() -> None:
    backend = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    backend.add_tokens([AddedToken(text, special=False) for text in ("日本", "<|x y|>", "ĠĠĠĠĠĠĠĠĠzz")])
    tokenizer = Tokenizer(backend)
    assert tokenizer.decoding == "bytes"
    for token in range(4090, tokenizer.vocab_size):
        assert tokenizer.token_bytes(token).decode() == tokenizer.decode([token])


@pytest.mark.parametrize("tokenizer", [STRIPPED, UNSTRIPPED, METASPACE], ids=["strip", "fuse", "metaspace"])
def test_searching_a_window_equals_decoding_everything(tokenizer: Tokenizer) -> None:
    """Short stop strings over a small vocabulary, so that windows, byte runs and protected parts meet often."""
    generator = random.Random(11)
    assert tokenizer.decoding == "pieces"
    euro = [tokenizer.vocab_size - 256 + byte for byte in "€".encode()] if tokenizer is not METASPACE else [1]
    num_pieces = min(14, tokenizer.vocab_size)
    for _ in range(1500):
        ids: list[int] = []
        while len(ids) < 24:
            match generator.randrange(4):
                case 0:
                    ids += euro[: generator.choice((1, 2, 3, 3))]
                case 1:
                    ids.append(generator.randrange(tokenizer.vocab_size))
                case _:
                    ids.append(generator.randrange(num_pieces))
        text = tokenizer.decode(ids)
        start = generator.randrange(len(text))
        found = text[start : start + generator.randint(1, 5)]
        stop = tuple(generator.sample([found, "STOP", "€", "b ", "a€", " a b", "\ufffd"], generator.randint(1, 2)))
        check(tokenizer, ids, stop, generator.choice((0, 0, 1, 3, 9)), [generator.randint(1, 6) for _ in range(24)])


def test_a_window_does_not_begin_inside_a_run_of_bytes() -> None:
    """Two characters spelt in bytes read differently without the first byte: all of it would be no character."""
    first_byte = UNSTRIPPED.vocab_size - 256
    a, b = 3, 4
    ids = [a, b] * 4 + [first_byte + byte for byte in "€€".encode()] + [a, b]
    assert UNSTRIPPED.decode(ids) == "abababab€€ab"
    check(UNSTRIPPED, ids, ("€€ab",), 0, [len(ids) - 1, 1])


def test_a_tokenizer_of_which_nothing_is_known_is_decoded_whole() -> None:
    generator = random.Random(3)
    for _ in range(300):
        ids = [generator.randrange(5) for _ in range(12)]
        stop = tuple(generator.sample(["a.", "b a", ". c", "a..", "ab", "c c"], 2))
        check(WordsTokenizer(), ids, stop, generator.choice((0, 2, 5)), [generator.randint(1, 4) for _ in range(12)])


class CountingTokenizer(Tokenizer):
    """Counts the tokens that a search touches."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        super().__init__(backend)
        self.num_touched = 0

    def decode(self, ids: Iterable[int]) -> str:
        ids = list(ids)
        self.num_touched += len(ids)
        return super().decode(ids)

    def token_bytes(self, token: int) -> bytes:
        self.num_touched += 1
        return super().token_bytes(token)


@pytest.mark.parametrize(
    ("tokenizer", "token"),
    [(CountingTokenizer(BYTE_LEVEL._backend), 70), (CountingTokenizer(STRIPPED._backend), 4)],
    ids=["bytes", "pieces"],
)
def test_a_round_costs_the_same_however_long_the_completion_is(tokenizer: CountingTokenizer, token: int) -> None:
    matcher = StopMatcher(tokenizer, ("a stop string",), min_new_tokens=2)
    costs = []
    for length in (100, 10_000):
        tokenizer.num_touched = 0
        assert matcher.first_stop([token] * (length + 3), length) is None
        costs.append(tokenizer.num_touched)
    assert costs[0] == costs[1] < 100


def test_decoders_are_told_apart() -> None:
    replace, strip = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Strip", "start": 1}
    run = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    assert decoding_of({"type": "ByteLevel"}) == "bytes"
    assert decoding_of({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}) == "bytes"
    assert decoding_of({"type": "Sequence", "decoders": run}) == "pieces"
    assert decoding_of({"type": "Sequence", "decoders": [*run, strip | {"stop": 0}]}) == "pieces"
    assert decoding_of({"type": "Sequence", "decoders": [*run, strip | {"stop": 1}]}) == "whole"
    assert decoding_of({"type": "Sequence", "decoders": [replace | {"pattern": {"Regex": "."}}, *run[1:]]}) == "whole"
    assert decoding_of({"type": "Sequence", "decoders": [replace | {"content": ""}, *run[1:]]}) == "whole"
    assert decoding_of({"type": "WordPiece"}) == "whole"
    assert decoding_of(None) == "whole"
