"""The network policies of ``infra/kubernetes``: who reaches whom, by what the rules say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kustomize

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "kubernetes"
LABEL = ("app.kubernetes.io/part-of", "specbatch")


def policies() -> list[dict[str, Any]]:
    return [found for found in kustomize.render(FOLDER / "rayjob") if found["kind"] == "NetworkPolicy"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def admits(peer_of: Callable[[dict[str, Any]], list[dict[str, Any]]], port: int, peer: dict[str, Any]) -> bool:
    """Whether some policy lets a port through; ``peer`` has labels and those of its namespace; empty is abroad."""
    for document in policies():
        for rule in peer_of(document["spec"]):
            ports = [entry["port"] for entry in rule.get("ports", ())]
            if ports and port not in ports:
                continue
            sides = rule.get("from", rule.get("to", ()))
            assert sides, f"{document['metadata']['name']} has a rule for everybody"
            for side in sides:
                if "ipBlock" in side:
                    if not peer:
                        return True
                elif peer and selects(side["podSelector"], peer["labels"]):
                    own = side.get("namespaceSelector")
                    if peer.get("namespace") is None if own is None else selects(own, peer.get("namespace") or {}):
                        return True
    return False


def test_ports_of_ray_are_open_inside_the_cluster_alone() -> None:
    def ingress(spec: dict[str, Any]) -> list[dict[str, Any]]:
        return list(spec.get("ingress", ()))

    inside = {"labels": {LABEL[0]: LABEL[1]}, "namespace": None}
    stranger = {"labels": {"app": "web"}, "namespace": None}
    operator = {"labels": {"app.kubernetes.io/name": "kuberay-operator"}, "namespace": {"a": "b"}}
    for port in (6379, 8265, 10001, 30000):
        assert admits(ingress, port, inside)
        assert not admits(ingress, port, stranger)
        assert not admits(ingress, port, {})
    assert admits(ingress, 8265, operator)
    assert not admits(ingress, 6379, operator)


def test_only_the_store_and_names_are_reached_from_inside() -> None:
    def egress(spec: dict[str, Any]) -> list[dict[str, Any]]:
        return list(spec.get("egress", ()))

    dns = {"labels": {"k8s-app": "kube-dns"}, "namespace": {"kubernetes.io/metadata.name": "kube-system"}}
    assert admits(egress, 443, {})
    assert admits(egress, 53, dns)
    assert not admits(egress, 80, {})
    assert not admits(egress, 443, {"labels": {"app": "web"}, "namespace": None})
    blocks = [
        side["ipBlock"]
        for document in policies()
        for rule in document["spec"].get("egress", ())
        for side in rule["to"]
        if "ipBlock" in side
    ]
    assert all("169.254.0.0/16" in block["except"] for block in blocks), "the node's own credentials"


def test_policies_hold_for_all_pods_and_one_denies_everything() -> None:
    found = policies()
    assert all(policy["spec"]["podSelector"] == {"matchLabels": dict([LABEL])} for policy in found)
    (deny,) = [policy["spec"] for policy in found if not {"ingress", "egress"} & set(policy["spec"])]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
