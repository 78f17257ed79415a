"""Hard budgets, live spend, checkpoints and cost reports for LLM and agent work in notebooks.

    %load_ext wflo_nb

    %%wflo budget=2
    answer = my_agent.run("…")

Importing this package loads nothing heavy: every public name is fetched from its own module at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wflo_nb import report as report
    from wflo_nb import telemetry as telemetry
    from wflo_nb.budget.budget import Budget as Budget
    from wflo_nb.budget.shared import shared_budget as shared_budget
    from wflo_nb.errors import BudgetExceededError as BudgetExceededError
    from wflo_nb.errors import WfloError as WfloError
    from wflo_nb.events import subscribe as subscribe
    from wflo_nb.model import Cost as Cost
    from wflo_nb.model import Usage as Usage
    from wflo_nb.store import open_store as open_store
    from wflo_nb.workflow.adapters import adapter as adapter
    from wflo_nb.workflow.checkpoints import checkpoint as checkpoint
    from wflo_nb.workflow.execution import execution as execution
    from wflo_nb.workflow.join import join as join
    from wflo_nb.workflow.steps import step as step
    from wflo_nb.workflow.tracking import track_llm_call as track_llm_call
    from wflo_nb.workflow.workflow import WfloWorkflow as WfloWorkflow

__version__ = "0.1.0"

_OWNERS = {
    "Budget": "wflo_nb.budget.budget",
    "BudgetExceededError": "wflo_nb.errors",
    "Cost": "wflo_nb.model",
    "Usage": "wflo_nb.model",
    "WfloError": "wflo_nb.errors",
    "WfloWorkflow": "wflo_nb.workflow.workflow",
    "adapter": "wflo_nb.workflow.adapters",
    "checkpoint": "wflo_nb.workflow.checkpoints",
    "execution": "wflo_nb.workflow.execution",
    "join": "wflo_nb.workflow.join",
    "open_store": "wflo_nb.store",
    "shared_budget": "wflo_nb.budget.shared",
    "step": "wflo_nb.workflow.steps",
    "subscribe": "wflo_nb.events",
    "track_llm_call": "wflo_nb.workflow.tracking",
}

__all__ = [
    "Budget",
    "BudgetExceededError",
    "Cost",
    "Usage",
    "WfloError",
    "WfloWorkflow",
    "adapter",
    "checkpoint",
    "execution",
    "join",
    "load_ipython_extension",
    "open_store",
    "report",
    "shared_budget",
    "step",
    "subscribe",
    "telemetry",
    "track_llm_call",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> Any:
    if name in ("report", "telemetry"):
        return importlib.import_module(f"wflo_nb.{name}")
    owner = _OWNERS.get(name)
    if owner is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(owner), name)  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def load_ipython_extension(ip: Any) -> None:
    """``%load_ext wflo_nb``."""
    from wflo_nb.notebook.extension import load

    load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """``%unload_ext wflo_nb``: the shell is left as it was found."""
    from wflo_nb.notebook.extension import unload

    unload(ip)
