"""Rows of a capture matrix in which something is wrong, and one in which nothing is. They run in a worker of the matrix."""

from __future__ import annotations

import os
import threading
from typing import Any

from benchmarks.capture.cells import FORMS, SYNC, Absent, Place, Row, Work
from benchmarks.capture.openai_rows import chat
from wflo_nb import _context
from wflo_nb.capture import transports

NONE = Absent("not needed here")


def unseen(place: Place) -> None:
    while transports._users:
        transports.uninstall()
    chat(place)


def leaves_a_thread(place: Place) -> None:
    if _context.current() is not None:
        threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()
    chat(place)


def never_lets_go(place: Place) -> None:
    threading.Thread(target=threading.Event().wait, name="for ever").start()
    chat(place)


async def leaves_a_task(place: Place) -> None:
    import asyncio

    if _context.current() is not None:
        kept.append(asyncio.create_task(asyncio.sleep(3600)))
    chat(place)


kept: list[Any] = []


def goes_on_by_itself(place: Place) -> None:
    """Refused or not, it sends the call again where nobody looks."""
    try:
        chat(place)
    except Exception:
        unseen(place)
        raise


def goes_on_midway(place: Place) -> None:
    """The same, but only after a call that was paid."""
    chat(place)
    goes_on_by_itself(place)


def wants_a_budget(place: Place) -> None:
    if _context.current() is None:
        raise ValueError("this form works under a budget only")
    chat(place)


def dies(place: Place) -> None:
    if _context.current() is not None:
        os._exit(3)
    chat(place)


def row(name: str, work: Work, **more: Any) -> Row:
    return Row(name, {**dict.fromkeys(FORMS, NONE), SYNC: work}, ("openai",), **more)


ROWS = [
    row("right", chat),
    row("unseen", unseen),
    row("a thread", leaves_a_thread),
    row("a process", never_lets_go),
    row("a task", leaves_a_task),
    row("goes on", goes_on_by_itself),
    row("goes on midway", goes_on_midway),
    row("fails bare", wants_a_budget),
    row("no usage", chat, behave={"usage": "missing"}),
    row("another price", chat, behave={"answered_model": "gpt-4o"}),
    Row("dies", {**dict.fromkeys(FORMS, dies), SYNC: chat}, ("openai",)),
]
