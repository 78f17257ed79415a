"""Which node, agent or tool of a framework does this code run in? Asked of the framework's own context, and never imports one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

#: Spans inside each other that are looked at.
_DEEPEST = 200


def nodes() -> Sequence[str]:
    """The node of a LangGraph graph, and those that it is a part of (a node may be a graph, or run one), the innermost first."""
    config: Any = sys.modules.get("langgraph.config")
    if config is None:
        return ()
    try:
        told = config.get_config()["metadata"]
        name, path = told["langgraph_node"], told.get("langgraph_checkpoint_ns")
    except (AttributeError, KeyError, RuntimeError, TypeError):  # not inside a node
        return ()
    if not isinstance(name, str):
        return ()
    if not isinstance(path, str) or "|" not in path:  # nearly always
        return (name,)
    # "outer:its id|1|inner:its id": the number tells graphs apart that one node runs.
    around = [part.rpartition(":")[0] for part in path.split("|")[-2::-1] if ":" in part]
    return (name, *around)


def speaker() -> str | None:
    """The agent of an AutoGen team whose message is being handled. Its type is the agent's name and the id of its team."""
    core: Any = sys.modules.get("autogen_core")
    if core is None:
        return None
    try:
        kind: str = core.MessageHandlerContext.agent_id().type
    except (AttributeError, RuntimeError):
        return None
    name, _, team = kind.rpartition("_")
    return name if name and len(team) >= 32 else kind


def asked() -> Any:
    """The run context of the pydantic-ai agent that works here."""
    module: Any = sys.modules.get("pydantic_ai._run_context")
    try:
        return module.get_current_run_context() if module is not None else None
    except Exception:  # a name is never worth a call
        return None


def asked_agent() -> str | None:
    """The name of that agent."""
    name = getattr(getattr(asked(), "agent", None), "name", None)
    return name if isinstance(name, str) else None


def spanned() -> list[str]:
    """The tool and the agent of openai-agents, and those that they work for, the innermost first."""
    return list(_spanned())


def _spanned() -> Iterator[str]:
    tracing: Any = sys.modules.get("agents.tracing")
    try:
        span = tracing.get_current_span() if tracing is not None else None
        for _ in range(_DEEPEST):
            if span is None:
                return
            if span.span_data.type in ("agent", "function") and isinstance(span.span_data.name, str):
                yield span.span_data.name
            # A span says no more of the one around it than its id. What puts the other one back in the end holds it.
            before = span._prev_span_token
            span = before.old_value if before is not None and before.old_value is not before.MISSING else None
    except Exception:  # a package of the user's may be called agents, too
        return


def place() -> str | None:
    """The place in whichever of them this code runs in."""
    loaded = sys.modules  # asked for every call: whoever has none of them pays for no more than a look
    if "langgraph.config" in loaded or "autogen_core" in loaded or "pydantic_ai" in loaded or "agents.tracing" in loaded:
        return next(iter(nodes()), None) or speaker() or asked_agent() or next(_spanned(), None)
    return None
