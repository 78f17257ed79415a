"""openai-agents: agents through `Runner.run`, watched by hooks of that run."""

from __future__ import annotations

import functools
import sys
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.adapters.asking import asked_as, keep
from wflo_nb.workflow.adapters.places import spanned
from wflo_nb.workflow.session import Session


def fits(workflow: Any) -> bool:
    """Whether it is an agent, and not something of a package of the user's that is called agents as well."""
    return any((kind.__module__, kind.__name__) == ("agents.agent", "Agent") for kind in type(workflow).__mro__)


async def drive(agent: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """As ``Runner.run(agent, …)``, with the same result. The conversation is checkpointed."""
    runner: Any = sys.modules["agents"].Runner
    hooks = _watch()(session, agent.name, options.pop("hooks", None))
    with _context.framed(_context.Frame(lambda: spanned() or [hooks.at], _context.frame(), labels=lambda: {"agent": hooks.at})):
        result = await runner.run(agent, hooks=hooks, **{"input": [], **asked_as(inputs, "input"), **options})
    await keep(session, hooks.at, lambda: result.to_input_list())
    return result


@functools.cache
def _watch() -> Any:
    agents: Any = sys.modules["agents"]

    class Watch(agents.RunHooks):  # type: ignore[misc]
        """Counts turns, and knows whose turn it is. What the user hooked in is told the same."""

        def __init__(self, session: Session, first: str, theirs: Any) -> None:
            self.at = first
            self._session = session
            self._theirs = theirs
            for name in dir(agents.RunHooks) if theirs is not None else ():
                if name.startswith("on_") and name not in vars(Watch):
                    setattr(self, name, getattr(theirs, name))

        async def on_llm_start(self, context: Any, agent: Any, *said: Any) -> None:
            self.at = agent.name
            self._session.tick(agent.name)
            if self._theirs is not None:
                await self._theirs.on_llm_start(context, agent, *said)

    return Watch
