"""pydantic-ai: agents through `run`, watched by a capability that is given to this one run."""

from __future__ import annotations

import functools
import sys
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.adapters.asking import asked_as, keep
from wflo_nb.workflow.adapters.places import asked
from wflo_nb.workflow.session import Session


def fits(workflow: Any) -> bool:
    """Whether it is an agent that takes capabilities, which those of pydantic-ai 1 do not."""
    return "pydantic_ai.capabilities" in sys.modules and all(hasattr(workflow, name) for name in ("run_stream", "iter", "output_type"))


async def drive(agent: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """As ``agent.run(…)``, with the same result. The conversation is checkpointed."""
    name = agent.name or "agent"
    watching = [*(options.pop("capabilities", None) or ()), _watch()(session)]
    with _context.framed(_context.Frame(name, _context.frame(), labels={"agent": name})):
        given = {"infer_name": False, **asked_as(inputs, "user_prompt"), **options}  # it would be called as our variable is
        result = await agent.run(**given, capabilities=watching)
    await keep(session, name, lambda: result.all_messages())
    return result


@functools.cache
def _watch() -> Any:
    capabilities: Any = sys.modules["pydantic_ai.capabilities"]

    class Watch(capabilities.AbstractCapability):  # type: ignore[misc]
        """Counts requests, and names what a tool's function does."""

        def __init__(self, session: Session) -> None:
            super().__init__()
            self._session = session

        async def before_model_request(self, ctx: Any, request_context: Any) -> Any:
            self._session.tick((ctx.agent and ctx.agent.name) or "agent")
            return request_context

        async def wrap_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:  # noqa: ARG002
            names = functools.partial(_names, ctx.run_id, call.tool_name)
            with _context.framed(_context.Frame(names, _context.frame(), labels={"tool": call.tool_name})):
                return await handler(args)

    return Watch


def _names(run: str, tool: str) -> list[str]:
    """The tool, and the agent that it asks, if it asks one."""
    other = asked()
    agent = getattr(other, "agent", None)
    return [tool] if agent is None or other.run_id == run or not agent.name else [agent.name, tool]
