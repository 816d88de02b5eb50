"""Multipart uploads that nobody completed: ours never make one, but a bucket may hold those of other tools."""

from __future__ import annotations

from s3_server import S3Server

from specbatch.storage.s3_session import connection
from specbatch.storage.store import open_store


def test_only_old_uploads_below_the_output_are_given_up(s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    store = open_store(f"s3://{bucket}/job")
    client = connection().client()
    for key in ("job/data/x", "job/y", "jobs/z"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    century = 100 * 365 * 86400  # this server says that every upload began in 2010
    assert store.abort_uploads(older_than_seconds=century) == 0  # type: ignore[attr-defined]
    assert store.abort_uploads(older_than_seconds=3600) == 2  # type: ignore[attr-defined]
    assert [found["Key"] for found in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["jobs/z"]
