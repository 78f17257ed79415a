"""What was delivered and paid, kept for the moment in which a budget stops the program that should have used it.

In memory only, and bounded: the last `MOST` answers, `BYTES` of them in all. Nothing is decoded before somebody asks.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from wflo_nb.model import Partial

MOST = 32
BYTES = 4 << 20
#: As long as no answer is larger than this, all of them are within `BYTES`, and nothing needs to be added up.
SHARE = BYTES // MOST


class Delivered(Protocol):
    """One answer, whole or on its way."""

    @property
    def size(self) -> int:
        """Bytes that are kept of it."""
        ...

    def partial(self) -> Partial:
        """What it says."""
        ...

    def forget(self) -> None:
        """Keep nothing of it any more."""
        ...


class Answers:
    """The newest answers of an execution and of those inside it. Thread-safe."""

    def __init__(self) -> None:
        self._kept: deque[Delivered] = deque()

    def add(self, one: Delivered) -> None:
        """An answer begins to come in."""
        self._kept.append(one)
        if len(self._kept) > MOST:
            self._drop()

    def weigh(self) -> None:
        """Some answer is a large one: forget the oldest, until the rest is small enough."""
        while len(self._kept) > 1 and sum(one.size for one in tuple(self._kept)) > BYTES:
            self._drop()

    def _drop(self) -> None:
        try:
            self._kept.popleft().forget()
        except IndexError:  # another thread was quicker
            return

    def clear(self) -> None:
        """Forget all of them: nothing was stopped."""
        self._kept.clear()

    def all(self) -> tuple[Delivered, ...]:
        """The answers, newest last."""
        return tuple(self._kept)
