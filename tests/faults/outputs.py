"""Outputs as their bytes lie there, read and written past specbatch and past the fault proxy."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from botocore.config import Config

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class Output(Protocol):
    """Where a job writes."""

    @property
    def uri(self) -> str: ...

    def keys(self, prefix: str = "") -> list[str]: ...

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, data: bytes) -> None: ...

    def delete(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class LocalOutput:
    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def keys(self, prefix: str = "") -> list[str]:
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix))

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def delete(self, key: str) -> None:
        (self.root / key).unlink()


@dataclass(frozen=True, slots=True)
class BucketOutput:
    client: Any
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{self.prefix}/{prefix}"
        )
        return sorted(
            found["Key"].removeprefix(f"{self.prefix}/") for page in pages for found in page.get("Contents", [])
        )

    def read(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}", Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")


def s3_client(endpoint: str, read_timeout: float = 60.0) -> Any:
    """A client of our own that never retries, so what a test does to the server happens once."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        config=Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=read_timeout,
            response_checksum_validation="when_required",
        ),
    )


def part_keys(output: Output) -> list[str]:
    return [key for key in output.keys("data/") if key.endswith(".parquet")]


def read_rows(output: Output) -> pa.Table:
    """All rows of all parts as they stand in the folder, whoever wrote them: what a reader of ``data/*`` sees."""
    return pa.concat_tables(pq.read_table(io.BytesIO(output.read(key))) for key in part_keys(output))
