"""Which node or agent of a framework does this code run in? Asked of the framework's own context, and never imports one."""

from __future__ import annotations

import sys
from typing import Any


def node() -> str | None:
    """The node of a LangGraph graph."""
    config: Any = sys.modules.get("langgraph.config")
    if config is None:
        return None
    try:
        name = config.get_config()["metadata"]["langgraph_node"]
    except (AttributeError, KeyError, RuntimeError, TypeError):  # not inside a node
        return None
    return name if isinstance(name, str) else None


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


def place() -> str | None:
    """The place in whichever of them this code runs in."""
    modules = sys.modules  # asked for every call: whoever has neither of them pays for no more than a look
    return (node() if "langgraph.config" in modules else None) or (speaker() if "autogen_core" in modules else None)
