"""What the proxy can do to a request. An ``Action`` takes request and server and gives an answer, or silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from email.utils import formatdate
from itertools import cycle

from proxy import Action, Forward, Reply, Request

_HELD_SECONDS = 120.0


def lose_request(then: Callable[[], object] = lambda: None) -> Action:
    """The request never arrives.

    Args:
        then: is called before the client learns of it; a rival may act here.
    """

    def act(request: Request, forward: Forward) -> None:
        then()

    return act


def lose_reply(then: Callable[[], object] = lambda: None) -> Action:
    """The request is carried out and its answer is lost."""

    def act(request: Request, forward: Forward) -> None:
        forward(request)
        then()

    return act


def delay(seconds: float) -> Action:
    """The request arrives late, and the client waits for it."""

    def act(request: Request, forward: Forward) -> Reply:
        time.sleep(seconds)
        return forward(request)

    return act


class Hold:
    """The client is cut off at once; the request arrives when the test says ``release``.

    Args:
        then: is called before the client learns of it; a rival may act here.
    """

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self._then = then
        self._released = threading.Event()
        self._threads: list[threading.Thread] = []
        self.late: list[Reply] = []
        """What the server said to requests that came late."""

    def __call__(self, request: Request, forward: Forward) -> None:
        def apply() -> None:
            self._released.wait(_HELD_SECONDS)
            self.late.append(forward(request))

        thread = threading.Thread(target=apply, daemon=True)
        self._threads.append(thread)
        thread.start()
        self._then()

    def release(self) -> list[Reply]:
        """Let the held requests arrive; returns the server's answers, which no client sees."""
        self._released.set()
        for thread in self._threads:
            thread.join(_HELD_SECONDS)
        return self.late


def hold(seconds: float) -> Action:
    """The client is cut off at once; the request arrives this much later."""

    def act(request: Request, forward: Forward) -> None:
        timer = threading.Timer(seconds, forward, (request,))
        timer.daemon = True
        timer.start()

    return act


def duplicate() -> Action:
    """The request arrives twice; the client sees the second answer."""

    def act(request: Request, forward: Forward) -> Reply:
        forward(request)
        return forward(request)

    return act


def error_reply(status: int, code: str) -> Reply:
    """An S3 error as XML."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>made by the fault proxy</Message><RequestId>0</RequestId></Error>"
    ).encode()
    return Reply(status, (("Content-Type", "application/xml"), ("Date", formatdate(usegmt=True))), body)


def answer(status: int, code: str, then: Callable[[], object] = lambda: None) -> Action:
    """The server refuses; the request is not carried out."""

    def act(request: Request, forward: Forward) -> Reply:
        then()
        return error_reply(status, code)

    return act


def answer_after(status: int, code: str) -> Action:
    """The request is carried out, and then the server says that it failed."""

    def act(request: Request, forward: Forward) -> Reply:
        forward(request)
        return error_reply(status, code)

    return act


conflict = answer(409, "ConditionalRequestConflict")
precondition_failed = answer(412, "PreconditionFailed")
internal_error = answer(500, "InternalError")
slow_down = answer(503, "SlowDown")
expired_token = answer(403, "ExpiredToken")
access_denied = answer(403, "AccessDenied")
clock_skewed = answer(403, "RequestTimeTooSkewed")
error_in_200 = answer(200, "InternalError")


def truncate(num_bytes: int) -> Action:
    """The connection breaks after so many bytes of the answer's body."""

    def act(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        assert len(reply.body) > num_bytes, f"the body has {len(reply.body)} bytes, {num_bytes} is no truncation"
        return replace(reply, num_bytes_sent=num_bytes)

    return act


def corrupt(position: int) -> Action:
    """One byte of the answer's body is another one."""

    def act(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        body = bytearray(reply.body)
        body[position] ^= 0x40
        return replace(reply, body=bytes(body))

    return act


def slow_stream(bytes_per_second: float) -> Action:
    """The answer trickles."""

    def act(request: Request, forward: Forward) -> Reply:
        return replace(forward(request), bytes_per_second=bytes_per_second)

    return act


def blackhole(seconds: float) -> Action:
    """The connection is taken and nothing ever comes; after this long it is cut."""

    def act(request: Request, forward: Forward) -> None:
        time.sleep(seconds)

    return act


def shift_clock(seconds: float) -> Action:
    """The server's clock is so much ahead of ours."""

    def act(request: Request, forward: Forward) -> Reply:
        reply = forward(request)
        kept = tuple(pair for pair in reply.headers if pair[0].lower() != "date")
        return replace(reply, headers=(*kept, ("Date", formatdate(time.time() + seconds, usegmt=True))))

    return act


def ignore_conditions() -> Action:
    """A store that takes conditional requests for unconditional ones."""

    def act(request: Request, forward: Forward) -> Reply:
        return forward(request.without("If-Match", "If-None-Match"))

    return act


def in_turn(actions: Sequence[Action]) -> Action:
    """One action after the other, and again from the first."""
    turns = cycle(actions)
    lock = threading.Lock()

    def act(request: Request, forward: Forward) -> Reply | None:
        with lock:
            action = next(turns)
        return action(request, forward)

    return act
