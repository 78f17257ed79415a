"""ag2: agents through `ask`."""

from __future__ import annotations

from typing import Any

from wflo_nb.workflow.adapters.asking import asked_as, keep
from wflo_nb.workflow.session import Session


def fits(workflow: Any) -> bool:
    """Whether it is an agent."""
    return callable(getattr(workflow, "ask", None))


async def drive(agent: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """``agent.ask(…)``, whose answer is checkpointed."""
    name = str(getattr(agent, "name", "agent"))
    given = list(asked_as(inputs, "task").values())
    with session.step(name, kind="agent"):
        answer = await agent.ask(*given, **options)
    await keep(session, name, lambda: answer)
    return answer
