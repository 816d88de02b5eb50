"""The audit claims no more than the advisory service said, and the lock files are read whole."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"infra_{name}", ROOT / "infra" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


audit = load_script("audit")
make_sbom = load_script("make_sbom")
SOUND = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("entries", "code", "said"),
    [
        ([SOUND], 0, "looked up 1 of 1 packages: 0 known"),
        ([SOUND, BAD], 1, "b 2: CVE-1, fixed in 3"),
        ([SOUND, SKIPPED], 3, "said nothing about 1 packages (c)"),
        ([BAD, SKIPPED], 1, "said nothing about 1 packages (c)"),
        ([], 3, "looked up 0 of 0"),
    ],
)
def test_what_was_not_looked_up_is_no_success(entries: list[dict[str, Any]], code: int, said: str) -> None:
    verdict = audit.judge(json.dumps({"dependencies": entries}))
    assert verdict.code == code
    assert any(said in line for line in verdict.lines)


@pytest.mark.parametrize("output", ["", "Traceback", "[]", "{}", '{"dependencies": 1}'])
def test_a_service_that_cannot_be_reached_is_no_success(output: str) -> None:
    assert audit.judge(output).code == 3


def test_every_entry_of_the_lock_is_asked_for_and_listed() -> None:
    text = (ROOT / "requirements.lock").read_text()
    num_entries = sum("==" in line and not line.startswith((" ", "#")) for line in text.splitlines())
    assert num_entries > 100
    assert len(audit.pins(text)) == num_entries
    assert "colorama==0.4.6 ; os_name == 'nt' or sys_platform == 'win32'" in audit.pins(text)
    entries = make_sbom.locked(text)
    assert len(entries) == num_entries
    assert all(entry.hashes for entry in entries)


def test_licences_come_from_the_installed_packages() -> None:
    assert make_sbom.licence_of("ray") == "Apache 2.0"
    assert make_sbom.licence_of("no-such-package") is None
    entries = make_sbom.locked((ROOT / "infra" / "docker" / "run.lock").read_text())
    unknown = {entry.name for entry in entries if make_sbom.licence_of(entry.name) is None}
    assert unknown <= {"colorama", "httpx2-jsfetch"}, "only what this system does not install"
