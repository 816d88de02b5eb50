"""What may be imported where: the fences that import-linter cannot see."""

from __future__ import annotations

import subprocess
import sys

LIBRARY = """
import sys
for name in ("ray", "boto3", "pyarrow", "typer", "rich", "pydantic"):
    sys.modules[name] = None  # an import of it now fails, as where it is not installed
from specbatch.specdec import Engine, SamplingParams
engine = Engine.from_pretrained("code-pair/target", draft="code-pair/draft-taught", max_batch_size=2, speculation=3)
params = SamplingParams(max_new_tokens=8, temperature=0.7, top_p=0.95, seed=3)
outputs = engine.generate(["def f(x):", [17, 4, 99]], params)
assert [len(output.token_ids) for output in outputs] == [8, 8], outputs
print("decoded")
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_engine_is_a_library_without_ray_storage_and_command_line() -> None:
    """Nor pydantic: ``benchmarks`` measure it on machines that have torch, transformers and triton alone."""
    assert "decoded" in run(LIBRARY)


def test_planning_and_validation_of_models_load_no_torch() -> None:
    code = """
import sys
from specbatch.specdec import SamplingParams
from specbatch.specdec.models import folders
folders.check_pair(folders.locate_model("code-pair/target"), folders.locate_model("code-pair/draft-taught"))
from specbatch.specdec.tokenizer import Tokenizer
Tokenizer.from_folder(folders.locate_model("code-pair/target").path).encode("def f(x):")
print(sorted({"torch", "transformers", "ray"} & set(sys.modules)))
"""
    assert run(code).strip() == "[]"


def test_ray_data_is_never_imported() -> None:
    """Reading a hostile Parquet file in a process with ray.data was code execution (CVE-2026-41486)."""
    code = """
import sys
import specbatch.jobs.cli.app, specbatch.jobs.running.job, specbatch.workers.worker, specbatch.workers.actor
specbatch.workers.actor.actor_class()
print([name for name in sys.modules if name.startswith("ray.data")])
"""
    assert run(code).strip() == "[]"
