"""``specbatch doctor``: is this machine, a store and a pair of models fit for a job? Loads no model, starts nothing."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from specbatch.jobs.display import formatting as fmt
from specbatch.jobs.planning.machine import count_cores, count_cuda_devices, cuda_free_bytes, describe_hardware
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.schemas.spec import GenerationSpec
from specbatch.specdec.models.folders import check_pair, context_length, default_draft, locate_model, resolve_dtype
from specbatch.specdec.models.host import host_available_bytes
from specbatch.specdec.models.memory import EXPECTED_PROMPT_TOKENS, plan_memory
from specbatch.storage.probe import check_store, note_pass, probe_store
from specbatch.storage.store import Store, open_store

DOCTOR_FORMAT = "specbatch/doctor/1"
MIN_FREE_DISK_BYTES = 200_000_000
LOW_FREE_DISK_BYTES = 2_000_000_000
LOW_FREE_MEMORY_BYTES = 1_500_000_000
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "ray", "pyarrow", "boto3", "pydantic")
_MEMORY_FRACTION = 0.9

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        advice: what to do; empty where nothing is to be done.
    """

    name: str
    level: Level
    detail: str
    advice: str = ""


def examine(
    uri: str | None = None,
    *,
    target: str = "code-pair/target",
    draft: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    single_writer: bool = False,
) -> tuple[Finding, ...]:
    """Look at everything, in the order in which a job would need it.

    Args:
        uri: an output, or any folder or prefix above one; no store is probed if None.
        target: the model whose fit is checked, with its draft.
        draft: None for the target's bundled one, if there is one; ``none`` for no draft.
        single_writer: as in ``submit``: a store without conditional writes is allowed.
    """
    return (
        _python(),
        *_packages(),
        _cores(),
        _memory(),
        _cuda(device),
        *_kernels(device),
        _disk("temporary folder", Path(tempfile.gettempdir()), "set TMPDIR to another"),
        *_store(uri, single_writer=single_writer),
        *_models(target, draft, device),
    )


def is_fit(findings: tuple[Finding, ...]) -> bool:
    """Whether nothing failed; warnings are for people."""
    return all(finding.level != "fail" for finding in findings)


def render_findings(findings: tuple[Finding, ...], format: str) -> str:
    """The findings as text for people (``human``) or as one JSON object (``json``); ends with a line break.

    Raises:
        SpecbatchError: ``JOB_CONFIG``, no such format.
    """
    if format == "json":
        document = {
            "format": DOCTOR_FORMAT,
            "fit": is_fit(findings),
            "findings": [asdict(finding) for finding in findings],
        }
        return json.dumps(document, indent=2) + "\n"
    if format != "human":
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"format is {format!r}; it must be one of human, json")
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.name:<{width}}  {fmt.clean(finding.detail)}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {fmt.clean(finding.advice)}")
    levels = [finding.level for finding in findings]
    if "fail" in levels:
        lines.append(f"not fit: {fmt.plural(levels.count('fail'), 'check')} failed")
    else:
        warnings = f", with {fmt.plural(levels.count('warn'), 'warning')}" if "warn" in levels else ""
        lines.append(f"fit for a job{warnings}")
    return "\n".join(lines) + "\n"


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    """The libraries against the bounds that this package declares for itself."""
    bounds = _declared_bounds()
    for name in _PACKAGES:
        low, high = bounds.get(name, ((), ()))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "it is not installed", "install specbatch again with its dependencies")
            continue
        found = _numbers(version)
        wanted = " and ".join(
            f"{word} {'.'.join(map(str, bound))}" for word, bound in (("from", low), ("below", high)) if bound
        )
        if (low and found < low) or (high and found >= high):
            yield Finding(name, "fail", f"{version}; specbatch needs one {wanted}", f"pip install '{name}' {wanted}")
        else:
            yield Finding(name, "ok", version)


def _declared_bounds() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    try:
        declared = importlib.metadata.requires("specbatch") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return {}
    bounds = {}
    for line in declared:
        requirement, _, marker = line.partition(";")
        if "extra" in marker:
            continue
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        low, high = re.search(r">=\s*([\d.]+)", requirement), re.search(r"<\s*(\d[\d.]*)", requirement)
        if name is not None:
            bounds[name.group().lower()] = (
                _numbers(low.group(1)) if low else (),
                _numbers(high.group(1)) if high else (),
            )
    return bounds


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in release.group().split(".")) if release else ()


def _cores() -> Finding:
    return Finding("cores", "ok", f"{fmt.plural(count_cores(), 'core')} ({describe_hardware()['cpu']})")


def _memory() -> Finding:
    free_bytes = host_available_bytes()
    detail = f"{fmt.size(free_bytes)} free"
    if free_bytes < LOW_FREE_MEMORY_BYTES:
        advice = "a worker needs about 1 GB before any model is loaded; close other programs or use a larger machine"
        return Finding("memory", "warn", detail, advice)
    return Finding("memory", "ok", detail)


