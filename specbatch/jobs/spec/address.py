"""What ``--address`` may be: the head of a Ray cluster, or its Ray Jobs endpoint. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from specbatch.schemas.errors import ErrorCode, SpecbatchError

JOBS_SCHEMES = ("http", "https")


def is_jobs_endpoint(address: str | None) -> bool:
    """Whether an address is one of Ray Jobs; the scheme alone decides."""
    return address is not None and address.partition("://")[0].lower() in JOBS_SCHEMES and "://" in address


def check_address(address: str) -> str:
    """The address as it is used, without a slash at its end.

    Raises:
        SpecbatchError: JOB_CONFIG where it cannot be one, or holds a password.
    """
    if "://" not in address:
        return address
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme.lower() not in JOBS_SCHEMES or not parts.hostname or port == 0:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--address {_without_password(address)}: give the head as HOST:PORT, or auto, or Ray Jobs as "
            "http://HEAD:8265; Ray Client addresses are not supported",
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--address {_without_password(address)}: it is kept with the job, so that it must hold no password and no "
            "query; a token goes into RAY_AUTH_TOKEN_PATH",
        )
    return address.rstrip("/")


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    host = rest.partition("?")[0].rpartition("@")[2]
    return f"{scheme}://{host}"
