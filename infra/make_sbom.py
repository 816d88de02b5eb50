"""Write the list of everything that is locked as a CycloneDX SBOM: versions, hashes, licences, and what each is for.

    python infra/make_sbom.py --torch 2.13.0 --output dist/sbom.cdx.json

Versions and hashes come from the lock files, licences from the installed packages. What an image runs has the scope
``required``, what only development needs has ``excluded``. Needs cyclonedx-python-lib, which `make audit` installs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_ENTRY = re.compile(r"(?m)^([A-Za-z0-9._-]+)==([^ \\\n]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_LONGEST_LICENCE = 80
"""The licence field of old packages may hold the whole text."""


@dataclass(frozen=True, slots=True)
class Locked:
    """One entry of a lock file."""

    name: str
    version: str
    hashes: tuple[str, ...]


def locked(text: str) -> list[Locked]:
    """The entries of a lock file."""
    return [
        Locked(*_ENTRY.findall(entry)[0], tuple(_HASH.findall(entry)))
        for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", text)
        if _ENTRY.match(entry)
    ]


def licence_of(name: str) -> str | None:
    """The licence that an installed package names, as an expression where it has one; None where it names none."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    expression: str | None = metadata.get("License-Expression")
    if expression:
        return expression
    named = (metadata.get("License") or "").strip()
    if named and named != "UNKNOWN" and len(named) <= _LONGEST_LICENCE and "\n" not in named:
        return str(named)
    lines = (line for line in metadata.get_all("Classifier") or () if line.startswith("License ::"))
    return " OR ".join(line.rpartition(" :: ")[2] for line in lines) or None


def bill(packages: list[Locked], needed: set[str]) -> Any:
    """The SBOM of some packages; ``needed`` are the names of those that an image runs."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    licences = LicenseFactory()

    def components() -> Iterator[Component]:
        for package in packages:
            licence, has_one_file = licence_of(package.name), len(package.hashes) == 1
            url = PackageURL("pypi", None, package.name.lower(), package.version)
            yield Component(
                type=ComponentType.LIBRARY,
                name=package.name,
                version=package.version,
                purl=url,
                bom_ref=str(url),
                scope=ComponentScope.REQUIRED if package.name in needed else ComponentScope.EXCLUDED,
                licenses=[licences.make_from_string(licence)] if licence else [],
                # A lock has the hashes of all files of a version; those of CycloneDX are of one file.
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.hashes[0])] if has_one_file else [],
                properties=[Property(name="specbatch:sha256", value=value) for value in package.hashes],
            )

    version = importlib.metadata.version("specbatch")
    bom = Bom(components=components())
    bom.metadata.component = Component(
        type=ComponentType.APPLICATION, name="specbatch", version=version, bom_ref=f"pkg:pypi/specbatch@{version}",
        licenses=[licences.make_from_string("Apache-2.0")],
    )  # fmt: skip
    bom.register_dependency(bom.metadata.component, [one for one in bom.components if one.name in needed])
    text = "\n".join(f"{package.name}=={package.version}" for package in packages)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"specbatch/{version}/{text}")
    return bom


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", required=True, help="pinned torch version, which is in no lock file")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "sbom.cdx.json")
    options = parser.parse_args()
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    everything = [*locked((ROOT / "requirements.lock").read_text()), Locked("torch", options.torch, ())]
    needed = {package.name for package in locked((ROOT / "infra" / "docker" / "run.lock").read_text())} | {"torch"}
    text = make_outputter(bill(everything, needed), OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        sys.stderr.write(f"the SBOM is not valid: {problem}\n")
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n", encoding="utf-8")
    without = sorted(package.name for package in everything if licence_of(package.name) is None)
    sys.stdout.write(f"{options.output}: {len(everything)} packages, {len(needed)} of them in images\n")
    if without:
        sys.stdout.write(f"no licence known of {', '.join(without)}: not installed on this system, or they name none\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
