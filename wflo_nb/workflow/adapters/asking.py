"""How an agent is asked something: what its inputs are called, and how one that knows no event loop is asked in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from wflo_nb.workflow.session import Session
from wflo_nb.workflow.wrapping import aside


def asked_as(inputs: Any, name: str) -> dict[str, Any]:
    """The arguments of an agent whose question is its argument `name`: other inputs than that one are its lines."""
    if isinstance(inputs, Mapping):
        return dict(inputs) if name in inputs else {name: "\n".join(f"{key}: {value}" for key, value in inputs.items())}
    return {} if inputs is None else {name: inputs}


async def asked_aside(session: Session, ask: Callable[[], Any]) -> Any:
    """Ask in a thread. Once nobody waits for the answer any more, it sends nothing more."""
    try:
        return await aside(ask)
    except asyncio.CancelledError:
        session.run.stop()
        raise
