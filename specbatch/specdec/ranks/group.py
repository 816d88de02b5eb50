"""The processes that share one target: how they find each other, speak, and end together.

Rank 0 leads: it has the engine. Every other rank follows: it holds its share of the target and does what it is told.
Two ways lead from rank to rank. Tensors go through ``torch.distributed`` (nccl on CUDA, gloo on CPU). Words go through
a Unix socket in a private folder: they need neither the device nor a collective, and the kernel closes a socket when
its process dies, however it dies. So a rank learns at once that another one is gone, also while it waits in a
collective that will never end.

One death is the group's: a follower whose leader is gone ends its process; a leader that lost a follower raises
``GroupLostError`` and can do nothing more with the target. Everything stays on this machine: the socket, the file of
the rendezvous, and the loopback interface unless the user's environment names another.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from specbatch.schemas.errors import SpecbatchError
from specbatch.specdec.ranks.meeting import (
    Done,
    End,
    GroupLostError,
    Hello,
    Seat,
    Stop,
    check_build,
    hang_up,
    in_words,
    join_collectives,
    leave_collectives,
    portable,
    shut,
    wait_for_hang_up,
)

_JOIN_SECONDS = 600.0
_NOTICE_SECONDS = 5.0
"""The error of a collective may come before the news of the death that caused it."""
_LEAVE_SECONDS = 10.0


class Leader:
    """Rank 0 of a group. One thread uses it; ``abandon`` alone may be called from others.

    Args:
        on_lost: called once, from a thread of its own, when a follower is gone: whoever uses the group may be waiting
            in a collective that never ends.

    Attributes:
        num_ranks: processes of the group. free_bytes: least free memory of the followers' devices when they came.
    """

    def __init__(self, seat: Seat, on_lost: Callable[[GroupLostError], None] = lambda error: None) -> None:
        self.num_ranks = seat.num_ranks
        self._seat, self._on_lost = seat, on_lost
        self._reading = threading.Lock()
        self._lost = threading.Event()
        self._end: Exception | None = None
        self._is_closed = False
        self._have_come = False
        self._abandoned: str | None = None
        self._followers: dict[int, Connection] = {}
        self._last_words: dict[int, str] = {}  # guarded by ``_reading``
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(seat.address)
        self._server.listen(seat.num_ranks)
        self.free_bytes = 1 << 62

    def gather(self) -> None:
        """Wait until all have come.

        Raises:
            GroupLostError: one did not. SpecbatchError: of ``check_build``.
        """
        try:
            self._gather()
        except Exception as error:
            self._end = self._end or error  # the news of a death may have come first, and is why this failed
            self.close()
            raise self._end from (None if self._end is error else error)

    def _gather(self) -> None:
        check_build(self._seat)
        until = time.monotonic() + _JOIN_SECONDS
        while len(self._followers) < self.num_ranks - 1:
            if self._abandoned is not None or time.monotonic() > until:
                raise GroupLostError(self._abandoned or f"not all of {self.num_ranks} ranks came")
            if select.select([self._server], [], [], 0.5)[0]:
                connection = Connection(self._server.accept()[0].detach())
                with contextlib.suppress(EOFError, ConnectionError):  # it went before it had said who it is
                    hello: Hello = connection.recv()
                    self._followers[hello.rank] = connection
                    self.free_bytes = min(self.free_bytes, hello.free_bytes)
        threading.Thread(target=self._watch, name="specbatch-ranks", daemon=True).start()
        self._have_come = True
        if self._abandoned is not None:  # while the last one came
            raise GroupLostError(self._abandoned)
        join_collectives(self._seat, 0)

    def abandon(self, reason: str) -> None:
        """A rank has ended: wait no longer for those that have not come, or tell that one of all is lost.

        The socket says so too, with the rank's own words, and mostly before; it has some seconds to be first.
        """
        self._abandoned = reason
        if not self._have_come or self._lost.wait(_NOTICE_SECONDS) or self._is_closed:
            return
        self._end = self._end or GroupLostError(reason)
        self._lost.set()
        self._on_lost(GroupLostError(reason))

    def tell(self, message: object) -> None:
        """Say something to every follower.

        Raises:
            Exception: what the group ended with.
        """
        if self._end is not None:
            raise self._end
        for rank, connection in self._followers.items():
            try:
                connection.send(message)
            except OSError as error:
                raise self._lose(rank) from error

    def answers(self) -> None:
        """Wait for an answer of every follower.

        Raises:
            Exception: the first error among them, after all have been read: the ranks stay in step. GroupLostError
                where one is gone.
        """
        errors = []
        for rank, connection in sorted(self._followers.items()):
            try:
                with self._reading:
                    answer: Done | End = connection.recv()
                    if isinstance(answer, End):  # of an earlier forward, still under way there when this rank went on
                        self._last_words[rank] = answer.words
            except (OSError, EOFError) as error:
                raise self._lose(rank) from error
            if isinstance(answer, End):
                raise self._lose(rank)
            errors.append(answer.error)
        for found in errors:
            if found is not None:
                raise found

    def fail(self, error: Exception) -> Exception:
        """End the group for an error of this rank in the midst of a collective; what to raise instead of it."""
        is_own = isinstance(error, SpecbatchError | torch.OutOfMemoryError | MemoryError)
        self._lost.wait(0.0 if is_own else _NOTICE_SECONDS)
        if self._end is None:
            words = f"rank 0 of {self.num_ranks} failed in a forward: {in_words(error)}"
            self._end = error if isinstance(error, SpecbatchError) else GroupLostError(words)
        self.close()
        return self._end

    def close(self) -> None:
        """Let the followers go, and remove the meeting place. May be repeated."""
        if self._is_closed:
            return
        self._is_closed = True
        is_whole = self._end is None
        self._end = self._end or GroupLostError("the group has been closed")
        with contextlib.suppress(OSError, EOFError):
            for connection in self._followers.values():
                if is_whole:
                    connection.send(Stop())
            if is_whole:
                leave_collectives()
            for connection in self._followers.values():
                if is_whole:
                    connection.poll(_LEAVE_SECONDS)  # each hangs up when it has left
        for connection in self._followers.values():
            hang_up(connection)
        self._server.close()
        shutil.rmtree(self._seat.folder, ignore_errors=True)

    def _watch(self) -> None:
        ranks = {connection.fileno(): rank for rank, connection in self._followers.items()}
        gone = wait_for_hang_up(list(ranks))
        if not self._is_closed:
            self._on_lost(self._lose(ranks[gone]))

    def _lose(self, rank: int) -> GroupLostError:
        words = self._read_last_words(rank)
        error = GroupLostError(f"rank {rank} of {self.num_ranks} is gone{words and f': {words}'}")
        self._end = self._end or error
        self._lost.set()
        shutil.rmtree(self._seat.folder, ignore_errors=True)  # this process may be killed before it closes the group
        return error

    def _read_last_words(self, rank: int) -> str:
        """Why a rank says that it ends, where it still could; whichever thread comes first has read it for all."""
        connection = self._followers[rank]
        if not self._reading.acquire(timeout=1.0):
            return ""  # another thread reads them now
        try:
            while rank not in self._last_words and connection.poll(0):
                answer: Done | End = connection.recv()
                if isinstance(answer, End):
                    self._last_words[rank] = answer.words
        except (OSError, EOFError):
            pass
        finally:
            self._reading.release()
        return self._last_words.get(rank, "")


class Follower:
    """A rank that is led. Its process ends with its leader's, without a word: nothing of it is of use alone."""

    def __init__(self, seat: Seat, rank: int, free_bytes: int) -> None:
        self._is_leaving = False
        self._folder = seat.folder
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.connect(seat.address)
        self._leader = Connection(link.detach())
        self._leader.send(Hello(rank, free_bytes))
        watched = self._leader.fileno()
        threading.Thread(target=self._watch, args=(watched,), name="specbatch-leader", daemon=True).start()
        try:
            join_collectives(seat, rank)
        except Exception as error:
            self.end(error)
            raise

    def messages(self) -> Iterator[Any]:
        """What the leader says, until it says that this was all."""
        while True:
            message = self._leader.recv()
            if isinstance(message, Stop):
                self._is_leaving = True
                leave_collectives()
                hang_up(self._leader)
                return
            yield message

    def answer(self, error: Exception | None = None) -> None:
        """Tell the leader how it went."""
        self._leader.send(Done(portable(error)))

    def end(self, error: Exception) -> None:
        """Tell the leader why this rank can do no more, and end the process.

        Raising alone would not: a process of Ray's outlives what its calls raise, and the leader would wait for it.
        """
        with contextlib.suppress(OSError):
            self._leader.send(End(in_words(error)))
        shut(self._leader)

    def _watch(self, watched: int) -> None:
        wait_for_hang_up([watched])
        if not self._is_leaving:
            shutil.rmtree(self._folder, ignore_errors=True)  # a leader that was killed could not
            os._exit(1)
