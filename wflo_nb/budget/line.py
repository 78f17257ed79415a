"""Waiting for money that calls in flight may give back: first come, first served, bounded, and never in an event loop's way.

A hold is an upper bound, so most of it comes back when its call settles. A call that does not fit at this moment therefore
stands in line for a while instead of being refused at once. Only the first in line asks the ledger; the others would only take
what it is waiting for.

A call that takes what there is (it names no output cap) lets those join the line first who are about to come, so that they share
it: calls that a program makes together reach us one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from wflo_nb.budget import loops
from wflo_nb.budget.ledger import renew_in_children
from wflo_nb.errors import ConfigurationError

#: How long a call waits for money, in seconds, where nothing else is said.
WAIT = 30.0
#: Seconds between two looks at the ledger while waiting: money may also come back through another process.
_LOOK = 0.25
#: The same in loops that nobody can wake from outside.
_SHORT_LOOK = 0.05
#: Nobody came for so many seconds: whoever was about to come stands in line. After `_GATHERED` it is enough in any case.
_QUIET = 0.05
_GATHERED = 0.25


def seconds(value: object) -> float:
    """A waiting time as a user gives it.

    Raises:
        ConfigurationError: not a finite number of zero or more seconds.
    """
    try:
        found = -1.0 if isinstance(value, bool) else float(str(value))
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigurationError(f"wait={value!s} is not a number of seconds. Use wait=0 to refuse at once, or for example wait=30.")
    return found


class Line:
    """The calls of one execution, and of those inside it, that are about to ask for money.

    Attributes:
        turns: those who stand in it, in the order in which they came.
        flying: the calls in flight, by id, each with the event loop that reads its answer, None if a thread does.
        held: what calls hold that are not over, by id: an interrupt may come before anybody else knows of it.
    """

    def __init__(self) -> None:
        self.turns: deque[Turn] = deque()
        self._came = 0.0  # when the last one joined
        self._moves = 0
        self.flying: dict[str, object | None] = {}
        self.held: dict[str, int] = {}
        self._lock = threading.RLock()  # taken directly where nobody sleeps: a condition's own `with` takes several times as long
        self._moved = threading.Condition(self._lock)
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child: who stood here stands in the parent's line."""
        self.turns, self.flying, self.held, self._lock = deque(), {}, {}, threading.RLock()
        self._moved = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self.turns)

    @property
    def waits(self) -> bool:
        """Whether anybody in it was told to wait, so that nobody may pass."""
        return any(turn.waiting for turn in self.turns)

    def turn(self, seconds: float, *, in_loop: bool = False) -> Turn:
        """A place at the end of the line, for use in a ``with`` block; it waits for `seconds` at most."""
        return Turn(self, seconds, in_loop)

    def moved(self) -> None:
        """Money came back, or somebody left the line: the first of those who wait looks again."""
        if not self.turns:
            return
        with self._lock:
            self._moves += 1
            self._moved.notify_all()
            wake = next((t.wake for t in self.turns if t.waiting), None)
        if wake is not None:  # one task only: hundreds that wake up to find that it is not their turn would keep a loop busy
            wake()


class Turn:
    """One call's place in line.

    Attributes:
        waiting: whether it was told to wait. Only those who wait are waited for: who has not asked yet may be long in coming.
        gone: whether it has left the line.
        gathering: whether it shares what there is: it lets others join the line before it asks, and those who share ask one by one,
            so that each counts the others right.
        wake: how to tell its task that something moved, while it waits.
    """

    def __init__(self, line: Line, seconds: float, in_loop: bool) -> None:
        self._line = line
        self._came = time.monotonic()
        self._until = self._came + seconds
        self._gathered = self._came + _GATHERED
        self._loop = loops.here()
        self._in_loop = in_loop
        self._seen = line._moves
        self.gone = False
        self.waiting = False
        self.gathering = False
        self.wake: Callable[[], object] | None = None

    def __enter__(self) -> Turn:
        line = self._line
        with line._lock:
            line.turns.append(self)
            line._came = self._came
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def served(self, call_id: str) -> None:
        """Step out of the line with the money for a call."""
        self._line.flying[call_id] = self._loop if self._in_loop else None
        self.leave()  # now: the task that asked may not come back to its loop for long

    def leave(self) -> None:
        """Step out of the line: served, refused or gone. May be called more than once, from any thread."""
        if self.gone:
            return
        with self._line._lock:
            if self in self._line.turns:  # a fork may have emptied the line
                self._line.turns.remove(self)
            self.gone = True
        self._line.moved()

    def look(self) -> None:
        """Note how things stand before a try, so that what moves during it is not slept through."""
        self._seen = self._line._moves

    @property
    def first(self) -> bool:
        """Whether nobody who came before is still waiting."""
        if self.gone:
            return False
        with self._line._lock:
            for other in self._line.turns:
                if other is self:
                    return True
                # A plain call made inside an event loop keeps that loop's tasks from moving: waiting for them would never end.
                blocked = other._in_loop and not self._in_loop and self._loop is not None and other._loop is self._loop
                if (other.waiting or (other.gathering and self.gathering)) and not blocked:
                    return False
        return False

    @property
    def over(self) -> bool:
        """Whether it has waited long enough, or would wait for nothing: a plain call made inside an event loop stops that loop, and
        with it every answer that the loop is to read.
        """
        if time.monotonic() >= self._until:
            return True
        if self._in_loop or self._loop is None:
            return False
        readers = list(self._line.flying.values())
        return bool(readers) and all(loop is self._loop for loop in readers)

    @property
    def settled(self) -> bool:
        """Whether those who were about to come have joined the line. A plain call made inside an event loop asks at once: its pause
        would keep that loop's tasks from coming.
        """
        return (self._loop is not None and not self._in_loop) or time.monotonic() >= self._settles()

    def _settles(self) -> float:
        return min(self._line._came + _QUIET, self._gathered)

    def _pause(self) -> float:
        until = self._until if self.settled or not self.gathering else self._settles()
        return max(0.0, min(_LOOK, until - time.monotonic()))

    def wait(self) -> None:
        """Sleep until something moved; interrupts come through."""
        with self._line._moved:
            if self._line._moves == self._seen:
                self._line._moved.wait(self._pause())

    async def wait_in_loop(self) -> None:
        """The same for a task: its event loop goes on."""
        loop = asyncio._get_running_loop()
        if loop is None:
            if not await loops.sleep_in_trio(min(self._pause(), _SHORT_LOOK)):
                self._until = self._gathered = 0.0  # a loop that we cannot sleep in: take the answer that there is now
            return
        moved = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # its loop was closed
                loop.call_soon_threadsafe(moved.set)

        self.wake = wake
        if self._line._moves != self._seen:  # `wake` was not there in time to be called
            moved.set()
        try:
            async with asyncio.timeout(self._pause()):
                await moved.wait()
        except TimeoutError:
            return
        finally:
            self.wake = None
