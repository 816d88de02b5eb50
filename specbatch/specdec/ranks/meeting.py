"""Where the ranks of one target meet: the private folder with its socket, the rendezvous, and the words that are said.

``group`` has what leader and followers do with them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # named in its documentation

from specbatch.schemas.errors import ErrorCode, SpecbatchError

_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Collectives begin when all ranks have been told; one that lasts so long waits for a rank that hangs."""
_MAX_FOLDER = 80
"""The path of a socket may have 107 characters."""
_SHORT_FOLDER = "/tmp"  # noqa: S108 - a fresh private folder is made below it


class GroupLostError(Exception):
    """A rank is gone or out of step, and the target with it: nothing that fewer rows in flight could mend."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where the ranks of one group meet.

    Attributes:
        folder: on this machine, for this user alone.
        num_ranks: processes of the group, the leader too. device: ``cpu`` or ``cuda``.
    """

    folder: str
    num_ranks: int
    device: str

    @classmethod
    def make(cls, num_ranks: int, device: str) -> Seat:
        """A new meeting place; the leader removes it when it closes the group."""
        parent = None if len(tempfile.gettempdir()) < _MAX_FOLDER else _SHORT_FOLDER
        return cls(tempfile.mkdtemp(prefix="specbatch-ranks-", dir=parent), num_ranks, device)

    @property
    def address(self) -> str:
        """Path of the leader's socket."""
        return str(Path(self.folder) / "leader")


@dataclass(frozen=True, slots=True)
class Hello:
    """A follower's first word. ``free_bytes``: of its device, before anything is loaded."""

    rank: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Done:
    """A follower's answer; ``error`` where it could not do as it was told."""

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class End:
    """The last word of a follower that ends for an error, in ``words``."""

    words: str


class Stop:
    """The last word of a leader."""


def shut(connection: Connection) -> None:
    """End a connection for both sides now. What was said before can still be read, and who watches it is woken."""
    with contextlib.suppress(OSError), socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.shutdown(socket.SHUT_RDWR)


def hang_up(connection: Connection) -> None:
    """End a connection and forget it; closed alone, it would live on while a thread still watches it."""
    shut(connection)
    connection.close()


def wait_for_hang_up(files: list[int]) -> int:
    """Wait until the other end of a socket is closed, reading nothing; which it is."""
    poll = select.poll()
    for file in files:
        poll.register(file, 0)  # a hang-up is told without being asked for
    while True:
        for file, _ in poll.poll():
            return file


def divided_device() -> str:
    """Kind of the devices over which the library divides models here, whatever is asked for.

    It is the kind that torch was built for: hiding its devices makes no difference.
    """
    return str(torch._C._get_accelerator().type)


def device_index_among(own_ids: Sequence[int | str], visible: str | None, num_seen: int) -> int:
    """Which of the CUDA devices that a process sees is its own.

    Args:
        own_ids: the devices that Ray has given it, by number or by the names in ``visible``; empty without Ray.
        visible: its ``CUDA_VISIBLE_DEVICES``, None where all are visible. num_seen: devices that it sees.
    """
    if num_seen <= 1 or not own_ids:
        return 0
    own = str(own_ids[0])
    names = [name.strip() for name in visible.split(",")] if visible is not None else []
    return names.index(own) if own in names else int(own)


def take_device(device: str, index: int) -> torch.device:
    """Bind this thread, and what the library loads in this process, to one device; which it is.

    Args:
        device: ``cpu`` or ``cuda``. index: of the device among those of its kind that this process sees.
    """
    # The library binds to what this says before it loads; a value of whoever started this process is another's.
    os.environ["LOCAL_RANK"] = str(index)
    if device != "cuda":
        return torch.device(device)
    torch.cuda.set_device(index)
    return torch.device(device, index)


def check_build(seat: Seat) -> None:
    """Refuse a group on other devices than those over which the library divides models here.

    Raises:
        SpecbatchError: JOB_CONFIG.
    """
    divided = divided_device()
    if divided != seat.device:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"--tensor-parallel-size {seat.num_ranks} cannot divide a target over {seat.device} devices here, since "
            f"torch is built for {divided}; use --device {divided}, or a build of torch for {seat.device}",
        )


def join_collectives(seat: Seat, rank: int) -> None:
    """Make the process group of a rank, on the device that it has taken."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
    dist.init_process_group(
        _BACKENDS[seat.device],
        store=FileStore(str(Path(seat.folder) / "rendezvous"), seat.num_ranks),
        rank=rank,
        world_size=seat.num_ranks,
        timeout=_COLLECTIVE_TIMEOUT,
    )


def leave_collectives() -> None:
    """End this process's part in the process group, all ranks at once."""
    if dist.is_initialized():
        dist.destroy_process_group()


def in_words(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def portable(error: Exception | None) -> Exception | None:
    """An error that the leader's process surely can read: ours and those of memory as they are."""
    if error is None or isinstance(error, SpecbatchError | MemoryError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(str(error))
    return RuntimeError(in_words(error))
