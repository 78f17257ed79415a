"""Locks beside a spool that all processes of a machine see: who is sending, and whether anybody works with it at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from wflo_nb.errors import StoreUnavailableError
from wflo_nb.store import gate

#: Seconds that a process waits for another one of the machine that is sending.
PATIENCE = 20.0
_open: set[int] = set()


@contextlib.contextmanager
def through(path: Path) -> Iterator[None]:
    """One at a time: two that send the same rows at once would do half of it for nothing.

    Raises:
        StoreUnavailableError: somebody is at it who does not come to an end, a process that was stopped for instance.
    """
    fd = gate.open_gate(f"{path}.door")
    _open.add(fd)
    try:
        _wait(fd)
        yield
    finally:
        _open.discard(fd)
        gate.unlock(fd)
        os.close(fd)


def _wait(fd: int) -> None:
    until = time.monotonic() + PATIENCE
    while not gate.try_lock(fd):
        if time.monotonic() >= until:
            stuck = StoreUnavailableError(
                f"Another process of this machine has been sending calls to the server for {PATIENCE:g} s and does not get on. Was it "
                "stopped (Ctrl-Z)? Let it go on, or end it."
            )
            stuck.unreachable = True
            raise stuck
        time.sleep(0.002)


def in_use(path: Path) -> Callable[[], None]:
    """Let others see that a spool is in use; returns what ends that. In a home folder that machines share, each has a spool of its
    own, and must not take another's for one that was left behind.
    """
    fd = gate.open_gate(f"{path}.alive")
    with contextlib.suppress(OSError):
        gate.share(fd)
    return lambda: os.close(fd)


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[bool]:
    """Whether nobody works with a spool; if so, nobody begins to until the end of the block."""
    fd = gate.open_gate(f"{path}.alive")
    try:
        yield gate.try_lock(fd)
    finally:
        os.close(fd)


def _after_fork_in_child() -> None:
    for fd in _open:  # copies, which would keep a door shut that the parent dies in
        os.close(fd)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
