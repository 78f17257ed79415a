"""Rollbacks asked for by clicks: never under a running cell, and always in the thread where the user's code runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING

from wflo_nb.errors import WorkflowError
from wflo_nb.notebook.checkpoints import BACK, BACK_AGAIN, Checkpoints, told
from wflo_nb.notebook.live import LiveCard

if TYPE_CHECKING:
    from wflo_nb.snapshot.records import RestoreReport

#: A rollback is waited for this long before the card says that it takes longer.
_PATIENCE = 2.0


class Panel:
    """The rollback part of all cards of a session.

    Args:
        checkpoints: those of the notebook.
        in_the_way: the cell under which variables cannot be exchanged now, None if there is none; with True, the plain cell that
            asks is not in its own way.
    """

    def __init__(self, checkpoints: Checkpoints, in_the_way: Callable[[bool], str | None]) -> None:
        self._checkpoints = checkpoints
        self._in_the_way = in_the_way
        self._loop: asyncio.AbstractEventLoop | None = None

    def meet_loop(self) -> None:
        """Remember the main thread's event loop; called from cells, because there is none before the first."""
        if self._loop is None and threading.current_thread() is threading.main_thread():
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                self._loop = None

    def check(self, *, from_cell: bool) -> None:
        """Variables are never exchanged under a running cell.

        Raises:
            WorkflowError: a cell is running, other than the plain one that asks (`from_cell`).
        """
        cell = self._in_the_way(from_cell)
        if cell is not None:
            then = "Roll back in a cell of its own, without %%wflo." if from_cell else "Wait until it is over, then roll back."
            raise WorkflowError(f"{cell} is running, and its variables cannot be exchanged under it. {then}")

    def rollback_from(self, card: LiveCard, checkpoint_id: str) -> str:
        """A click on Restore."""
        return self._on_main_thread(card, lambda: self._restore(card, lambda: self._checkpoints.rollback(checkpoint_id), undoable=True))

    def undo_from(self, card: LiveCard) -> str:
        """A click on Undo."""
        return self._on_main_thread(card, lambda: self._restore(card, self._checkpoints.undo, undoable=False))

    def _restore(self, card: LiveCard, act: Callable[[], RestoreReport], *, undoable: bool) -> str:
        self.check(from_cell=False)
        sentence = told(act(), "Rolled back" if undoable else "Undone")
        sentence += BACK if undoable else BACK_AGAIN
        card.rolled_back(sentence, undoable=undoable)
        return sentence

    def _on_main_thread(self, card: LiveCard, act: Callable[[], str]) -> str:
        """Objects are built where the user's code runs: some belong to their thread or its event loop."""
        self.check(from_cell=False)
        if self._loop is None or threading.current_thread() is threading.main_thread():
            return act()
        done: Future[str] = Future()

        def go() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(go)
        try:
            return done.result(_PATIENCE)
        except NotYet:
            if done.cancel():  # another cell came first: what it makes must not be swept away by an older click
                return "The kernel was busy, so nothing was restored. Try again when it is idle."
            card.say("Restoring…")
            done.add_done_callback(lambda d: card.say(str(d.exception() or d.result())))
            return ""
