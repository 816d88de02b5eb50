"""For `make docs`: links of a page to files outside of docs/ become their paths; a site does not hold those files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>[^)#:\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by MkDocs for every page."""
    docs = Path(config["docs_dir"]).resolve()
    folder = (docs / page.file.src_path).parent

    def without_outside(found: re.Match[str]) -> str:
        target = (folder / found["path"]).resolve()
        if target.is_relative_to(docs):
            return found.group()
        return f"{found['text']} (`{target.relative_to(docs.parent)}`)"

    return _LINK.sub(without_outside, markdown)
