"""What an S3 request's failure means, and the line that the user gets for it.

A failed request is sorted by what may be done about it. Nothing that the store or a library wrote is repeated to the
user except the error's code: messages of others can hold credentials.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from specbatch.schemas.errors import ErrorCode, SpecbatchError

Role = Literal["input", "output"]

REQUEST_ERRORS = (boto.ClientError, boto.BotoCoreError, ResponseParserError, HTTPError, OSError)
"""Whatever a request raises. OSError: a connection reset while a body is read comes through unwrapped."""

_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "RequestExpired", "TokenRefreshRequired"}
)
_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_PASSING = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "InternalError",
        "ServiceUnavailable",
        "IncompleteBody",
        "BadDigest",  # the bytes were damaged on their way
        "XAmzContentSHA256Mismatch",
    }
)
_EXPIRED_ERRORS = (boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError)
_NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.NoAuthTokenError)
_SETTINGS_ERRORS = (
    boto.ParamValidationError,
    boto.InvalidEndpointConfigurationError,
    boto.EndpointProviderError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.NoRegionError,
)


class FaultKind(Enum):
    """What may be done about a failed request."""

    ABSENT = "absent"  # the answer to a question: no object of this name
    CHANGED = "changed"  # 412: the precondition does not hold, perhaps because our own write came first
    BUSY = "busy"  # 409: another write is under way, nothing is known
    RANGE = "range"  # 416: the object is shorter
    RETRY = "retry"  # it may go away; whether a write was done is unknown
    EXPIRED = "expired"  # the credentials want renewing
    NO_CREDENTIALS = "no credentials"
    DENIED = "denied"
    NO_BUCKET = "no bucket"
    SKEW = "skew"
    UNSUPPORTED = "unsupported"
    REFUSED = "refused"  # anything else that the store will refuse again


class Fault(Exception):  # noqa: N818 - it is judged before it becomes an error
    """One failed request."""

    def __init__(self, kind: FaultKind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


def is_bare(error: boto.ClientError) -> bool:
    """Whether the answer said its status only: an answer to HEAD has no body that could name the error."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code == "" or code.isdigit()


def fault_of(error: Exception) -> Fault:
    """Sort what a request raised."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        return Fault(_kind_of(code, status), f"{code} (status {status})" if code.isalnum() else f"status {status}")
    if isinstance(error, _EXPIRED_ERRORS):
        return Fault(FaultKind.EXPIRED, type(error).__name__)
    if isinstance(error, _NO_CREDENTIALS):
        return Fault(FaultKind.NO_CREDENTIALS, "there are no credentials")
    if isinstance(error, _SETTINGS_ERRORS):
        return Fault(FaultKind.REFUSED, type(error).__name__)
    if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Fault(FaultKind.REFUSED, "its TLS certificate is not trusted")
    return Fault(FaultKind.RETRY, _words(type(error).__name__))


def _kind_of(code: str, status: int) -> FaultKind:
    named = {
        "NoSuchKey": FaultKind.ABSENT,
        "NoSuchBucket": FaultKind.NO_BUCKET,
        "PreconditionFailed": FaultKind.CHANGED,
        "ConditionalRequestConflict": FaultKind.BUSY,
        "OperationAborted": FaultKind.BUSY,
        "RequestTimeTooSkewed": FaultKind.SKEW,
        "NotImplemented": FaultKind.UNSUPPORTED,
        **dict.fromkeys(_EXPIRED, FaultKind.EXPIRED),
        **dict.fromkeys(_DENIED, FaultKind.DENIED),
        **dict.fromkeys(_PASSING, FaultKind.RETRY),
    }
    if code in named:
        return named[code]
    by_status = {
        401: FaultKind.DENIED,
        403: FaultKind.DENIED,
        404: FaultKind.RETRY,  # not S3's own words: a proxy's page must not make an object "absent"
        408: FaultKind.RETRY,
        409: FaultKind.BUSY,
        412: FaultKind.CHANGED,
        416: FaultKind.RANGE,
        429: FaultKind.RETRY,
        501: FaultKind.UNSUPPORTED,
    }
    return by_status.get(status, FaultKind.RETRY if status >= 500 or status < 300 else FaultKind.REFUSED)


def _words(name: str) -> str:
    """``ReadTimeoutError`` as "read timeout"."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name.removesuffix("Error"))
    return words.strip() or "no answer"


def error_of(fault: Fault, doing: str, where: str, endpoint: str, role: Role) -> SpecbatchError:
    """The user's line for a fault that stays.

    Args:
        doing: such as ``"read"``.
        where: the object or folder as a URI.
        endpoint: scheme and host of the store.
        role: whether a missing or changed object is the job's input or its output.
    """
    again = "then run the same command again"
    match fault.kind:
        case FaultKind.NO_CREDENTIALS:
            code = ErrorCode.JOB_STORE_DENIED
            text = (
                f"cannot {doing} {where}: there are no credentials for the store at {endpoint}; set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
            )
        case FaultKind.DENIED:
            code = ErrorCode.JOB_STORE_DENIED
            text = (
                f"the store at {endpoint} refuses to {doing} {where}: {fault.reason}; grant these credentials "
                "s3:GetObject, s3:PutObject and s3:ListBucket there, or use others"
            )
        case FaultKind.NO_BUCKET:
            code = ErrorCode.JOB_INPUT_MISSING if role == "input" else ErrorCode.JOB_OUTPUT_MISSING
            text = f"cannot {doing} {where}: the store at {endpoint} has no such bucket; check the name or make it"
        case FaultKind.SKEW:
            code = ErrorCode.STORE_CLOCK_SKEW
            text = f"cannot {doing} {where}: this machine's clock is too far from the store's at {endpoint}; set it"
        case FaultKind.UNSUPPORTED:
            code = ErrorCode.STORE_UNFIT
            text = (
                f"cannot {doing} {where}: the store at {endpoint} does not support it ({fault.reason}); "
                "use another store, or --single-writer if it is conditional writes that it lacks"
            )
        case FaultKind.CHANGED | FaultKind.ABSENT | FaultKind.RANGE:
            code = ErrorCode.JOB_INPUT_CHANGED if role == "input" else ErrorCode.JOB_INTEGRITY
            text = f"{where} was replaced or deleted while it was in use; put the old one back or start a new job"
        case FaultKind.EXPIRED:
            code = ErrorCode.JOB_STORE_LOST
            text = f"cannot {doing} {where}: the credentials have expired ({fault.reason}); renew them, {again}"
        case FaultKind.REFUSED:
            code = ErrorCode.JOB_CONFIG
            text = f"the store at {endpoint} refuses to {doing} {where}: {fault.reason}; check endpoint and region"
        case _:
            code = ErrorCode.JOB_STORE_LOST
            text = f"cannot {doing} {where}: the store at {endpoint} does not answer as it should ({fault.reason}); "
            text += f"check the network, {again}"
    return SpecbatchError(code, text)
