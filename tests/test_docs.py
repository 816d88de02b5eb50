"""The documents against the code: every error code is explained with its true exit code, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

from specbatch.schemas.errors import ErrorCode, SpecbatchError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_every_error_code_is_documented_with_its_exit_code() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    documented = dict(re.findall(r"^\| `((?:JOB|SHARD|ROW)_[A-Z_]+)` \| (\d*)", text, re.MULTILINE))
    assert set(documented) == {code.value for code in ErrorCode}
    for code, exit_code in documented.items():
        if not code.startswith("ROW_"):
            assert int(exit_code) == SpecbatchError(ErrorCode(code), "").exit_code, code


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for target in re.findall(r"`make ([a-z-]+)`", document.read_text()):
            assert target in targets, f"{document.name} names make {target}"
