"""The cluster file of AWS against Ray's own schema and against what EC2 knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray
import yaml
from botocore.validate import ParamValidator

INFRA = Path(__file__).resolve().parents[2] / "infra"


def aws_cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    return loaded


def test_the_cluster_file_is_one_that_this_ray_takes() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(aws_cluster(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**aws_cluster(), "idle_timeout": 5}, schema)


def run_instances_report(config: dict[str, Any]) -> str:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report: str = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **config}, shape).generate_report()
    return report


def test_what_is_said_of_instances_is_what_ec2_knows() -> None:
    for kind in aws_cluster()["available_node_types"].values():
        assert run_instances_report(kind["node_config"]) == ""
    assert "InstanceTyp" in run_instances_report({"InstanceTyp": "m7i.large"})


def test_the_head_is_on_demand_workers_are_spot_and_their_rights_differ() -> None:
    head, worker = (aws_cluster()["available_node_types"][name] for name in ("head", "worker"))
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}, "a worker on the head would have the coordinator's rights"
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    profiles = [kind["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2] for kind in (head, worker)]
    assert profiles == ["specbatch-coordinator", "specbatch-worker"]
    for kind in (head, worker):
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in aws_cluster()[commands][-1]
