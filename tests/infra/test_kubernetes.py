"""The objects of ``infra/kubernetes``: valid, hardened, the same cluster thrice, reachable only where it must be."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kustomize
import pytest
import yaml
from kubernetes import CRD_VARIABLE, NO_CRDS, crd_folder, pods, validate

from specbatch.jobs.spec.settings import read_job_file, resolve

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kubernetes"
LABEL = ("app.kubernetes.io/part-of", "specbatch")
needs_crds = pytest.mark.skipif(crd_folder() is None, reason=NO_CRDS)
RAY = ["raycluster", "rayjob", "raycronjob", "example"]
ALL = [*RAY, "cronjob"]


@cache
def made(name: str) -> list[dict[str, Any]]:
    return kustomize.render(FOLDER / name)


def rendered(name: str) -> list[dict[str, Any]]:
    return copy.deepcopy(made(name))


def one(name: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in rendered(name) if document["kind"] == kind]
    return found


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_crds) for name in RAY] + ["cronjob"])
def test_objects_are_valid_and_have_no_unknown_field(name: str) -> None:
    assert validate(rendered(name)) == []


def test_every_file_is_part_of_a_folder_that_is_rendered() -> None:
    named = {FOLDER / folder / "kustomization.yaml" for folder in [*ALL, "base"]}
    for path in list(named):
        wanted = yaml.safe_load(path.read_text())
        files = [*wanted["resources"], *(patch["path"] for patch in wanted.get("patches", ()) if "path" in patch)]
        named |= {path.parent / name for name in files}
    assert set(FOLDER.rglob("*.yaml")) == {path for path in named if path.is_file()}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("name", ALL)
def test_kubectl_renders_the_same(name: str, tmp_path: Path) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / name)]
    done = subprocess.run(command, env={"PATH": _path(), "HOME": str(tmp_path)}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    by_name = {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(done.stdout)}
    assert by_name == {(found["kind"], found["metadata"]["name"]): found for found in rendered(name)}


def _path() -> str:
    found = shutil.which("kubectl")
    assert found is not None
    return f"{Path(found).parent}:/usr/bin:/bin"


def misspell(document: dict[str, Any], path: str, new: str) -> dict[str, Any]:
    """The object with another name for one field; ``path`` is like ``spec.schedule`` or ``spec.x.0.y``."""
    document = copy.deepcopy(document)
    place: Any = document
    *parents, last = path.split(".")
    for step in parents:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[new] = place.pop(last)
    return document


CLUSTER = "spec.rayClusterSpec"
POD = f"{CLUSTER}.workerGroupSpecs.0.template.spec"


@pytest.mark.parametrize(
    ("folder", "kind", "path", "new"),
    [
        ("cronjob", "CronJob", "spec.concurrencyPolicy", "concurencyPolicy"),
        ("cronjob", "CronJob", "spec.jobTemplate.spec.template.spec.securityContext", "securitycontext"),
        ("cronjob", "NetworkPolicy", "spec.podSelector.matchLabels", "matchLabel"),
        ("cronjob", "PodMonitor", "spec.podMetricsEndpoints.0.honorLabels", "honourLabels"),
        pytest.param("rayjob", "RayJob", "spec.backoffLimit", "backOffLimit", marks=needs_crds),
        pytest.param("rayjob", "RayJob", f"{CLUSTER}.rayVersion", "rayversion", marks=needs_crds),
        pytest.param("rayjob", "RayJob", f"{POD}.automountServiceAccountToken", "automountToken", marks=needs_crds),
        pytest.param("rayjob", "RayJob", f"{POD}.containers.0.image", "images", marks=needs_crds),
        pytest.param("raycronjob", "RayCronJob", "spec.timeZone", "timezone", marks=needs_crds),
        pytest.param("raycluster", "RayCluster", "spec.workerGroupSpecs.0.groupName", "name", marks=needs_crds),
    ],
)
def test_a_misspelt_field_is_found(folder: str, kind: str, path: str, new: str) -> None:
    document = next(found for found in rendered(folder) if found["kind"] == kind)
    assert validate([document]) == []
    problems = validate([misspell(document, path, new)])
    assert any(new in problem or path.rpartition(".")[2] in problem for problem in problems), problems


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.backoffLimit", "1"),
        (f"{POD}.containers.0.env.0.value", True),
    ],
)
def test_a_value_of_another_type_is_found(path: str, value: Any) -> None:
    document = copy.deepcopy(one("rayjob", "RayJob"))
    place: Any = document
    *parents, last = path.split(".")
    for step in parents:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    assert validate([document])


def test_what_is_no_object_and_what_nobody_knows_is_found() -> None:
    assert validate(["text"]) == ["str: is no object of Kubernetes: apiVersion and kind are missing"]
    nothing = {"apiVersion": "v1", "kind": "Nothing", "metadata": {"name": "a"}}
    assert validate([nothing]) == ["Nothing/a: there is no Nothing in v1"]


def test_the_crds_can_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CRD_VARIABLE, str(tmp_path))
    assert crd_folder() is None
    (tmp_path / "ray.io_rayjobs.yaml").touch()
    assert crd_folder() == tmp_path


def test_the_cluster_is_the_same_in_all_three_places() -> None:
    cluster = one("raycluster", "RayCluster")["spec"]
    assert one("rayjob", "RayJob")["spec"]["rayClusterSpec"] == cluster
    nightly = one("raycronjob", "RayCronJob")["spec"]["jobTemplate"]
    assert nightly["rayClusterSpec"] == cluster
    job = one("rayjob", "RayJob")["spec"]
    assert {**nightly, "entrypoint": None} == {**job, "entrypoint": None}


def test_the_cluster_runs_the_ray_of_the_lock() -> None:
    lock = (ROOT / "infra" / "docker" / "run.lock").read_text()
    version = one("raycluster", "RayCluster")["spec"]["rayVersion"]
    assert f"\nray=={version} " in lock


@pytest.mark.parametrize("name", ALL)
def test_every_pod_is_restricted(name: str) -> None:
    found = [pod for document in rendered(name) for pod in pods(document)]
    assert len(found) == {"raycluster": 2, "cronjob": 1}.get(name, 3)
    for where, pod in found:
        spec = pod["spec"]
        assert pod["metadata"]["labels"][LABEL[0]] == LABEL[1], f"{where}: no network policy holds for it"
        assert spec["automountServiceAccountToken"] is False, where
        assert not any(spec.get(field) for field in ("hostNetwork", "hostPID", "hostIPC")), where
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["runAsUser"] >= 10000, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert not any("hostPath" in volume for volume in volumes.values()), where
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where
            assert {"requests", "limits"} <= set(container["resources"]), where
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert mounts["/tmp"]["emptyDir"]["medium"] == "Memory", where
            if container["name"] != "ray-job-submitter":
                assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory", where
                assert "/cache" in mounts, where
            for volume in volumes.values():
                assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""}), f"{where}: scratch without a bound"


@pytest.mark.parametrize("name", RAY)
def test_ray_asks_for_a_token_that_comes_from_a_secret(name: str) -> None:
    for document in rendered(name):
        for where, pod in pods(document):
            for container in pod["spec"]["containers"]:
                environment = {entry["name"]: entry for entry in container["env"]}
                assert environment["RAY_AUTH_MODE"]["value"] == "token", where
                assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "specbatch-ray", where


@pytest.mark.parametrize("name", RAY)
def test_nodes_are_asked_by_something_that_the_image_has(name: str) -> None:
    """The probes that KubeRay would add want wget; the image has Python."""
    for document in rendered(name):
        for where, pod in pods(document):
            for container in pod["spec"]["containers"]:
                if container["name"] != "ray-job-submitter":
                    for probe in ("livenessProbe", "readinessProbe"):
                        program, option, text = container[probe]["exec"]["command"]
                        assert (program, option) == ("/opt/specbatch/bin/python", "-c"), where
                        compile(text, where, "exec")


@pytest.mark.parametrize("name", ALL)
def test_no_secret_is_in_a_file(name: str) -> None:
    documents = rendered(name)
    assert not [document for document in documents if document["kind"] == "Secret"]
    for container in kustomize.containers(documents):
        for entry in container["env"]:
            is_secret = any(word in entry["name"] for word in ("TOKEN", "SECRET", "PASSWORD", "KEY"))
            assert not is_secret or "value" not in entry, entry


def test_the_coordinator_and_the_workers_are_different_accounts() -> None:
    cluster = one("raycluster", "RayCluster")["spec"]
    accounts = {
        document["metadata"]["name"] for document in rendered("raycluster") if document["kind"] == "ServiceAccount"
    }
    head = cluster["headGroupSpec"]["template"]["spec"]["serviceAccountName"]
    workers = cluster["workerGroupSpecs"][0]["template"]["spec"]["serviceAccountName"]
    assert {head, workers} == accounts
    assert head != workers
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "a worker on the head would have its account"


@pytest.mark.parametrize("name", ["rayjob", "example"])
def test_the_job_in_the_config_map_is_one(name: str, tmp_path: Path) -> None:
    text = one(name, "ConfigMap")["data"]["job.yaml"]
    (tmp_path / "job.yaml").write_text(text)
    spec = resolve([read_job_file(tmp_path / "job.yaml")]).spec
    assert spec.output is not None
    assert spec.output.startswith("s3://")
    assert spec.execution.row_errors_ok


def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    spec = one("cronjob", "CronJob")["spec"]["jobTemplate"]["spec"]
    (rule,) = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 3, 4, 7]
    assert spec["template"]["spec"]["containers"][0]["name"] == rule["onExitCodes"]["containerName"]
