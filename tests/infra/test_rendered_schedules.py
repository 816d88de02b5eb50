"""What ``specbatch schedule render`` writes for Kubernetes, against the schemas of Kubernetes and KubeRay."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import crd_folder, pods, validate

from specbatch.jobs.schedules.rendered import render_schedule
from specbatch.jobs.schedules.schedule import make_schedule

SPEC = "input: {datasets: ['s3://b/{date}/']}\noutput: s3://b/out/{date}\nexecution: {device: cuda, workers: 3}\n"


def rendered(target: str, folder: Path) -> list[dict[str, Any]]:
    """All objects, those inside a ConfigMap too."""
    path = folder / "nightly.yaml"
    path.write_text(SPEC)
    schedule = make_schedule(
        path,
        name=None,
        cron="15 1 * * *",
        timezone="Europe/Berlin",
        overlap="skip",
        missed="run",
        now=datetime(2026, 11, 23, 12, tzinfo=UTC),
    )
    (file,) = render_schedule(schedule, target, job_file=path, image="registry.example/specbatch:1").files
    documents = list(yaml.safe_load_all(file.text))
    inner = [document["data"]["rayjob.json"] for document in documents if "rayjob.json" in document.get("data", {})]
    return documents + [json.loads(text) | {"metadata": {"name": "night"}} for text in inner]


@pytest.mark.parametrize(("target", "num_pods"), [("k8s-cronjob", 1), ("kuberay", 4)])
def test_rendered_objects_are_valid_and_their_pods_are_restricted(target: str, num_pods: int, tmp_path: Path) -> None:
    documents = rendered(target, tmp_path)
    if target == "kuberay" and crd_folder() is None:
        pytest.skip("no schemas of KubeRay here")
    assert validate(documents) == []
    found = [pod for document in documents for pod in pods(document)]
    assert len(found) == num_pods
    for where, pod in found:
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True, where
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
        assert {"/tmp", "/dev/shm"} <= {mount["mountPath"] for mount in container["volumeMounts"]}, where
        assert spec.get("automountServiceAccountToken") is False or spec["serviceAccountName"] == "nightly", where


def test_a_rendered_cluster_asks_for_tokens(tmp_path: Path) -> None:
    (ray_job,) = (found for found in rendered("kuberay", tmp_path) if found["kind"] == "RayJob")
    assert ray_job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
