"""AutoGen: teams and agents through their public stream of messages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.adapters.asking import asked_as
from wflo_nb.workflow.adapters.places import speaker
from wflo_nb.workflow.session import Session
from wflo_nb.workflow.wrapping import aside


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
    try:
        with _context.framed(_context.Frame(alone or speaker, _context.frame())):
            async for item in team.run_stream(**told):
                result = item
                source = getattr(item, "source", None)
                if not isinstance(source, str):  # the result, at the end
                    continue
                messages.append(item)
                if source != "user" and not type(item).__name__.endswith("ChunkEvent"):
                    # The team does not wait for its reader, so its reader does not wait for a disk.
                    kept = asyncio.create_task(_keep(kept, functools.partial(session.save, source, list(messages), kind="message")))
                    session.ticked(source)
    finally:
        if kept is not None:
            await kept
    return result


async def _keep(before: asyncio.Task[None] | None, save: Callable[[], None]) -> None:
    if before is not None:
        await before
    await aside(save)
