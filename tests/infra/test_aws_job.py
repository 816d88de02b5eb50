"""The IAM policies of ``infra/aws``, against every request that a whole job makes.

The job runs on a Ray whose nodes have the worker's access key, and is submitted with the coordinator's; a door before
the S3 server enforces the policies. All secrets here are canaries: afterwards every byte that was written is searched.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.config import Config
from policies import load
from s3_gate import INPUT, JOB, OUTPUT, ROLES, Gate, Role, Seen
from s3_server import S3Server

HEAD = """
import sys
from ray.cluster_utils import Cluster

head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def canary(name: str) -> str:
    return f"canary{name}{secrets.token_hex(12)}"


@dataclass
class Night:
    """A job and the cleaning up after it: what was asked of the store, and every byte that came of it."""

    gate: Gate
    client: Any
    folder: Path
    temporary: Path
    secrets: dict[str, str] = field(default_factory=lambda: {name: canary(name) for name in (
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN")})  # fmt: skip
    texts: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def environment(self, role: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SPECBATCH_", "RAY_", "AWS_", "HF_TOKEN"))
        }
        store = {
            "AWS_ENDPOINT_URL_S3": self.gate.endpoint,
            "AWS_ACCESS_KEY_ID": role,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        home = {"HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, **store, **home, **self.secrets, "RAY_AUTH_MODE": "token", "AWS_EC2_METADATA_DISABLED": "true"}

    def run(self, role: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "specbatch", *arguments],
            env=self.environment(role), cwd=self.folder, capture_output=True, timeout=200, check=False,
        )  # fmt: skip
        self.texts[f"stdout of {arguments[0]}"], self.texts[f"stderr of {arguments[0]}"] = done.stdout, done.stderr
        return done

    def keep(self) -> None:
        """Read what is in the buckets and in the folder of Ray's session."""
        for key in self.stored():
            self.texts[f"s3: {key}"] = self.client.get_object(Bucket=OUTPUT, Key=key)["Body"].read()
        for path in [*self.temporary.rglob("*"), *(self.folder / "cache").rglob("*")]:
            if path.is_file() and not path.is_symlink():
                self.texts[f"file: {path.name}"] = path.read_bytes()

    def stored(self) -> list[str]:
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=OUTPUT).get("Contents", ())]


@pytest.fixture(scope="module")
def night(s3_process: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    gate = Gate(s3_process.endpoint, ROLES, lost="/data/part-")
    temporary = Path(tempfile.mkdtemp(prefix="sbi", dir="/tmp"))  # Ray refuses long names, and pytest's are long
    client = boto3.client(
        "s3", endpoint_url=s3_process.endpoint, region_name="us-east-1", aws_access_key_id="x",
        aws_secret_access_key="x", config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    night = Night(gate, client, tmp_path_factory.mktemp("night"), temporary)
    ray = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(temporary)], env=night.environment("worker"), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert ray.stdout is not None
        _run(night, ray.stdout.readline().strip())
        yield night
    finally:
        ray.communicate("", timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)
        gate.close()


def _run(night: Night, address: str) -> None:
    for bucket in (INPUT, OUTPUT):
        night.client.create_bucket(Bucket=bucket)
    texts = [f"def f{i}(x):\n    # Return {i} of x.\n" for i in range(11)] + [""]
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts[:6])
    night.client.put_object(Bucket=INPUT, Key="prompts/a.jsonl.gz", Body=gzip.compress(lines.encode()))
    parquet = io.BytesIO()
    pq.write_table(pa.table({"prompt": texts[6:]}), parquet)
    night.client.put_object(Bucket=INPUT, Key="prompts/b/b.parquet", Body=parquet.getvalue())
    output = f"s3://{OUTPUT}/{JOB}"
    submit = ["submit", f"s3://{INPUT}/prompts/a.jsonl.gz", f"s3://{INPUT}/prompts/b", "--output", output,
              "--address", address, "--workers", "1", "--shard-rows", "4", "--max-new-tokens", "8", "--dedupe", "mark",
              "--draft", "none", "--format", "json"]  # fmt: skip
    night.address = address
    done = night.run("coordinator", *submit)
    assert done.returncode == 3, (done.stderr.decode(), denied(night))
    night.keep()
    done = night.run("gc", "gc", output, "--yes")
    assert done.returncode == 0, (done.stderr.decode(), denied(night))


def denied(night: Night) -> list[Seen]:
    return [seen for seen in night.gate.seen if seen.status == 403]


pytest_ray = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


class TestNight:
    pytestmark = pytest_ray

    def test_all_that_is_denied_is_to_delete_what_the_probe_wrote(self, night: Night) -> None:
        assert night.gate.unknown == []
        assert {(seen.role, seen.ask.action) for seen in denied(night)} == {
            ("specbatch-coordinator", "s3:DeleteObject")
        }
        assert all("/_specbatch/probe-" in seen.key for seen in denied(night))

    def test_each_role_was_seen_at_its_work(self, night: Night) -> None:
        done = {(seen.role, seen.ask.action) for seen in night.gate.seen if seen.status < 300}
        assert {
            ("specbatch-worker", "s3:GetObject"),
            ("specbatch-worker", "s3:PutObject"),
            ("specbatch-coordinator", "s3:GetObject"),
            ("specbatch-coordinator", "s3:ListBucket"),
            ("specbatch-coordinator", "s3:PutObject"),
            ("specbatch-gc", "s3:ListBucketMultipartUploads"),
            ("specbatch-gc", "s3:DeleteObject"),
        } <= done
        written = {seen.key.removeprefix(JOB) for seen in night.gate.seen if seen.ask.action == "s3:PutObject"}
        parts = {key for key in written if "/data/" in key}
        assert any(key.startswith("/_specbatch/input/") for key in written)
        workers = {seen.key.removeprefix(JOB) for seen in night.gate.seen if seen.role == "specbatch-worker" and
                   seen.ask.action == "s3:PutObject"}  # fmt: skip
        assert workers == parts, "a worker writes parts, and nobody else does"

    def test_no_statement_is_there_for_nothing(self, night: Night) -> None:
        """Each resource of the three roles was needed; the exceptions are what only other commands need."""
        asked = [seen for seen in night.gate.seen if seen.status < 300 or seen.status == 412 or seen.status == 404]
        for name, role in ROLES.items():
            for statement in load(name)["Statement"]:
                resources = statement["Resource"]
                for resource in [resources] if isinstance(resources, str) else resources:
                    alone = {**statement, "Resource": resource}
                    policy = {"Version": "2012-10-17", "Statement": [alone]}
                    used = any(seen.role == role.name and Role(role.name, [policy]).may(seen.ask) for seen in asked)
                    excused = name == "gc" and statement["Sid"] in ("GiveUpUploads", "RemoveLeftovers")
                    # Without it S3 says of a part that is not there that it may not be read, and a worker that has lost
                    # the answer to its PUT asks for just that (`Gate` does as S3 does).
                    excused |= (name, statement["Sid"]) == ("worker", "ListOutputs")
                    # `cancel` asks for the first; the second is a dataset that is one object.
                    excused |= resource.endswith(("/cancel-*.json", "/prompts"))
                    assert used or excused, (name, resource)

    def test_a_part_is_never_written_twice_and_nothing_is_deleted(self, night: Night) -> None:
        part = next(key for key in night.stored() if "/data/" in key)
        for role in ("worker", "coordinator", "gc"):
            client = boto3.client(
                "s3", endpoint_url=night.gate.endpoint, region_name="us-east-1", aws_access_key_id=role,
                aws_secret_access_key="x", config=Config(s3={"addressing_style": "path"}),
            )  # fmt: skip
            for call in (
                lambda client=client: client.put_object(Bucket=OUTPUT, Key=part, Body=b"other"),
                lambda client=client: client.put_object(Bucket=OUTPUT, Key=part, Body=b"other", IfNoneMatch="*"),
                lambda client=client: client.delete_object(Bucket=OUTPUT, Key=f"{JOB}/manifest.json"),
            ):
                with pytest.raises(client.exceptions.ClientError) as caught:
                    call()
                assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 412)

    def test_no_secret_is_in_any_byte_that_was_written(self, night: Night) -> None:
        names = set(night.texts)
        assert any(name.startswith("s3: ") and "/data/" in name for name in names)
        assert any(name.startswith("file: worker-") for name in names)
        assert {"stdout of submit", "stderr of submit"} <= names
        for name, data in night.texts.items():
            for variable, secret in night.secrets.items():
                assert secret.encode() not in data, f"{name} holds {variable}"

    @pytest.mark.long
    def test_amendments_and_readers_need_no_more(self, night: Night) -> None:
        output = f"s3://{OUTPUT}/{JOB}"
        cluster = ["--address", night.address, "--workers", "1"]
        for code, arguments in (
            (3, ["retry-failed", output, *cluster]),
            (0, ["verify", output, "--format", "json"]),
            (0, ["status", output]),
            (0, ["report", output, "--format", "json"]),
            (0, ["cancel", output]),
        ):
            before = len(denied(night))
            done = night.run("coordinator", *arguments)
            assert done.returncode == code, (arguments, done.stderr.decode())
            assert denied(night)[before:] == []
        assert any(
            f"{JOB}/amendments/1/data/" in seen.key for seen in night.gate.seen if seen.role == "specbatch-worker"
        )
        night.keep()
        self.test_no_secret_is_in_any_byte_that_was_written(night)
