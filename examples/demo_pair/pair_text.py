"""Text for the demo pair: what every Python installation has, and nothing else.

Three kinds of text come out of the standard library's own files (Python Software Foundation License 2.0):

* *code*: its source files, for the tokenizer, the target and the taught draft. A few files, picked by a
  hash of their name, are held out so that the loss can be watched on text that was not trained on.
* *tests*: the files of its `test/` folder. Nothing is ever trained on them; agreement is measured there.
* *prose*: English paragraphs of the language reference (`pydoc_data/topics.py`) and of docstrings,
  unwrapped and without code, for the stranger draft.

The exact text depends on the Python version; the recipe does not.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCABULARY = 4096

# Character maps and build settings are tables written by generators: a megabyte without a line of code in it.
_TABLES = re.compile(r"^(encodings/(?!__init__|aliases|idna|utf_8)|_sysconfigdata|pydoc_data/)")
_NOT_TRAINED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_HELD_OUT_ONE_IN = 25


@dataclass(frozen=True)
class CodeText:
    """Source files, apart: those to train on and those held out."""

    train: list[str]
    held_out: list[str]

    @property
    def train_bytes(self) -> int:
        """Size of the training text in UTF-8."""
        return sum(len(text.encode()) for text in self.train)


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def _hash(name: str, salt: str = "") -> int:
    return int.from_bytes(hashlib.sha256((salt + name).encode()).digest()[:8], "big")


def read_code() -> CodeText:
    """Read the library's source without tests and tables; the split depends on file names alone."""
    root = standard_library()
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if _NOT_TRAINED.intersection(name.split("/")) or _TABLES.match(name):
            continue
        text = _read(path)
        if text is None or len(text) < 200:
            continue
        (held_out if _hash(name) % _HELD_OUT_ONE_IN == 0 else train).append(text)
    if not train or not held_out:
        raise SystemExit(f"no Python source under {root}: is the standard library installed as .py files?")
    return CodeText(train, held_out)


def read_test_snippets(count: int, characters: int = 600) -> list[str]:
    """Pieces of the library's test files, starting at a line; text that no model of the pair was trained on.

    Distributions that leave `test/` out get pieces of the held-out files instead.
    """
    root = standard_library()
    files = sorted(root.glob("test/test_*.py"), key=lambda path: _hash(path.name, "snippet"))
    texts = [text for path in files if (text := _read(path)) and len(text) > 4 * characters]
    texts = texts or [text for text in read_code().held_out if len(text) > 2 * characters]
    snippets = []
    for index in range(count):
        text = texts[index % len(texts)]
        start = _hash(f"{index}", "offset") % (len(text) - characters)
        start = text.find("\n", start) + 1  # 0, the start of the file, if no line break follows
        snippets.append(text[start : start + characters])
    return snippets


_CODE_SIGN = re.compile(r"[=<>{}\[\]\\|_@#$%^~`+/]|\(\)|::|\.\.|\w\.\w|^\W")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of `text` that are prose, each on one line.

    A paragraph with an indented line is a literal block, a list or a nested remark and is dropped whole, so
    is one with a sign that English does not use: what remains has no line break, no indentation and no code.
    """
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        if any(line.startswith((" ", "\t")) for line in lines):
            continue
        paragraph = re.sub(r"\s+", " ", " ".join(lines)).strip()
        if paragraph.endswith((".", "?", "!")) and len(paragraph.split()) >= 8 and not _CODE_SIGN.search(paragraph):
            yield paragraph


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def read_prose(code: CodeText) -> list[str]:
    """English prose: one document per reference topic or source file, its paragraphs joined by a space."""
    from pydoc_data.topics import topics

    documents = [" ".join(_paragraphs(topic)) for _, topic in sorted(topics.items())]
    documents += [" ".join(p for doc in _docstrings(source) for p in _paragraphs(doc)) for source in code.train]
    unique = dict.fromkeys(document for document in documents if len(document) > 80)
    return list(unique)


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Train a byte-level BPE: any byte string can be written with it, and no text meets an unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, BOS, EOS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Encode documents into one stream of ids, `<|bos|>` before and `<|eos|>` after each."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
        ids += [BOS_ID, *encoding.ids, EOS_ID]
    return torch.tensor(ids, dtype=torch.long)
