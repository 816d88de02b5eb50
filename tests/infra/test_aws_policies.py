"""The IAM policies of ``infra/aws``: what each role is for is allowed, and what it is not for is denied.

Whether that is enough for a job is told by ``test_aws_job.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from policies import FOLDER, Ask, allows, load
from s3_gate import INPUT, JOB, OUTPUT, ROLES, Role

ARN = f"arn:aws:s3:::{OUTPUT}"
ONCE = (("s3:if-none-match", "*"),)


def put(key: str, context: tuple[tuple[str, str], ...] = ()) -> Ask:
    return Ask("s3:PutObject", f"{ARN}/{key}", context)


@pytest.mark.parametrize(
    ("role", "ask"),
    [
        ("worker", put(f"{JOB}/data/part-00001-ab.parquet", ONCE)),
        ("worker", put(f"{JOB}/amendments/2/data/part-00001-ab.parquet", ONCE)),
        ("coordinator", put(f"{JOB}/manifest.json", ONCE)),
        ("coordinator", put(f"{JOB}/_specbatch/progress.json")),
        ("coordinator", put(f"{JOB}/_specbatch/lease.json", (("s3:if-match", "abc"),))),
    ],
)
def test_what_a_role_is_for_is_allowed(role: str, ask: Ask) -> None:
    assert ROLES[role].may(ask)


@pytest.mark.parametrize(
    ("role", "ask"),
    [
        ("worker", put(f"{JOB}/data/part-00001-ab.parquet")),
        ("worker", put(f"{JOB}/data/part-00001-ab.parquet", (("s3:if-match", "abc"),))),
        ("worker", put(f"{JOB}/manifest.json", ONCE)),
        ("worker", put(f"{JOB}/_specbatch/job.json", ONCE)),
        ("worker", put(f"{JOB}/_specbatch/lease.json", (("s3:if-match", "abc"),))),
        ("worker", put("elsewhere/data/part-00001-ab.parquet", ONCE)),
        ("worker", Ask("s3:GetObject", f"{ARN}/{JOB}/_specbatch/job.json")),
        ("worker", Ask("s3:GetObject", f"{ARN}/elsewhere/data/part-00001-ab.parquet")),
        ("worker", Ask("s3:GetObject", f"arn:aws:s3:::{INPUT}/elsewhere/a.parquet")),
        ("worker", Ask("s3:GetObject", f"arn:aws:s3:::{INPUT}/prompts-of-others/a.parquet")),
        ("worker", Ask("s3:ListBucket", ARN, (("s3:prefix", "elsewhere/"),))),
        ("coordinator", put(f"{JOB}/manifest.json")),
        ("coordinator", put(f"{JOB}/_SUCCESS")),
        ("coordinator", put(f"{JOB}/_specbatch/job.json")),
        ("coordinator", put(f"{JOB}/_specbatch/plan-ab.parquet")),
        ("coordinator", put(f"{JOB}/_specbatch/lease.json")),
        ("coordinator", put(f"{JOB}/data/part-00001-ab.parquet", ONCE)),
        ("coordinator", put(f"{JOB}/data/part-00001-ab.parquet")),
        ("coordinator", Ask("s3:GetObject", f"arn:aws:s3:::{INPUT}/elsewhere/a.parquet")),
        ("coordinator", Ask("s3:ListBucket", f"arn:aws:s3:::{INPUT}", (("s3:prefix", "elsewhere/"),))),
        ("gc", put(f"{JOB}/manifest.json", ONCE)),
        ("gc", Ask("s3:DeleteObject", f"{ARN}/{JOB}/manifest.json")),
        ("gc", Ask("s3:DeleteObject", f"{ARN}/{JOB}/_specbatch/job.json")),
        ("gc", Ask("s3:DeleteObject", f"{ARN}/elsewhere/data/part-00001-ab.parquet")),
    ],
)
def test_what_a_role_is_not_for_is_denied(role: str, ask: Ask) -> None:
    assert not ROLES[role].may(ask)


@pytest.mark.parametrize("role", ["worker", "coordinator"])
def test_neither_of_those_who_run_a_job_deletes_anything(role: str) -> None:
    for key in ("data/part-00001-ab.parquet", "manifest.json", "_specbatch/lease.json", "_specbatch/probe-1/a", "a"):
        for action in ("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutLifecycleConfiguration", "s3:DeleteBucket"):
            assert not ROLES[role].may(Ask(action, f"{ARN}/{JOB}/{key}"))


@pytest.mark.parametrize("role", ["worker", "coordinator"])
def test_nothing_is_written_to_a_bucket_of_the_same_name_in_another_account(role: str) -> None:
    key = f"{JOB}/data/part-00001-ab.parquet" if role == "worker" else f"{JOB}/manifest.json"
    assert ROLES[role].may(put(key, ONCE))
    assert not ROLES[role].may(put(key, (*ONCE, ("aws:ResourceAccount", "999999999999"))))


def test_the_bucket_alone_keeps_an_administrator_from_overwriting_and_deleting() -> None:
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    admin = Role("admin", [everything, load("bucket")])
    part = f"{ARN}/{JOB}/data/part-00001-ab.parquet"
    assert admin.may(Ask("s3:GetObject", part))
    assert not admin.may(Ask("s3:PutObject", part))
    assert not admin.may(Ask("s3:DeleteObject", part))
    assert Role("admin", [everything]).may(Ask("s3:DeleteObject", part)), "it is the bucket's policy that forbids it"
    assert not allows([everything, load("bucket")], Ask("s3:GetObject", part, (("aws:SecureTransport", "false"),)))


def test_no_policy_allows_more_than_it_names() -> None:
    for path in FOLDER.glob("*.json"):
        for statement in load(path.stem)["Statement"]:
            if statement["Effect"] == "Deny":
                continue
            actions = statement["Action"]
            for action in [actions] if isinstance(actions, str) else actions:
                assert "*" not in action, (path.name, action)
            looks = statement["Sid"] == "Look"  # EC2 knows no resources for its Describe calls
            assert looks or statement.get("Resource") != "*", (path.name, statement["Sid"])


def test_the_evaluator_refuses_what_it_cannot_judge() -> None:
    def policy(**more: Any) -> Mapping[str, Any]:
        return {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*", **more}]}

    for odd in (policy(NotAction="s3:*"), policy(Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})):
        with pytest.raises(AssertionError, match="cannot judge"):
            allows([dict(odd)], Ask("s3:GetObject", ARN, (("aws:SourceIp", "10.0.0.1"),)))
