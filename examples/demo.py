"""The demo: the main job on real prompts, offline, with speculation that pays, in one to two minutes.

The bundled target has 5 M parameters, so its weights fit in cache and a forward costs next to nothing; there is nothing
to save. The demo therefore inflates it on the spot to the cost of an 80 M model that says the same, and runs

    specbatch submit examples/prompts.parquet --target .demo/target-80m --draft code-pair/draft-taught

    make demo
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from specbatch.specdec.inflate import inflate

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".demo"
PARAMETERS = 80_000_000
OPTIONS = ["--max-new-tokens", "32", "--batch-size", "8"]


def main() -> int:
    """Inflate, submit, and say what to look at."""
    target, output = WORK / "target-80m", WORK / "output"
    if not (target / "tokenizer_config.json").is_file():
        print(f"inflating the bundled target to {PARAMETERS // 10**6} M parameters (same function, real cost) ...")
        inflate("code-pair/target", target, PARAMETERS)
    # A finished output would only be reported again; the demo is there to show the job.
    shutil.rmtree(output, ignore_errors=True)
    command = [
        "submit",
        "examples/prompts.parquet",
        "--target",
        ".demo/target-80m",
        "--draft",
        "code-pair/draft-taught",
    ]
    command += [*OPTIONS, "--output", ".demo/output"]
    print("specbatch " + " ".join(command), flush=True)
    return subprocess.call([sys.executable, "-m", "specbatch", *command], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
