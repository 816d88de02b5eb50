"""Write the lock files: every dependency with its hashes, torch left out.

``requirements.lock`` is for development and holds everything. ``infra/docker/run.lock`` and ``build.lock`` are the
parts of it that a container image runs and is built with. torch is pinned by version in the Makefile instead, and
so are the packages that only its GPU builds bring: CPU and CUDA builds of one version have different hashes.

    python infra/make_lock.py --torch 2.13.0
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
_BROUGHT_BY_TORCH = re.compile(r"^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+|setuptools)==")
_HEADER = "# Written by `make lock`. torch is not here: see infra/make_lock.py.\n"


def without_torch(text: str) -> str:
    """Drop the entries of torch and its GPU packages; an entry is a line with its indented hash lines."""
    entries = re.split(r"(?m)^(?=\S)", text)
    return "".join(entry for entry in entries if not _BROUGHT_BY_TORCH.match(entry))


def resolve(source: Path, constraints: Path, *options: str) -> str:
    """Resolve the requirements of a file with uv."""
    command = [
        sys.executable, "-m", "uv", "pip", "compile", str(source), "--universal", "--generate-hashes",
        "--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url",
        "--constraints", str(constraints), "--quiet", *options,
    ]  # fmt: skip
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _HEADER + without_torch(text)


def main() -> int:
    """Resolve with uv and write the locks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", required=True, help="pinned torch version")
    parser.add_argument("--keep", action="store_true", help="add and drop, but upgrade nothing that is locked already")
    options = parser.parse_args()
    project = ROOT / "pyproject.toml"
    with tempfile.TemporaryDirectory() as folder:
        constraints, build = Path(folder) / "constraints.txt", Path(folder) / "build.in"
        pinned = f"torch=={options.torch}\n"
        constraints.write_text(pinned + LOCK.read_text() if options.keep else pinned)
        LOCK.write_text(resolve(project, constraints, "--extra", "dev"))
        # Versions of the images are those that the tests ran with.
        constraints.write_text(pinned + LOCK.read_text())
        build.write_text("\n".join(tomllib.loads(project.read_text())["build-system"]["requires"]))
        (ROOT / "infra" / "docker" / "run.lock").write_text(resolve(project, constraints))
        (ROOT / "infra" / "docker" / "build.lock").write_text(resolve(build, constraints))
    return 0


if __name__ == "__main__":
    sys.exit(main())
