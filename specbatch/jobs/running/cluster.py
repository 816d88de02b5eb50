"""The Ray of a job: one of our own on this machine, or one that runs already.

Our own has a private token and a private folder; nothing is left behind and nothing written to the home folder. The
user's current directory is kept off the workers' path: Ray puts it first there, and a file of theirs called
``torch.py`` must not be imported by ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specbatch.jobs.output.lease import process_started
from specbatch.jobs.planning.machine import count_cores
from specbatch.jobs.running.cluster_joined import join_cluster
from specbatch.jobs.running.cluster_view import ClusterView
from specbatch.jobs.running.taming import assert_not_connected, first_line, tamed_ray
from specbatch.schemas.errors import ErrorCode, SpecbatchError

OBJECT_STORE_BYTES = 80 << 20
"""Ray's least; only descriptors and receipts pass through it."""
_VITAL_PROCESSES = frozenset({"raylet", "gcs_server"})
_FOLDER_PREFIX = "specbatch-"
_OWNER_NAME = "owner"
_MAX_TEMP_PATH = 20
"""Ray puts Unix sockets up to 86 characters deeper, and their paths may have 107."""

_token = secrets.token_hex(32)


class Cluster(Protocol):
    """A Ray that runs; ``logs`` is the folder where its processes on this host write."""

    @property
    def logs(self) -> Path: ...

    def check(self) -> None:
        """Assert that Ray itself is there: without it calls to workers wait for ever.

        Raises:
            SpecbatchError: JOB_CLUSTER_LOST.
        """

    def view(self) -> ClusterView | None:
        """The nodes as last seen; None where there is this machine alone."""


@contextlib.contextmanager
def open_cluster(
    address: str | None, num_gpus: int, say: Callable[[str], None] = lambda line: None
) -> Iterator[Cluster]:
    """A Ray for the length of the block: the one at an address, or a new one on this machine where that is None.

    Args:
        num_gpus: CUDA devices of this machine to offer to workers; a cluster that runs knows its own.
        say: takes single lines for the user.

    Raises:
        SpecbatchError: as ``local_cluster`` and ``join_cluster``.
    """
    with local_cluster(num_gpus) if address is None else join_cluster(address, say) as cluster:
        yield cluster


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """A Ray of our own on this machine."""

    logs: Path

    def view(self) -> ClusterView | None:
        """None: it is this machine alone."""
        return None

    def check(self) -> None:
        """Assert that Ray's own processes live.

        Raises:
            SpecbatchError: JOB_CLUSTER_LOST.
        """
        worker: Any = importlib.import_module("ray._private.worker")
        for kind, _ in worker._global_node.dead_processes():
            if kind in _VITAL_PROCESSES:
                raise SpecbatchError(
                    ErrorCode.JOB_CLUSTER_LOST,
                    f"Ray's {kind} process died (killed, or out of memory); finished parts are kept, "
                    "run the same command to go on",
                )


@contextlib.contextmanager
def local_cluster(num_gpus: int) -> Iterator[LocalCluster]:
    """Start Ray on this machine for the length of the block.

    Args:
        num_gpus: CUDA devices to offer to workers.

    Raises:
        SpecbatchError: JOB_CONFIG where this process is connected to a Ray already; JOB_CLUSTER_LOST where Ray
            does not start.
    """
    import ray

    assert_not_connected()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=_short_temp_folder()))
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # before there is an owner: only then does a sweep look at the folder
        (folder / _OWNER_NAME).write_text(f"{os.getpid()} {process_started(os.getpid())}")
        _sweep(folder.parent)
        with _environment(folder):
            try:
                with contextlib.chdir(folder), tamed_ray(), _loopback_only(), _few_processes():
                    _start(folder, num_gpus)
                yield LocalCluster(folder / "session_latest" / "logs")
            finally:
                ray.shutdown()
    finally:
        _remove(folder)
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove the folder of a run; where Ray's last processes still write, ``owner`` stays, for a later run to sweep."""
    with contextlib.suppress(OSError):  # another run sweeps it too
        others = [entry for entry in folder.iterdir() if entry.name != _OWNER_NAME]
        for entry in others:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if [entry.name for entry in folder.iterdir()] == [_OWNER_NAME]:
            shutil.rmtree(folder)


def _sweep(parent: Path) -> None:
    """Remove the folders of runs that were killed before they could.

    A living owner holds a lock on its folder. Its number alone does not tell: another container that shares the folder
    for temporary files may count its processes for itself.
    """
    for owner in parent.glob(f"{_FOLDER_PREFIX}*/{_OWNER_NAME}"):
        with contextlib.suppress(OSError, ValueError):  # it lives, is another user's, or another run sweeps it too
            handle = os.open(owner.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pid, started = owner.read_text().split(" ", 1)
                if process_started(int(pid)) != started:
                    _remove(owner.parent)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have Ray listen on this machine only, as it does on macOS: on Linux its ports are open to the network otherwise.

    Ray has no setting for it; an address of 127.0.0.1 is turned into the one that others see.
    """
    with _replaced(importlib.import_module("ray._private.ray_constants"), "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def _few_processes() -> Iterator[None]:
    """Start no autoscaler, no forwarder of logs and no server for dashboards: nobody would ever ask them.

    Each is an interpreter that imports Ray, a second or two of processor just when the workers want it. Ray would also
    import what its agents need into this process, to see whether it is installed: it is, with ``ray[default]``.
    """
    node: Any = importlib.import_module("ray._private.node").Node
    utils: Any = importlib.import_module("ray._private.utils")
    names = [name for name in ("start_monitor", "start_log_monitor", "start_api_server") if hasattr(node, name)]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(_replaced(node, name, lambda self, **options: None))
        if hasattr(utils, "get_dashboard_dependency_error"):
            stack.enter_context(_replaced(utils, "get_dashboard_dependency_error", lambda: None))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _start(folder: Path, num_gpus: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=count_cores(),
            num_gpus=num_gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            configure_logging=True,
            _temp_dir=str(folder),
        )
    except Exception as error:
        raise SpecbatchError(
            ErrorCode.JOB_CLUSTER_LOST, f"Ray does not start on this machine: {first_line(error)}"
        ) from error


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What Ray reads and its processes inherit; put back afterwards: a notebook may start a Ray of its own later.

    Ray has read its settings when it was imported, perhaps long ago, and keeps the first token that it met: it is told
    to read them again.
    """
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A process for each core, for tasks that never come; workers start theirs when they are wanted.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Without it Ray hides the GPUs from actors that reserve none, and warns that it will stop doing so.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # torch makes this folder when it is imported, in the shared folder for temporary files unless told otherwise.
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor")),
        # A GCS that died with the driver does not come back; Ray's agents need not look for it for a minute.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        # A token elsewhere, or a cluster address, is the user's, not this cluster's.
        "RAY_AUTH_TOKEN_PATH": None,
        "RAY_ADDRESS": None,
    }
    before = {name: os.environ.get(name) for name in wanted}
    _set_environment(wanted)
    _reread_environment()
    try:
        yield
    finally:
        _set_environment(before)
        _reread_environment()


def _reread_environment() -> None:
    raylet: Any = importlib.import_module("ray._raylet")  # its stub file leaves both out
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _short_temp_folder() -> str | None:
    """The usual folder for temporary files, unless its name is too long for the sockets that Ray makes in it."""
    return "/tmp" if len(tempfile.gettempdir()) > _MAX_TEMP_PATH else None
