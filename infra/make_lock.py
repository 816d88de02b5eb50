"""Write ``requirements.lock``: every dependency with its hashes, torch left out.

torch is pinned by version in the Makefile instead, and so are the packages that only its GPU builds bring: CPU and CUDA
builds of one version have different hashes.

    python infra/make_lock.py --torch 2.13.0
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BROUGHT_BY_TORCH = re.compile(r"^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+|setuptools)==")
_HEADER = "# Written by `make lock`. torch is not here: see infra/make_lock.py.\n"


def without_torch(text: str) -> str:
    """Drop the entries of torch and its GPU packages; an entry is a line with its indented hash lines."""
    entries = re.split(r"(?m)^(?=\S)", text)
    return "".join(entry for entry in entries if not _BROUGHT_BY_TORCH.match(entry))


def main() -> int:
    """Resolve with uv and write the lock."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", required=True, help="pinned torch version")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(f"torch=={options.torch}\n")
        command = [
            sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), "--extra", "dev", "--universal",
            "--generate-hashes", "--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url",
            "--constraints", str(constraints), "--quiet",
        ]  # fmt: skip
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    (ROOT / "requirements.lock").write_text(_HEADER + without_torch(result.stdout))
    return 0


if __name__ == "__main__":
    sys.exit(main())
