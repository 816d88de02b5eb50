"""Ask an advisory service for known vulnerabilities of everything that is locked, and never claim more than it said.

    python infra/audit.py --torch 2.13.0            # needs pip-audit, which `make audit` installs

Exit 0: every package was looked up and none has a known vulnerability. 1: some have. 3: the service was not reached, or
could say nothing about some packages; then nothing is known about them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOUND, VULNERABLE, UNKNOWN = 0, 1, 3
_PIN = re.compile(r"^([A-Za-z0-9._-]+==[^ \\]+)( ; [^\\]+)?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known after an audit.

    Attributes:
        code: the exit code.
        lines: for people.
    """

    code: int
    lines: tuple[str, ...]


def pins(lock: str) -> list[str]:
    """``name==version``, with the systems that it is for, of every entry of a lock file."""
    return [f"{pin}{marker or ''}".strip() for pin, marker in _PIN.findall(lock)]


def judge(output: str) -> Verdict:
    """What an answer of pip-audit (``--format json``) says, and what it leaves open. Pure.

    Args:
        output: its standard output; empty or no JSON where it could not ask.
    """
    try:
        entries: list[dict[str, Any]] = list(json.loads(output)["dependencies"])
    except (ValueError, KeyError, TypeError):
        return Verdict(UNKNOWN, ("the advisory service was not reached: nothing was audited",))
    vulnerable = [
        f"{entry['name']} {entry['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability.get('fix_versions') or ['no version yet'])}"
        for entry in entries
        for vulnerability in entry.get("vulns", ())
    ]
    open_ = [entry["name"] for entry in entries if "vulns" not in entry]
    num_known = len(entries) - len(open_)
    lines = [*vulnerable, f"looked up {num_known} of {len(entries)} packages: {len(vulnerable)} known vulnerabilities"]
    if open_ or not entries:
        shown = ", ".join(open_[:5]) + (", …" if len(open_) > 5 else "")
        lines.append(f"the advisory service said nothing about {len(open_)} packages ({shown}): they are not audited")
    if vulnerable:
        return Verdict(VULNERABLE, tuple(lines))
    return Verdict(UNKNOWN if open_ or not entries else SOUND, tuple(lines))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", required=True, help="pinned torch version, which is in no lock file")
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="whom to ask")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "pins.txt"
        lines = [*pins((ROOT / "requirements.lock").read_text()), f"torch=={options.torch}", ""]
        wanted.write_text("\n".join(lines))
        command = [
            sys.executable, "-m", "pip_audit", "--requirement", str(wanted), "--no-deps", "--disable-pip",
            "--format", "json", "--progress-spinner", "off", "--vulnerability-service", options.service,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdict = judge(done.stdout)
    if verdict.code == UNKNOWN and not done.stdout.strip():
        sys.stderr.write((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:300] + "\n")
    sys.stdout.write("\n".join(verdict.lines) + "\n")
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
