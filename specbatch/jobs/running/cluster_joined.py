"""A Ray cluster that runs already: joined for the length of a job, left as it was."""

from __future__ import annotations

import contextlib
import importlib
import logging
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbatch.jobs.running.cluster_view import ClusterView, ClusterWatch
from specbatch.jobs.running.taming import assert_not_connected, first_line, tamed_ray
from specbatch.jobs.spec.address import check_address
from specbatch.schemas.errors import ErrorCode, SpecbatchError

LOST_SECONDS = 20.0
"""A head that does not answer for so long has gone; after 60 s Ray would end this process."""
_LEAVE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class JoinedCluster:
    """A Ray that was running; it goes on after the job."""

    address: str
    logs: Path
    node_id: str
    watch: ClusterWatch

    def view(self) -> ClusterView | None:
        """The nodes as last seen."""
        return self.watch.view

    def check(self) -> None:
        """Assert that the head answers, and that it counts this machine among its nodes.

        Raises:
            SpecbatchError: JOB_CLUSTER_LOST.
        """
        view = self.watch.view
        if self.watch.silent_seconds > LOST_SECONDS:
            what = f"the head of the Ray cluster {self.address} has not answered for {LOST_SECONDS:.0f} s"
        elif view is not None and not view.is_alive(self.node_id):
            what = f"the Ray node of this machine has left the cluster {self.address}"
        else:
            return
        raise SpecbatchError(
            ErrorCode.JOB_CLUSTER_LOST,
            f"{what}; finished parts are kept, run the same command to go on once the cluster is there",
        )


@contextlib.contextmanager
def join_cluster(address: str, say: Callable[[str], None] = lambda line: None) -> Iterator[JoinedCluster]:
    """Connect to a running Ray cluster for the length of the block; our actors end with it.

    specbatch has to be installed on the nodes, and this machine has to be one of them (it may offer nothing).

    Args:
        address: ``HOST:PORT`` of the head, or ``auto``.
        say: takes a warning where the cluster knows no tokens.

    Raises:
        SpecbatchError: JOB_CONFIG where the address cannot be one, or this process is connected to a Ray already;
            JOB_CLUSTER_LOST where the cluster is not to be reached; JOB_CLUSTER_DENIED where it refuses the token.
    """
    import ray

    assert_not_connected()
    if "://" in check_address(address):
        raise SpecbatchError(ErrorCode.JOB_CONFIG, f"--address {address}: a driver joins the head, HOST:PORT or auto")
    with tempfile.TemporaryDirectory(prefix="specbatch-join-") as folder, contextlib.chdir(folder), tamed_ray():
        try:
            ray.init(
                address=address,
                namespace=f"specbatch-{secrets.token_hex(8)}",
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                configure_logging=True,
            )
        except ray.exceptions.AuthenticationError as error:
            raise SpecbatchError(
                ErrorCode.JOB_CLUSTER_DENIED,
                f"the Ray cluster {address} refuses this machine ({first_line(error)}); see RAY_AUTH_TOKEN_PATH",
            ) from error
        except Exception as error:
            raise _out_of_reach(address, error) from error
    try:
        worker: Any = importlib.import_module("ray._private.worker")
        context = ray.get_runtime_context()
        if not uses_tokens():
            say(without_tokens(f"the Ray cluster {context.gcs_address}"))
        with _watched(address, context.gcs_address) as watch:
            yield JoinedCluster(address, Path(worker._global_node.get_logs_dir_path()), context.get_node_id(), watch)
    finally:
        _leave()


@contextlib.contextmanager
def _watched(address: str, gcs_address: str) -> Iterator[ClusterWatch]:
    watch = ClusterWatch(gcs_address)
    try:
        watch.start()
    except Exception as error:  # the head went in the moment in which it was joined
        raise _out_of_reach(address, error) from error
    try:
        yield watch
    finally:
        watch.stop()


def _out_of_reach(address: str, error: Exception) -> SpecbatchError:
    return SpecbatchError(
        ErrorCode.JOB_CLUSTER_LOST, f"the Ray cluster {address} is not to be reached: {first_line(error)}"
    )


def uses_tokens() -> bool:
    """Whether this process shows a token to Ray. A cluster that wants one lets nobody in without."""
    utils: Any = importlib.import_module("ray._private.authentication.authentication_utils")
    return bool(utils.is_token_auth_enabled())


def without_tokens(what: str) -> str:
    """The warning for a cluster that takes calls from everybody."""
    return f"{what} asks for no token: whoever reaches its ports can run code there; start it with RAY_AUTH_MODE=token"


def _leave() -> None:
    """Disconnect. Where the head has gone Ray would wait for it: that is bounded."""
    import ray

    leaving = threading.Thread(target=ray.shutdown, name="specbatch-leave", daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)
