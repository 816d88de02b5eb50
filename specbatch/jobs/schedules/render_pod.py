"""What every rendered pod has: no rights that it does not need, and places to write beside a read-only root."""

from __future__ import annotations

from typing import Any

_POD_LABELS = {"app.kubernetes.io/part-of": "specbatch"}
"""As in ``infra/kubernetes``: its network policy holds for pods with this label."""
_SCRATCH: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("tmp", "/tmp", {"sizeLimit": "10Gi"}),  # noqa: S108 - mounts, not files that are made
    ("shm", "/dev/shm", {"medium": "Memory", "sizeLimit": "1Gi"}),  # noqa: S108
    ("cache", "/cache", {"sizeLimit": "50Gi"}),
)
_HOMES = {"HOME": "/tmp", "XDG_CACHE_HOME": "/cache", "HF_HOME": "/cache/huggingface"}  # noqa: S108


def restricted_pod(container: dict[str, Any], job_config_map: str, job_folder: str, **pod: Any) -> dict[str, Any]:
    """The template of a pod with one container, fit for the ``restricted`` level of Pod Security.

    Which user it runs as is the image's to say; it may not be root.

    Args:
        container: without mounts and security context.
        job_config_map: is mounted at ``job_folder``.
        pod: further fields of the pod's spec.
    """
    env = [{"name": name, "value": value} for name, value in _HOMES.items()]
    mounts = [{"name": name, "mountPath": path} for name, path, _ in _SCRATCH]
    whole = {
        **container,
        "env": [*env, *container.get("env", [])],
        "volumeMounts": [*mounts, {"name": "job", "mountPath": job_folder, "readOnly": True}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec = {
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        **pod,
        "containers": [whole],
        "volumes": [
            *({"name": name, "emptyDir": dict(kind)} for name, _, kind in _SCRATCH),
            {"name": "job", "configMap": {"name": job_config_map}},
        ],
    }
    return {"metadata": {"labels": dict(_POD_LABELS)}, "spec": spec}
