"""Waiting for money that calls in flight may give back: first come, first served, bounded, and never in an event loop's way.

A hold is an upper bound, so most of it comes back when its call settles. A call that does not fit at this moment therefore
stands in line for a while instead of being refused at once. Only the first in line asks the ledger; the others would only take
what it is waiting for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from wflo_nb.errors import ConfigurationError

#: How long a call waits for money, in seconds, where nothing else is said.
WAIT = 30.0
#: Seconds between two looks at the ledger while waiting: money may also come back through another process.
_LOOK = 0.25


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
    """The calls of one execution, and of those inside it, that are about to ask for money."""

    def __init__(self) -> None:
        self._turns: deque[Turn] = deque()
        self._moved = threading.Condition()
        self._wakers: set[Callable[[], object]] = set()

    def __len__(self) -> int:
        return len(self._turns)

    def turn(self, seconds: float) -> Turn:
        """A place at the end of the line, for use in a ``with`` block; it waits for `seconds` at most."""
        return Turn(self, seconds)

    def moved(self) -> None:
        """Money came back, or somebody left the line: whoever waits looks again."""
        if not self._turns:
            return
        with self._moved:
            self._moved.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()


class Turn:
    """One call's place in line."""

    def __init__(self, line: Line, seconds: float) -> None:
        self._line = line
        self._until = time.monotonic() + seconds

    def __enter__(self) -> Turn:
        self._line._turns.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line._turns.remove(self)
        self._line.moved()

    @property
    def first(self) -> bool:
        """Whether everybody who came before is served."""
        return self._line._turns[0] is self

    @property
    def over(self) -> bool:
        """Whether it has waited long enough."""
        return time.monotonic() >= self._until

    def _pause(self) -> float:
        return max(0.0, min(_LOOK, self._until - time.monotonic()))

    def wait(self) -> None:
        """Sleep until something moved; interrupts come through."""
        with self._line._moved:
            self._line._moved.wait(self._pause())

    async def wait_in_loop(self) -> None:
        """The same for a task: its event loop goes on."""
        loop = asyncio.get_running_loop()
        moved = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(moved.set)

        with self._line._moved:
            self._line._wakers.add(wake)
        try:
            async with asyncio.timeout(self._pause()):
                await moved.wait()
        except TimeoutError:
            return
        finally:
            with self._line._moved:
                self._line._wakers.discard(wake)
