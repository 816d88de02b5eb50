"""Single calls to S3, and what their answers must hold to be believed. Nothing is tried again here.

Importing this module imports botocore; do so only where a URI is of S3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from specbatch.storage.s3_errors import Fault, FaultKind, fault_of, is_bare

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object. Of a folder, which a listing with a delimiter gives, only the key (it ends with ``/``) is known.

    Attributes:
        etag: without quotes.
    """

    key: str
    num_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a write of ours leaves on an object, where the store keeps it.

    Attributes:
        token: names the write.
        sha256: hex digest of the contents.
    """

    etag: str
    num_bytes: int
    token: str | None
    sha256: str | None


def head_object(client: Any, bucket: str, key: str) -> dict[str, Any]:
    """The answer to HEAD; where it says too little to tell what is wrong, a GET is asked."""
    try:
        answer: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
        return answer
    except ClientError as error:
        if not is_bare(error) or _status(error) >= 500:
            raise
    # An answer to HEAD has no body: a missing bucket, an expired token and a missing key look alike. GET tells.
    try:
        client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close()
    except ClientError as error:
        if fault_of(error).kind is not FaultKind.RANGE:
            raise
    raise Fault(FaultKind.RETRY, "HEAD and GET disagree")


def get_object(
    client: Any, bucket: str, key: str, start: int, stop: int | None, etag: str | None
) -> tuple[bytes, dict[str, Any]]:
    """Bytes ``start`` to ``stop`` and the answer that they came with; every answer is checked for what it left out.

    Raises:
        Fault: another version, or an answer that is cut short.
    """
    params: dict[str, Any] = {"Bucket": bucket, "Key": key}
    is_ranged = start > 0 or stop is not None
    if is_ranged:
        params["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    if etag is not None:
        params["IfMatch"] = f'"{etag}"'
    try:
        answer: dict[str, Any] = client.get_object(**params)
    except ClientError as error:
        if fault_of(error).kind is FaultKind.RANGE:
            return b"", {}
        raise
    with answer["Body"] as body:
        data: bytes = body.read()
    if etag is not None and etag_of(answer) != etag:
        raise Fault(FaultKind.CHANGED, "another ETag")  # a store that does not know If-Match on GET
    if not is_ranged:
        return data, answer
    if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
        return data[start:stop], answer  # a store that does not know ranges sends everything
    found = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if found is None:
        raise Fault(FaultKind.RETRY, "no content range")
    first, last, total = map(int, found.groups())
    if first != start or last + 1 != min(total, total if stop is None else stop) or len(data) != last + 1 - first:
        raise Fault(FaultKind.RETRY, "truncated body")
    return data, answer


def whole_page(page: dict[str, Any]) -> dict[str, Any]:
    """A page that says there are more must say where they begin: without that the listing would look complete."""
    if page.get("IsTruncated") and not page.get("NextContinuationToken"):
        raise Fault(FaultKind.RETRY, "a listing without its continuation")
    return page


def call(method: str, params: dict[str, Any], client: Any) -> dict[str, Any]:
    """One call by name; the client comes last, so that the rest can be bound."""
    answer: dict[str, Any] = getattr(client, method)(**params)
    return answer


def etag_of(answer: dict[str, Any]) -> str:
    """ETag of an answer, without quotes."""
    return str(answer.get("ETag", "")).strip('"')


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
