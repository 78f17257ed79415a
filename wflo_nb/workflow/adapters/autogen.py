"""AutoGen: teams and agents through their public stream of messages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.adapters.asking import asked_as
from wflo_nb.workflow.adapters.places import speaker
from wflo_nb.workflow.offloop import aside
from wflo_nb.workflow.session import Session


def fits(workflow: Any) -> bool:
    """Whether it is run on a task and tells its messages."""
    return callable(getattr(workflow, "run_stream", None))


async def drive(team: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """As ``team.run(task=…)``, with the same result. After each message of an agent the messages so far are checkpointed."""
    told = {**asked_as(inputs, "task"), **options}
    alone = getattr(team, "name", None) if hasattr(team, "on_messages") else None  # an agent without a team
    messages: list[Any] = []
    result: Any = None
    kept: asyncio.Task[None] | None = None
    turns = _Turns(team, session)
    name = alone or speaker
    labels = functools.partial(_labels, name)
    try:
        with _context.framed(_context.Frame(name, _context.frame(), labels=labels, notice=turns.called)):
            async for item in team.run_stream(**told):
                result = item
                source = getattr(item, "source", None)
                if not isinstance(source, str):  # the result, at the end
                    continue
                messages.append(item)
                turns.heard(source, item)
                if source != "user" and not type(item).__name__.endswith("ChunkEvent"):
                    # The team does not wait for its reader, so its reader does not wait for a disk.
                    kept = asyncio.create_task(_keep(kept, functools.partial(session.save, source, list(messages), kind="message")))
                    session.ticked(source)
    finally:
        if kept is not None:
            await kept
    return result


def _labels(name: str | Callable[[], str | None]) -> dict[str, str]:
    agent = name() if callable(name) else name
    return {} if agent is None else {"agent": agent}


class _Turns:
    """Whose turn it is in a team. The next agent's call may come before anybody has read the message of the one before it."""

    def __init__(self, team: Any, session: Session) -> None:
        self._session = session
        # Others make calls too and give no message: a manager that chooses who speaks.
        self._agents = {getattr(one, "name", None) for one in getattr(team, "_participants", ())}
        self._speaker: str | None = None
        self._over = self._read = 0

    def called(self, _call_id: str) -> None:
        """A call is about to be made."""
        name = speaker()
        if name is None or name == self._speaker or name not in self._agents:
            return
        if self._speaker is not None:
            self._over += 1
            if self._over > self._read:
                self._session.due(self._speaker, self._over - self._read)
        self._speaker = name

    def heard(self, source: str, message: Any) -> None:
        """A message was read. Events (calls of tools and the like) end no turn."""
        if source in self._agents and not type(message).__name__.endswith("Event"):
            self._read += 1


async def _keep(before: asyncio.Task[None] | None, save: Callable[[], None]) -> None:
    if before is not None:
        await before
    await aside(save)
