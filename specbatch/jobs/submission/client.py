"""Ray Jobs over HTTP: submit, look, and every failure as one line with a code."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from specbatch.jobs.running.cluster_joined import uses_tokens, without_tokens
from specbatch.jobs.running.taming import first_line
from specbatch.schemas.errors import ErrorCode, SpecbatchError

_TIMEOUT_SECONDS = (10.0, 120.0)
"""To connect, and between two bytes: an upload takes its time on the other side."""
_TRIES = 3
_PAUSE_SECONDS = 2.0
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_OTHER_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Ray's client would obey these variables instead of the address that it is given."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as Ray Jobs sees it.

    Attributes:
        status: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: of the driver; None while there is none, or where it was killed.
    """

    status: str
    message: str
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _ENDED


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What Ray Jobs is asked for.

    Attributes:
        package: folder of the package that goes along.
        environment: variables for driver and workers; no secret is among them.
        num_cpus, memory_bytes: that the driver reserves; None for nothing.
    """

    submission_id: str
    entrypoint: str
    package: Path
    environment: Mapping[str, str]
    metadata: Mapping[str, str]
    num_cpus: float | None = None
    memory_bytes: int | None = None


class JobsClient:
    """One endpoint of Ray Jobs. The token comes from ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``, as Ray reads it.

    Args:
        address: ``http://HOST:PORT``.

    Raises:
        SpecbatchError: JOB_CLUSTER_LOST, it does not answer; JOB_CLUSTER_DENIED, it refuses the token. All methods.
    """

    def __init__(self, address: str, *, sleep: Callable[[float], object] = time.sleep) -> None:
        self.address = address
        self._sleep = sleep
        with self._told_in_one_line(), _without_other_addresses():
            self._client = _client_class()(address)

    def submit(self, request: JobRequest) -> None:
        """Have a job started, once, however often the request has to be sent: its id is settled beforehand."""
        resources: dict[str, Any] = {}
        if request.num_cpus:
            resources["entrypoint_num_cpus"] = request.num_cpus
        if request.memory_bytes:
            resources["entrypoint_memory"] = request.memory_bytes
        for attempt in range(1, _TRIES + 1):
            try:
                with self._told_in_one_line():
                    self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=request.submission_id,
                        runtime_env={"py_modules": [str(request.package)], "env_vars": dict(request.environment)},
                        metadata=dict(request.metadata),
                        **resources,
                    )
                return
            except SpecbatchError as error:
                # It may have come through for all that: the reply was lost, or another submit was quicker.
                if error.code is not ErrorCode.JOB_CLUSTER_LOST or attempt == _TRIES:
                    raise
            self._sleep(_PAUSE_SECONDS)
            if self.find(request.submission_id) is not None:
                return

    def find(self, submission_id: str) -> JobState | None:
        """The state of a job; None where the endpoint knows none of this name."""
        with self._told_in_one_line(missing=True) as told:
            info = self._client.get_job_info(submission_id)
        if told.is_missing:
            return None
        return JobState(str(info.status.value), info.message or "", info.driver_exit_code)

    def last_error(self, submission_id: str) -> str | None:
        """The last line of a driver's log that tells of an error, in words of ours; None where there is none."""
        lines: list[str] = []
        with contextlib.suppress(SpecbatchError), self._told_in_one_line():
            lines = self._client.get_job_logs(submission_id).splitlines()
        return next((line for line in reversed(lines) if line.startswith("error: ")), None)

    def has_gpus(self) -> bool:
        """Whether a node of the cluster offers a GPU."""
        state = importlib.import_module("ray.util.state")
        with self._told_in_one_line(), _without_other_addresses():
            nodes = state.list_nodes(address=self.address, limit=10_000, raise_on_missing_output=False)
            return any(node.state == "ALIVE" and node.resources_total.get("GPU", 0) > 0 for node in nodes)

    def warnings(self) -> list[str]:
        """What the user should know about who may talk to the cluster, and who may listen."""
        if not uses_tokens():
            return [without_tokens(f"the Ray cluster {self.address}")]
        parts = urlsplit(self.address)
        if parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
            return [f"the token goes to {self.address} unencrypted: use https, or a tunnel to localhost"]
        return []

    @contextlib.contextmanager
    def _told_in_one_line(self, *, missing: bool = False) -> Iterator[_Told]:
        """Turn what Ray and requests raise into errors of ours; under ``missing`` a 404 is an answer."""
        exceptions: Any = importlib.import_module("ray.exceptions")
        transport: Any = importlib.import_module("requests.exceptions")
        state: Any = importlib.import_module("ray.util.state.exception")
        told = _Told()
        try:
            yield told
        except exceptions.AuthenticationError as error:
            raise SpecbatchError(
                ErrorCode.JOB_CLUSTER_DENIED,
                f"Ray Jobs at {self.address} refuse this machine ({first_line(error)}); set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH",
            ) from error
        except (ConnectionError, transport.RequestException) as error:
            raise SpecbatchError(
                ErrorCode.JOB_CLUSTER_LOST, f"Ray Jobs at {self.address} are not to be reached: {first_line(error)}"
            ) from error
        except (RuntimeError, ValueError, exceptions.RayError, state.RayStateApiException) as error:
            if missing and "status code 404" in str(error):
                told.is_missing = True
                return
            raise SpecbatchError(
                ErrorCode.JOB_CLUSTER_LOST, f"Ray Jobs at {self.address} failed: {_last_line(error)}"
            ) from error


@dataclass(slots=True)
class _Told:
    is_missing: bool = False


def _client_class() -> Any:
    """Ray's client with a limit to its patience, and without its talk about uploads."""
    base: Any = importlib.import_module("ray.job_submission").JobSubmissionClient
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    class Client(base):  # type: ignore[misc]
        def _do_request(self, method: str, endpoint: str, **settings: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _TIMEOUT_SECONDS, **settings})

    return Client


@contextlib.contextmanager
def _without_other_addresses() -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in _OTHER_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _last_line(error: Exception) -> str:
    """The line that says what was wrong: a server's answer holds its whole trace."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
