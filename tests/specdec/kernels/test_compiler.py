"""What Triton needs to build its kernels is looked for before any model is; it is Triton itself that builds here."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.specdec.kernels.compiler import check_compiler
from specbatch.specdec.loading import load_pair

build = pytest.importorskip("triton.runtime.build")
HAS_HEADERS = Path(sysconfig.get_paths()["include"], "Python.h").exists()
needs_compiler = pytest.mark.skipif(
    not ((shutil.which("gcc") or shutil.which("clang")) and HAS_HEADERS),
    reason="no C compiler with Python's headers here",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, so that everything is built, by the compiler that is found now."""
    forget = getattr(getattr(build, "_find_compiler", None), "cache_clear", lambda: None)
    forget()
    folder = tmp_path / "cache"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.delenv("CC", raising=False)
    yield folder
    forget()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def compile_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the compiler's place; its last arguments are those of a compiler."""

    def put(script: str) -> None:
        compiler = tmp_path / "compiler"
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))

    return put


def refused() -> str:
    with pytest.raises(SpecbatchError) as caught:
        check_compiler("cuda")
    assert caught.value.code is ErrorCode.JOB_VERSION_SKEW
    return caught.value.message


@needs_compiler
def test_a_machine_that_can_build_is_fit_and_builds_once(cache: Path) -> None:
    check_compiler("cuda")
    (built,) = cache.rglob("*.so")
    made = built.stat().st_mtime_ns
    check_compiler("cuda")
    assert built.stat().st_mtime_ns == made


def test_without_a_compiler_the_line_says_so(monkeypatch: pytest.MonkeyPatch, no_compiler: None) -> None:
    assert "there is none (gcc or clang); install gcc" in refused()
    monkeypatch.setenv("CC", "cc-of-nobody")
    assert "CC=cc-of-nobody is none" in refused()


@needs_compiler
def test_a_compiler_is_needed_although_the_cache_has_what_is_built_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_compiler("cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is none" in refused()


def test_a_compiler_without_headers_is_told_apart(compile_by: Callable[[str], None]) -> None:
    compile_by("echo 'Python.h: No such file' >&2; exit 3")
    assert "the one here failed (exit code 3)" in refused()


def test_a_library_that_cannot_be_loaded_is_the_cache_s_fault(compile_by: Callable[[str], None]) -> None:
    """As from a mount that nothing may be run from."""
    compile_by('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"')
    assert "set TRITON_CACHE_DIR" in refused()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_told(cache: Path) -> None:
    cache.write_text("a file stands where the folder should be")
    assert "set TRITON_CACHE_DIR" in refused()


def test_a_cpu_needs_none_of_it(no_compiler: None) -> None:
    check_compiler("cpu")


def test_it_is_asked_before_a_model_is_looked_for(no_compiler: None) -> None:
    with pytest.raises(SpecbatchError) as caught:
        load_pair(
            "no/such-model", None, max_batch_size=1, speculation="auto", device="cuda", dtype="auto",
            memory_fraction=0.5, model_path="auto", num_threads=None, max_sequence_tokens=None,
        )  # fmt: skip
    assert caught.value.code is ErrorCode.JOB_VERSION_SKEW
