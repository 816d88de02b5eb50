"""The wheel, built from the sdist, does the main job from a folder that holds packages with our folders' names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_ASSET_BYTES = 24 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without --wheel or --sdist, build makes the sdist and then the wheel from it.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_once_with_its_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    top_level = {name.split("/")[0] for name in names}
    assert len(top_level) == 2, f"specbatch and its metadata: {top_level}"
    assert "specbatch/py.typed" in names
    for model in ("target", "draft-taught", "draft-stranger"):
        assert f"specbatch/assets/code-pair/{model}/model.safetensors" in names
    assert sum(entry.file_size for entry in entries if "/assets/" in entry.filename) < MAX_ASSET_BYTES
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.ray
def test_the_installed_wheel_runs_the_main_job_among_packages_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, timeout=120)
    for name in ("jobs", "workers", "specdec", "schemas"):
        (here / name).mkdir(parents=True)
        (here / name / "__init__.py").write_text("raise RuntimeError('a package of the user was imported')\n")
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import specbatch; print(specbatch.__file__)"]
    assert subprocess.check_output(where, cwd=here, env=environment, text=True).startswith(str(site))
    command = [sys.executable, "-m", "specbatch", "submit", str(ROOT / "examples" / "prompts.parquet"), "--limit", "8"]
    command += ["--max-new-tokens", "8", "--output", str(here / "out"), "--format", "quiet"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert (here / "out" / "_SUCCESS").is_file()
