"""Prints the logit bias that lets a model say nothing but the given labels: ID:BIAS for the first token of each.

python make_labels.py LABEL ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Tokenizer

import specbatch

BIAS = 100


def main() -> None:
    """Print one ID:BIAS for each label, ready for --logit-bias."""
    bundled = Path(specbatch.__file__).parent / "assets" / "code-pair" / "target"
    tokenizer = Tokenizer.from_file(str(bundled / "tokenizer.json"))
    first = {label: tokenizer.encode(label, add_special_tokens=False).ids[0] for label in sys.argv[1:]}
    if len(set(first.values())) < len(first):
        sys.exit(f"two labels begin with the same token: {first}")
    print(",".join(f"{token}:{BIAS}" for token in first.values()))


if __name__ == "__main__":
    main()
