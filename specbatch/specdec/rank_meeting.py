"""Where the ranks of one target meet: the private folder with its socket, the rendezvous, and the words that are said.

``ranks`` has what leader and followers do with them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import tempfile
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


class Stop:
    """The last word of a leader."""


def hang_up(connection: Connection) -> None:
    """End a connection for both sides now; closed alone, it would live on while a thread still watches it."""
    with contextlib.suppress(OSError), socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.shutdown(socket.SHUT_RDWR)
    connection.close()


def wait_for_hang_up(files: list[int]) -> int:
    """Wait until the other end of a socket is closed, reading nothing; which it is."""
    poll = select.poll()
    for file in files:
        poll.register(file, 0)  # a hang-up is told without being asked for
    while True:
        for file, _ in poll.poll():
            return file


def join_collectives(seat: Seat, rank: int) -> None:
    """Make the process group of a rank, on the device that is its own.

    Raises:
        SpecbatchError: JOB_CONFIG where the library would take another device than the one asked for.
    """
    accelerator = torch._C._get_accelerator().type  # what the library divides models over, whatever was asked for
    if accelerator != seat.device:
        raise SpecbatchError(
            ErrorCode.JOB_CONFIG,
            f"tensor parallel on {seat.device} is not possible in a process that sees {accelerator} devices; "
            f"use --device {accelerator}, or hide them (CUDA_VISIBLE_DEVICES=)",
        )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
    if seat.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
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
