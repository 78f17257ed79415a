"""How an agent is asked something: what its inputs are called, how one without an event loop is asked, and what is kept of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from wflo_nb.errors import tell
from wflo_nb.workflow.offloop import aside, off_the_loop
from wflo_nb.workflow.session import Session


def asked_as(inputs: Any, name: str) -> dict[str, Any]:
    """The arguments of an agent whose question is its argument `name`: other inputs than that one are its lines."""
    if isinstance(inputs, Mapping):
        return dict(inputs) if name in inputs else {name: "\n".join(f"{key}: {value}" for key, value in inputs.items())}
    return {} if inputs is None else {name: inputs}


async def asked_aside(session: Session, ask: Callable[[], Any]) -> Any:
    """Ask in a thread. Once nobody waits for the answer any more, it sends nothing more."""
    try:
        return await off_the_loop(ask)
    except asyncio.CancelledError:
        session.run.stop()
        raise


async def keep(session: Session, name: str, made: Callable[[], Any]) -> None:
    """Checkpoint what is made of an answer. Never raises: the answer is paid, and the user's."""

    def work() -> None:
        try:
            state = made()
        except Exception as error:
            tell(f"No checkpoint {name!r} was taken ({type(error).__name__}: {error}). The answer itself is not affected.")
        else:
            session.save(name, state, kind="message")

    await aside(work)
