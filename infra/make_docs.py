"""Write the documents that are made from the code: error codes, references, JSON schemas, the list of decisions.

python infra/make_docs.py            # writes what has changed, and names it
python infra/make_docs.py --check    # writes nothing; exit 1 if something has changed
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import docs_cli
import docs_errors
import docs_metrics
import docs_python

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def decisions_page() -> str:
    """The decisions by number, with their titles."""
    lines = ["# Decisions", "", "Where there was a choice: what was chosen, and why, in a page each.", ""]
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        number, _, title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(". ")
        lines.append(f"- [{number}. {title}]({path.name})")
    return "\n".join(lines) + "\n"


def schema_files() -> dict[str, str]:
    """The JSON schemas, by file name."""
    from specbatch.jobs.cli.schema_documents import schemas

    return {
        f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas().items()
    }


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    from specbatch.jobs.cli.schema_documents import reference_page

    made = {
        DOCS / "errors.md": docs_errors.page(),
        DOCS / "reference" / "cli.md": docs_cli.page(),
        DOCS / "reference" / "metrics.md": docs_metrics.page(),
        DOCS / "reference" / "python.md": docs_python.page(ROOT),
        DOCS / "reference" / "formats.md": reference_page(),
        DOCS / "decisions" / "index.md": decisions_page(),
    }
    return made | {DOCS / "schemas" / name: text for name, text in schema_files().items()}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something has changed")
    options = parser.parse_args()
    made = pages()
    changed = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    obsolete = [path for path in (DOCS / "schemas").glob("*.json") if path not in made]
    for path in changed:
        sys.stdout.write(f"{'out of date' if options.check else 'written'}: {path.relative_to(ROOT)}\n")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
    for path in obsolete:
        sys.stdout.write(f"{'no longer made' if options.check else 'removed'}: {path.relative_to(ROOT)}\n")
        if not options.check:
            path.unlink()
    return int(options.check and bool(changed or obsolete))


if __name__ == "__main__":
    sys.exit(main())
