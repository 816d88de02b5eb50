"""A large S3 object, sent part by part: it appears whole when the upload is completed, or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from specbatch.schemas.errors import ErrorCode, SpecbatchError
from specbatch.storage.s3_client import Bucket
from specbatch.storage.s3_errors import Fault, FaultKind
from specbatch.storage.store import NotFound

_TOKEN = "specbatch-token"  # noqa: S105 - the name of a mark, no secret
_JUDGED = frozenset({FaultKind.CHANGED, FaultKind.UNSUPPORTED})

T = TypeVar("T")


class MultipartUpload:
    """One upload, begun when it is made. Whoever gives it up calls ``abort``: parts without an object are billed.

    Every method raises SpecbatchError where the store stays unreachable or refuses.
    """

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._token = secrets.token_hex(16)
        marks = {_TOKEN: self._token}
        named = {"Bucket": bucket.name, "Key": key}
        self._named = named
        begun = self._ask(lambda client: client.create_multipart_upload(**named, Metadata=marks))
        self._named = {**named, "UploadId": begun["UploadId"]}
        self._parts: list[dict[str, Any]] = []

    @property
    def num_parts(self) -> int:
        """Parts that were sent."""
        return len(self._parts)

    def send(self, data: bytes) -> None:
        """Send the next part; all but the last have 5 MiB at least. Sending one again does no harm."""
        number = len(self._parts) + 1
        answer = self._ask(lambda client: client.upload_part(**self._named, PartNumber=number, Body=data))
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    def complete(self, *, only_if_absent: bool) -> bool:
        """Make the object of its parts.

        Returns:
            False where ``only_if_absent`` and there was one already; it is left alone.
        """
        try:
            self._ask(lambda client: self._complete(client, only_if_absent=only_if_absent))
        except Fault as fault:
            if fault.kind is FaultKind.CHANGED:
                return self._is_ours()
            if fault.kind is not FaultKind.UNSUPPORTED or not only_if_absent:
                raise self._bucket.error(fault, "write", self._key) from fault
            # A store without conditions: look, then write.
            return not self._exists() and self.complete(only_if_absent=False)
        return True

    def abort(self) -> None:
        """Give the upload up, as far as the store can be reached; ``gc`` of a bucket's rules removes the others."""
        with suppress(SpecbatchError, Fault, NotFound):
            self._ask(lambda client: client.abort_multipart_upload(**self._named))

    def _complete(self, client: Any, *, only_if_absent: bool) -> None:
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            client.complete_multipart_upload(**self._named, MultipartUpload={"Parts": self._parts}, **condition)
        except ClientError as error:
            # After a lost reply the upload is gone because it is complete.
            if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                raise
            if not self._is_ours():
                raise SpecbatchError(
                    ErrorCode.JOB_STORE_LOST,
                    f"the upload of {self._bucket.uri(self._key)} was given up by somebody else; "
                    "run the same command again",
                ) from error

    def _is_ours(self) -> bool:
        try:
            return self._bucket.stamp(self._key).token == self._token
        except NotFound:
            return False

    def _exists(self) -> bool:
        try:
            self._bucket.head(self._key)
        except NotFound:
            return False
        return True

    def _ask(self, request: Callable[[Any], T]) -> T:
        """Send a request that may be repeated until it is answered or patience ends.

        Raises:
            Fault: CHANGED or UNSUPPORTED, which the caller judges.
        """
        return self._bucket.ask("write", self._key, request, judged=_JUDGED)
