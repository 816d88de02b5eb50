"""Kubernetes objects against their schemas, with unknown fields refused. No cluster is asked.

Core objects are checked against the schemas that the package ``kubernetes-validate`` carries, those of Ray against
KubeRay's CustomResourceDefinitions where they can be found (``crd_folder``), and the pods inside these as pods. What is
a number to YAML and must be a text to Kubernetes is found as well as a misspelt field.

    problems = validate(yaml.safe_load_all(text))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES_VERSION = "1.35"
ROOT = Path(__file__).resolve().parents[2]
CRD_VARIABLE = "SPECBATCH_KUBERAY_CRDS"
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
NO_CRDS = f"KubeRay's CRDs are not there; set {CRD_VARIABLE} to a folder with them"
_TEXT = {"type": "string"}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_POD_MONITOR: dict[str, Any] = {
    # Of the Prometheus operator's PodMonitor the fields that are used here; any other is refused.
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"name": _TEXT, "namespace": _TEXT, "labels": _LABELS, "annotations": _LABELS},
        },
        "spec": {
            "type": "object",
            "required": ["selector", "podMetricsEndpoints"],
            "additionalProperties": False,
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": _LABELS},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": _TEXT,
                            "path": _TEXT,
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                            "honorLabels": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}


def crd_folder() -> Path | None:
    """Where KubeRay's CRDs are: what the environment names, or the folder beside the checkout; None without them."""
    named = os.environ.get(CRD_VARIABLE)
    folder = Path(named) if named else ROOT.parent / "shared" / "schemas" / "kuberay"
    return folder if (folder / "ray.io_rayjobs.yaml").is_file() else None


def validate(documents: Iterable[Any]) -> list[str]:
    """What is wrong with some objects, one line each; empty where nothing is.

    Raises:
        FileNotFoundError: there is an object of Ray's and no CRDs to check it against (``crd_folder``).
    """
    return [f"{_name(document)}: {problem}" for document in documents for problem in _problems(document)]


def pods(document: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod template) of every template in an object, however deep."""
    if isinstance(document, dict):
        if isinstance(document.get("spec"), dict) and "containers" in document["spec"]:
            yield path, document
            return
        for key, value in document.items():
            yield from pods(value, f"{path}.{key}".lstrip("."))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from pods(value, f"{path}[{number}]")


def _name(document: Any) -> str:
    if not isinstance(document, dict):
        return type(document).__name__
    metadata = document.get("metadata")
    return f"{document.get('kind')}/{metadata.get('name') if isinstance(metadata, dict) else None}"


def _problems(document: Any) -> Iterator[str]:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str) or "apiVersion" not in document:
        yield "is no object of Kubernetes: apiVersion and kind are missing"
        return
    group, kind = str(document["apiVersion"]).rpartition("/")[0], document["kind"]
    if group == "ray.io" and kind in RAY_KINDS:
        yield from _against(_ray_schema(kind, document["apiVersion"].rpartition("/")[2]), document)
        # The CRDs leave out of pods what would make them too large.
        for path, template in pods(document):
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": template.get("metadata", {}),
                "spec": template["spec"],
            }
            yield from (f"{path}: {problem}" for problem in _core(pod))
    elif (group, kind) == ("monitoring.coreos.com", "PodMonitor"):
        yield from _against(_POD_MONITOR, document)
    else:
        yield from _core(document)


def _core(document: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(str(step) for step in error.path) or '(root)'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError:
        yield f"there is no {document['kind']} in {document['apiVersion']}"


def _against(schema: dict[str, Any], document: Any) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{'.'.join(str(step) for step in error.absolute_path) or '(root)'}: {error.message}"


@cache
def _ray_schema(kind: str, version: str) -> dict[str, Any]:
    folder = crd_folder()
    if folder is None:
        raise FileNotFoundError(NO_CRDS)
    text = (folder / f"ray.io_{RAY_KINDS[kind]}.yaml").read_bytes()
    versions = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
    found = [one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == version]
    if not found:
        return {"not": {}, "description": f"there is no version {version} of {kind}"}
    return _strict(found[0], is_root=True)


def _strict(schema: dict[str, Any], *, is_root: bool = False) -> dict[str, Any]:
    """An OpenAPI schema as JSON schema that refuses fields which it does not name."""
    made = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("format", "nullable")
    }
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        return {**made, "type": ["integer", "string"]}
    if isinstance(schema.get("items"), dict):
        made["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = _strict(schema["additionalProperties"])
    if "properties" in schema:
        made["properties"] = {name: _strict(inner) for name, inner in schema["properties"].items()}
        if is_root:  # of metadata a CRD says only that it is an object; the API server knows more
            made["properties"]["metadata"] = {"type": "object"}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    return made
