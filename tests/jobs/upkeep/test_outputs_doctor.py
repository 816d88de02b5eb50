"""``doctor``: what it looks at, what it says of each, and that it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import specbatch
from specbatch.jobs.cli import app as cli
from specbatch.jobs.upkeep import doctor
from specbatch.jobs.upkeep.doctor import Finding, examine, is_fit, render_findings
from specbatch.schemas.errors import ErrorCode
from specbatch.storage.probe import ProbeCheck, ProbeReport
from specbatch.storage.store import Store

ASSETS = Path(specbatch.__file__).parent / "assets" / "code-pair"


def found(findings: tuple[Finding, ...], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def test_a_fit_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outputs").mkdir()
    assert cli.run(["doctor", str(tmp_path / "outputs"), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    names = ["python", "torch", "ray", "cores", "memory", "cuda", "store: create-once", "target", "draft"]
    assert [name for name in names if f"  {name}" not in text] == []
    assert "fail" not in text
    assert text.splitlines()[-1].startswith("fit for a job")
    assert [path.name for path in tmp_path.rglob("*")] == ["outputs"], "a probe leaves nothing behind"


def test_a_place_that_does_not_exist_yet_does_not_exist_afterwards(tmp_path: Path) -> None:
    assert is_fit(examine(str(tmp_path / "new")))
    assert list(tmp_path.iterdir()) == []


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["fit"]) == ("specbatch/doctor/1", True)
    assert {"name": "store", "level": "ok"}.items() <= next(
        entry for entry in document["findings"] if entry["name"] == "store"
    ).items()


def test_a_store_that_lies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 46."""

    def lie(store: Store) -> ProbeReport:
        check = ProbeCheck("create-once under concurrency", "failed", "3 of 8 creators won", ErrorCode.STORE_NOT_ATOMIC)
        return ProbeReport((check,))

    monkeypatch.setattr(doctor, "probe_store", lie)
    findings = examine(str(tmp_path))
    assert not is_fit(findings)
    assert found(findings, "store: create-once under concurrency").level == "fail"
    assert "STORE_NOT_ATOMIC" in found(findings, "store").detail
    assert "--single-writer" in found(findings, "store").detail


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "JOB_OUTPUT_UNWRITABLE" in found(examine(str(tmp_path / "file/below")), "store").detail
    assert "JOB_URI_INVALID" in found(examine("gopher://x/y"), "store").detail


def test_models(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(ASSETS / "draft-taught", foreign)
    tokenizer = json.loads((foreign / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (foreign / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "JOB_VOCAB_MISMATCH" in found(examine(draft=str(foreign)), "models").detail
    assert "JOB_MODEL_MISSING" in found(examine(target=str(tmp_path / "nothing")), "models").detail
    assert found(examine(draft="none"), "draft").detail.startswith("none")
    backwards = examine(target="code-pair/draft-taught", draft="code-pair/target")
    assert found(backwards, "draft").level == "warn"
    assert is_fit(backwards)


def test_a_machine_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "2.0.1" if name == "ray" else real(name))
    monkeypatch.setattr(doctor, "host_available_bytes", lambda: 10_000_000)
    monkeypatch.setattr(doctor, "count_cuda_devices", lambda: 0)
    monkeypatch.setattr(doctor, "describe_hardware", lambda: {"cpu": "x", "gpus": ["H100"]})
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    findings = examine(device="auto")
    assert found(findings, "ray").level == "fail"
    assert "2.0.1; specbatch needs one from 2." in found(findings, "ray").detail
    assert found(findings, "memory").level == "warn"
    assert found(findings, "cuda").level == "warn"
    assert found(findings, "temporary folder").level == "fail"
    assert "JOB_MEMORY" in found(findings, "models").detail
    assert found(examine(device="cuda"), "cuda").level == "fail"
    text = render_findings(findings, "human")
    assert "not fit: 3 checks failed" in text
    assert "-> " in text


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler here")
def test_a_gpu_whose_kernels_cannot_be_built_is_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(doctor, "count_cuda_devices", lambda: 1)
    monkeypatch.setattr(doctor, "cuda_free_bytes", lambda: None)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    assert found(examine(), "kernels").level == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = found(examine(), "kernels")
    assert (finding.level, finding.advice) == ("fail", "specbatch explain JOB_VERSION_SKEW")
    assert "a C compiler, and there is none" in finding.detail
    assert not any(finding.name == "kernels" for finding in examine(device="cpu"))


def test_packages_that_are_missing_and_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", missing)
    assert all(finding.level == "ok" for finding in examine() if finding.name in ("torch", "ray"))
    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    assert {finding.level for finding in doctor._packages()} == {"fail"}
