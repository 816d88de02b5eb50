"""Folders of ``infra/kubernetes`` rendered as ``kubectl kustomize`` does it; what they do not use is refused.

Known are ``resources``, ``namespace``, ``images`` and JSON patches with ``add`` and ``replace``. Where kubectl is
installed a test compares the two.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_KNOWN = {"apiVersion", "kind", "resources", "namespace", "images", "patches"}


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects of a folder.

    Raises:
        AssertionError: the folder asks for something that is not there, or that this does not know.
    """
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (wanted["apiVersion"], wanted["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization"), folder
    assert set(wanted) <= _KNOWN, f"{folder}: cannot render {set(wanted) - _KNOWN}"
    objects: list[dict[str, Any]] = []
    for name in wanted["resources"]:
        path = folder / name
        assert path.exists(), f"{folder.name} names {name}, which is not there"
        objects += (
            render(path) if path.is_dir() else [copy.deepcopy(one) for one in yaml.safe_load_all(path.read_text())]
        )
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names), f"{folder.name} has an object twice"
    for patch in wanted.get("patches", ()):
        _patch(objects, patch, folder)
    for image in wanted.get("images", ()):
        for container in containers(objects):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}@{image['digest']}"
    if "namespace" in wanted:
        for one in objects:
            one["metadata"]["namespace"] = wanted["namespace"]
    return objects


def containers(value: Any) -> Iterator[dict[str, Any]]:
    """Every container in some objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("containers", "initContainers"):
                yield from inner
            else:
                yield from containers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from containers(inner)


def _patch(objects: list[dict[str, Any]], patch: dict[str, Any], folder: Path) -> None:
    assert set(patch) in ({"target", "path"}, {"target", "patch"}), patch
    assert set(patch["target"]) == {"kind", "name"}, patch
    found = [
        one
        for one in objects
        if (one["kind"], one["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])
    ]
    assert len(found) == 1, f"{folder.name} patches {patch['target']}, of which there are {len(found)}"
    for step in yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()):
        _apply(found[0], step)


def _apply(document: dict[str, Any], step: dict[str, Any]) -> None:
    place: Any = document
    *parents, last = (name.replace("~1", "/").replace("~0", "~") for name in step["path"].split("/")[1:])
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    assert isinstance(place, dict), f"cannot patch {step['path']}"
    assert step["op"] in ("add", "replace"), step
    assert (last in place) == (step["op"] == "replace"), f"{step['op']} {step['path']}"
    place[last] = step["value"]