def _cuda(device: str) -> Finding:
    num_devices = count_cuda_devices()
    names = describe_hardware()["gpus"]
    if num_devices:
        free_bytes = cuda_free_bytes()
        free = f", {fmt.size(free_bytes)} free on the fullest" if free_bytes is not None else ""
        return Finding("cuda", "ok", f"{fmt.plural(num_devices, 'device')} ({', '.join(names) or 'unnamed'}{free})")
    if names:
        advice = "install a CUDA build of torch, and look at CUDA_VISIBLE_DEVICES"
        return Finding("cuda", "fail" if device == "cuda" else "warn", f"{', '.join(names)} cannot be used", advice)
    if device == "cuda":
        return Finding("cuda", "fail", "there is no CUDA device", "use --device cpu, or another machine")
    return Finding("cuda", "ok", "none; jobs run on the CPU")


def _kernels(device: str) -> Iterator[Finding]:
    """Whether kernels can be built here; they are where there is a GPU."""
    if device == "cpu" or not count_cuda_devices():
        return
    from specbatch.specdec.kernels.compiler import check_compiler  # which loads torch

    try:
        check_compiler("cuda")
        yield Finding("kernels", "ok", "Triton can build them")
    except SpecbatchError as error:
        yield Finding("kernels", "fail", error.message, f"specbatch explain {error.code.value}")


def _disk(name: str, folder: Path, remedy: str) -> Finding:
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{fmt.size(free_bytes)} free in {folder}"
    if free_bytes < MIN_FREE_DISK_BYTES:
        return Finding(name, "fail", detail, f"free some space, or {remedy}")
    if free_bytes < LOW_FREE_DISK_BYTES:
        return Finding(
            name, "warn", detail, f"a part may take 64 MB and its spool file as much: free some, or {remedy}"
        )
    return Finding(name, "ok", detail)


def _store(uri: str | None, *, single_writer: bool) -> Iterator[Finding]:
    if uri is None:
        yield Finding("store", "ok", "none was named; give an output or a prefix to have it probed")
        return
    try:
        with _probed_place(uri, single_writer=single_writer) as store:
            if store.is_local:
                yield _disk("output folder", Path(store.uri), "choose another output")
            report = probe_store(store)
            for check in report.checks:
                level: Level = {"ok": "ok", "warning": "warn", "failed": "fail"}[check.level]  # type: ignore[assignment]
                if level == "fail" and single_writer and check.code is ErrorCode.STORE_NOT_ATOMIC:
                    level = "warn"
                yield Finding(f"store: {check.name}", level, check.detail)
            check_store(store, report)
            note_pass(store, report)
    except SpecbatchError as error:
        yield Finding("store", "fail", f"{error.code.value}: {error.message}", f"specbatch explain {error.code.value}")


@contextmanager
def _probed_place(uri: str, *, single_writer: bool) -> Iterator[Store]:
    """A store of its own below a prefix: a probe in a folder of datasets would make that look like an output."""
    above = open_store(uri, single_writer=single_writer)
    store = open_store(f"{above.uri.rstrip('/')}/specbatch-doctor-{secrets.token_hex(8)}", single_writer=single_writer)
    was_there = not above.is_local or Path(above.uri).exists()
    try:
        yield store
    finally:
        if store.is_local:
            shutil.rmtree(store.uri, ignore_errors=True)
            if not was_there:
                with suppress(OSError):
                    Path(above.uri).rmdir()


def _models(target_name: str, draft_name: str | None, device: str) -> Iterator[Finding]:
    name = draft_name if draft_name is not None else default_draft(target_name)
    try:
        target = locate_model(target_name)
        yield Finding("target", "ok", f"{target.name}, {fmt.parameters(target.parameters)} parameters")
        draft = None if name in (None, "none") else locate_model(str(name))
        if draft is None:
            yield Finding("draft", "ok", "none; drafts come from the text itself")
        else:
            check_pair(target, draft)
            detail = f"{draft.name}, {fmt.parameters(draft.parameters)} parameters, the same tokens as the target"
            if draft.parameters >= target.parameters:
                advice = "a draft helps only where it is much smaller than its target"
                yield Finding("draft", "warn", detail, advice)
            else:
                yield Finding("draft", "ok", detail)
        on = "cuda" if device != "cpu" and count_cuda_devices() else "cpu"
        free_bytes = cuda_free_bytes() if on == "cuda" else host_available_bytes()
        if free_bytes is None:
            return
        plan = plan_memory(
            target,
            draft,
            dtype=resolve_dtype("auto", on, target),
            device=on,
            available_bytes=free_bytes,
            memory_fraction=_MEMORY_FRACTION,
            batch_size="auto",
            speculation="auto",
            row_tokens=min(EXPECTED_PROMPT_TOKENS + GenerationSpec().max_new_tokens, context_length(target)),
        )
    except SpecbatchError as error:
        yield Finding("models", "fail", f"{error.code.value}: {error.message}", f"specbatch explain {error.code.value}")
        return
    yield Finding(
        "fit in memory", "ok" if plan.note is None else "warn", plan.note or f"{plan.batch_size} rows at once"
    )
