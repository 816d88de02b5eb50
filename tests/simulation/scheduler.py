"""Actors on a virtual clock. Each is a thread, but exactly one runs at a time, and the clock alone decides which.

An actor gives way only where it sleeps or waits for mail; storage operations sleep (``network.py``). All chance comes
from one seeded generator that is asked in the order of events, so one seed is one history.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Any, NoReturn

MAX_EVENTS = 30_000


class Killed(BaseException):
    """Raised inside an actor that has died. No handler of the product may take it for an error of its own."""


class Stuck(AssertionError):  # noqa: N818 - a verdict
    """The run does not come to an end."""


class Actor:
    """One simulated process.

    Attributes:
        on_end: called once, with True if the body came to its end and False if the actor was killed.
    """

    def __init__(self, name: str, host: str, pid: int, on_end: Callable[[bool], None] | None) -> None:
        self.name = name
        self.host = host
        self.pid = pid
        self.on_end = on_end
        self.is_dead = False
        self.is_finished = False
        self.waits_for_mail = False
        self.inbox: list[Any] = []
        self.frozen_until = 0.0
        self.turn = 0
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        return not (self.is_dead or self.is_finished)


class Scheduler:
    """Runs actors and timers in the order of the virtual clock."""

    def __init__(self) -> None:
        self.now_seconds = 0.0
        self.trace: list[str] = []
        self.failure: BaseException | None = None
        self.current: Actor | None = None
        self.actors: list[Actor] = []
        self._events: list[tuple[float, int, Actor | Callable[[], None], int]] = []
        self._num_queued = 0
        self._num_events = 0
        self._main = threading.Lock()
        self._main.acquire()
        self._is_over = False
        self._channels: dict[tuple[Actor | None, Actor], float] = {}

    # ---- for whoever sets the stage --------------------------------------------------------------------------------

    def spawn(
        self,
        name: str,
        body: Callable[[], None],
        *,
        host: str,
        delay_seconds: float = 0.0,
        on_end: Callable[[bool], None] | None = None,
    ) -> Actor:
        """A new actor, which starts after so many seconds."""
        actor = Actor(name, host, 1000 + len(self.actors), on_end)
        self.actors.append(actor)
        actor.thread = threading.Thread(target=self._live, args=(actor, body), name=name, daemon=True)
        actor.thread.start()
        self._queue(actor, delay_seconds)
        return actor

    def call_later(self, delay_seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds; it must not give way."""
        self._push(delay_seconds, action, 0)

    def kill(self, actor: Actor) -> None:
        """End another actor where it stands; what it has sent is on its way all the same."""
        if not actor.is_alive:
            return
        assert actor is not self.current
        actor.is_dead = True
        self.note(f"{actor.name} is killed")
        self._queue(actor, 0.0)
        self._tell_end(actor, False)

    def freeze(self, actor: Actor, seconds: float) -> None:
        """Stop an actor (SIGSTOP); it goes on from the same place after so long. Takes effect where it gives way."""
        actor.frozen_until = max(actor.frozen_until, self.now_seconds + seconds)
        self.note(f"{actor.name} is stopped for {seconds:.0f} s")

    def run(self) -> None:
        """Until nothing is left to happen.

        Raises:
            Stuck: too many events.
            BaseException: whatever an actor or a timer raised.
        """
        self._pass_to_next()
        self._main.acquire()
        self._tear_down()
        if self.failure is not None:
            raise self.failure

    def fail(self, error: BaseException) -> NoReturn:
        """End the run here with an error."""
        if self.failure is None:
            self.failure = error
        raise error

    def note(self, text: str) -> None:
        """A line for the trace."""
        who = self.current.name if self.current is not None else "-"
        self.trace.append(f"{self.now_seconds:10.3f}  {who:<16} {text}")

    # ---- for actors ------------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """Give way for so long."""
        actor = self._running()
        self._queue(actor, seconds)
        self._give_way(actor)

    def receive(self, timeout_seconds: float | None) -> list[Any]:
        """All mail that has come; waits for some, at most so long. Empty after the timeout."""
        actor = self._running()
        if not actor.inbox:
            actor.waits_for_mail = True
            if timeout_seconds is None:
                actor.turn += 1
            else:
                self._queue(actor, timeout_seconds)
            self._give_way(actor)
            actor.waits_for_mail = False
        mail, actor.inbox = actor.inbox, []
        return mail

    def post(self, receiver: Actor, message: Any, delay_seconds: float) -> None:
        """Send a message. What one actor sends to another arrives in the order of sending, or not at all."""
        channel = (self.current, receiver)
        arrival = max(self.now_seconds + delay_seconds, self._channels.get(channel, 0.0))
        self._channels[channel] = arrival
        self._push(arrival - self.now_seconds, lambda: self._deliver(receiver, message), 0)

    def die(self) -> NoReturn:
        """End the running actor here."""
        actor = self._running()
        actor.is_dead = True
        self.note("dies")
        self._tell_end(actor, False)
        raise Killed(actor.name)

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _running(self) -> Actor:
        actor = self.current
        if self._is_over or self.failure is not None or (actor is not None and actor.is_dead):
            raise Killed
        assert actor is not None, "only actors wait"
        return actor

    def _push(self, delay_seconds: float, target: Actor | Callable[[], None], turn: int) -> None:
        self._num_queued += 1
        heapq.heappush(self._events, (self.now_seconds + max(delay_seconds, 0.0), self._num_queued, target, turn))

    def _queue(self, actor: Actor, delay_seconds: float) -> None:
        actor.turn += 1
        self._push(delay_seconds, actor, actor.turn)

    def _deliver(self, receiver: Actor, message: Any) -> None:
        if receiver.is_alive:
            receiver.inbox.append(message)
            if receiver.waits_for_mail:
                self._queue(receiver, 0.0)

    def _give_way(self, actor: Actor) -> None:
        following = self._next()
        if following is not actor:
            self._pass_to(following)
            actor.baton.acquire()
        if actor.is_dead or self.failure is not None:
            raise Killed(actor.name)

    def _next(self) -> Actor | None:
        """Whose turn it is, after the timers that come before; None at the end."""
        try:
            while self._events and self.failure is None:
                self.now_seconds, _, target, turn = heapq.heappop(self._events)
                self._num_events += 1
                if self._num_events > MAX_EVENTS:
                    raise Stuck(f"not finished after {MAX_EVENTS} events, {self.now_seconds:.0f} virtual seconds")
                if isinstance(target, Actor):
                    if target.is_finished or turn != target.turn:
                        continue
                    if target.frozen_until > self.now_seconds and not target.is_dead:
                        self._push(target.frozen_until - self.now_seconds, target, turn)
                        continue
                    self.current = target
                    return target
                else:
                    self.current = None
                    target()
        except BaseException as error:
            self.failure = error
        return None

    def _pass_to_next(self) -> None:
        self._pass_to(self._next())

    def _pass_to(self, following: Actor | None) -> None:
        if following is None:
            self.current = None
            self._main.release()
        else:
            following.baton.release()

    def _live(self, actor: Actor, body: Callable[[], None]) -> None:
        actor.baton.acquire()
        try:
            if not actor.is_dead:
                body()
        except Killed:
            pass
        except BaseException as error:
            if self.failure is None:
                self.failure = error
        actor.is_finished = True
        if not self._is_over:
            if not actor.is_dead and self.failure is None:
                try:
                    self._tell_end(actor, True)
                except BaseException as error:
                    self.failure = error
            self._pass_to_next()

    def _tell_end(self, actor: Actor, came_to_its_end: bool) -> None:
        if actor.on_end is not None:
            on_end, actor.on_end = actor.on_end, None
            on_end(came_to_its_end)

    def _tear_down(self) -> None:
        self._is_over = True
        for actor in self.actors:
            if not actor.is_finished:
                actor.is_dead = True
                actor.baton.release()
            assert actor.thread is not None
            actor.thread.join()
