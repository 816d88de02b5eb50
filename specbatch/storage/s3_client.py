"""Objects of one S3 bucket: reads that wait out failures, and single writes whose outcome the caller settles.

A failed read is tried again until patience ends and is never taken for "there is none": only S3's own ``NoSuchKey``
is that. Importing this module imports boto3; do so only where a URI is of S3.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from specbatch.schemas.canonical import sha256_hex
from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.s3_calls import ObjectInfo, Stamp, call, etag_of, get_object, head_object, whole_page
from specbatch.storage.s3_errors import REQUEST_ERRORS, Fault, FaultKind, Role, error_of
from specbatch.storage.s3_session import Attempts, connection
from specbatch.storage.store import NotFound, s3_location

_TOKEN = "specbatch-token"  # noqa: S105 - the name of a mark, no secret
_SHA256 = "specbatch-sha256"
_NUM_DIGEST_READS = 3
_ABSENT = frozenset({FaultKind.ABSENT})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket. It holds no client, so it pickles.

    Every method but ``put`` raises SpecbatchError where the store stays unreachable (``JOB_STORE_LOST``), refuses the
    credentials (``JOB_STORE_DENIED``), has no such bucket (``JOB_INPUT_MISSING`` or ``JOB_OUTPUT_MISSING``) or finds
    this machine's clock wrong (``STORE_CLOCK_SKEW``).
    """

    name: str
    role: Role = "output"

    def uri(self, key: str) -> str:
        """An object's URI, fit to be shown."""
        text = f"s3://{self.name}/{key}"
        return text if text.isprintable() else ascii(text)

    def head(self, key: str) -> ObjectInfo:
        """Size and ETag of an object.

        Raises:
            NotFound: there is none.
        """
        stamp = self.stamp(key)
        return ObjectInfo(key, stamp.num_bytes, stamp.etag)

    def stamp(self, key: str) -> Stamp:
        """Size, ETag and the marks of our own write of an object.

        Raises:
            NotFound: there is none.
        """
        answer = self._ask("read", key, lambda client: head_object(client, self.name, key))
        marks = answer.get("Metadata", {})
        return Stamp(etag_of(answer), int(answer["ContentLength"]), marks.get(_TOKEN), marks.get(_SHA256))

    def get(self, key: str, start: int = 0, stop: int | None = None, etag: str | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` (exclusive, None: to the end) of an object; fewer where it ends before.

        Args:
            etag: the version that it must be.

        Raises:
            NotFound: there is none.
            SpecbatchError: also ``JOB_INPUT_CHANGED`` (of an output ``JOB_INTEGRITY``): it is not that version.
        """
        assert start >= 0, start
        if stop is not None and stop <= start:
            return b""
        return self._ask("read", key, lambda client: get_object(client, self.name, key, start, stop, etag))[0]

    def read(self, key: str) -> tuple[bytes, str]:
        """Contents and ETag of an object, checked against the digest that our own writes leave on it.

        Raises:
            NotFound: there is none.
            SpecbatchError: also ``JOB_INTEGRITY``: the contents are not those that were written.
        """
        for _ in range(_NUM_DIGEST_READS):
            data, answer = self._ask("read", key, lambda client: get_object(client, self.name, key, 0, None, None))
            expected = answer.get("Metadata", {}).get(_SHA256)
            if expected is None or expected == sha256_hex(data):
                return data, etag_of(answer)
        raise SpecbatchError(
            ErrorCode.JOB_INTEGRITY,
            f"the contents of {self.uri(key)} are not those that were written (SHA-256 differs); run specbatch verify",
        )

    def list(self, prefix: str, delimiter: str | None = None) -> Iterator[ObjectInfo]:
        """Objects whose keys begin with ``prefix``, page by page; with a delimiter also the folders just below it."""
        params: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix}
        if delimiter is not None:
            params["Delimiter"] = delimiter
        while True:
            page = self._ask("list", prefix, lambda client: whole_page(client.list_objects_v2(**params)))
            for item in page.get("Contents", ()):
                yield ObjectInfo(item["Key"], int(item["Size"]), item.get("ETag", "").strip('"'))
            for folder in page.get("CommonPrefixes", ()):
                yield ObjectInfo(folder["Prefix"], 0, "")
            if not page.get("IsTruncated"):
                return
            params["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._ask("delete", key, lambda client: client.delete_object(Bucket=self.name, Key=key))
        except NotFound:
            return

    def abort_uploads(self, prefix: str, older_than_seconds: float) -> int:
        """Give up the multipart uploads below ``prefix`` that began so long ago; how many there were."""
        params: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix}
        old: list[tuple[str, str]] = []
        while True:
            page = self._ask("list", prefix, partial(call, "list_multipart_uploads", params))
            for upload in page.get("Uploads", ()):
                if time.time() - upload["Initiated"].timestamp() > older_than_seconds:
                    old.append((upload["Key"], upload["UploadId"]))
            if not page.get("IsTruncated"):
                break
            params |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        for key, upload_id in old:
            named = {"Bucket": self.name, "Key": key, "UploadId": upload_id}
            with suppress(NotFound):  # somebody else was quicker
                self._ask("delete", key, partial(call, "abort_multipart_upload", named))
        return len(old)

    def clock_skew_seconds(self, prefix: str) -> float:
        """How far the store's clock is ahead of ours, to about a second.

        Args:
            prefix: where these credentials may list.
        """
        started = time.time()
        answer = self._ask(
            "list", prefix, lambda client: client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1)
        )
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            return 0.0
        return parsedate_to_datetime(date).timestamp() - (started + time.time()) / 2

    def put(
        self,
        key: str,
        source: bytes | Path,
        *,
        token: str,
        sha256: str,
        only_if_absent: bool = False,
        only_if_etag: str | None = None,
    ) -> str:
        """Send one PUT, once; a file is streamed.

        Args:
            token: names this write; all attempts of one write carry the same one.
            sha256: hex digest of the source, which the store checks.

        Returns:
            The new object's ETag.

        Raises:
            Fault: it failed. Only ``stamp`` can tell whether the object was written nevertheless.
        """
        conditions: dict[str, str] = {}
        if only_if_absent:
            conditions["IfNoneMatch"] = "*"
        if only_if_etag is not None:
            conditions["IfMatch"] = f'"{only_if_etag}"'
        link = connection()
        client = link.client()

        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as body:
            try:
                answer = client.put_object(
                    Bucket=self.name,
                    Key=key,
                    Body=body,
                    Metadata={_TOKEN: token, _SHA256: sha256},
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                    **conditions,
                )
            except REQUEST_ERRORS as error:
                raise link.fault(error) from error
        link.note_answer()
        return etag_of(answer)

    def attempts(self) -> Attempts:
        """Patience for one write, to be asked after each failed ``put``."""
        return Attempts(connection())

    def error(self, fault: Fault, doing: str, key: str) -> SpecbatchError:
        """The user's line for a fault that stays."""
        return error_of(fault, doing, self.uri(key), connection().endpoint, self.role)

    def _ask(self, doing: str, key: str, request: Callable[[Any], T]) -> T:
        try:
            return self.ask(doing, key, request, judged=_ABSENT)
        except Fault as fault:
            raise NotFound(self.uri(key)) from fault

    def ask(self, doing: str, key: str, request: Callable[[Any], T], judged: Collection[FaultKind] = ()) -> T:
        """Send a request that changes nothing, or that may be repeated, until it is answered or patience ends.

        Args:
            judged: kinds of faults that the caller judges.

        Raises:
            Fault: one of these. SpecbatchError: any other that does not pass.
        """
        link = connection()
        attempts = Attempts(link)
        while True:
            client = link.client()
            try:
                answer = request(client)
            except (*REQUEST_ERRORS, Fault) as error:
                fault = link.fault(error)
                if fault.kind in judged:
                    raise fault from error
                if fault.kind not in (FaultKind.RETRY, FaultKind.EXPIRED, FaultKind.BUSY):
                    raise self.error(fault, doing, key) from error
                try:
                    attempts.failed(fault)
                except Fault:
                    raise self.error(fault, doing, key) from error
            else:
                link.note_answer()
                return answer


def bucket_of(uri: str, role: Role = "output") -> tuple[Bucket, str]:
    """The bucket and the key prefix (``""`` or without a slash at its end) that ``s3://bucket/prefix`` names.

    Raises:
        SpecbatchError: ``JOB_URI_INVALID``.
    """
    name, prefix = s3_location(uri, "dataset" if role == "input" else "output")
    return Bucket(name, role), prefix
