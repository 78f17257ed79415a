"""How workflows of every kind are run: one small module per framework, found by what an object is, never by importing anything.

    @wflo_nb.adapter(MyFlow)
    async def run(flow, inputs, session, **options):
        with session.step("plan"):
            plan = await flow.plan(inputs)
        session.save("plan", plan)  # a checkpoint
        return await flow.execute(plan)

What is registered so wins over what is built in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wflo_nb.errors import ConfigurationError
from wflo_nb.workflow.calling import bound
from wflo_nb.workflow.offloop import off_the_loop
from wflo_nb.workflow.wrapping import is_async

#: Runs a workflow: (workflow, inputs, session, **options), plain or async.
Drive = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one kind of workflow is run.

    Attributes:
        drive: runs it.
        resumes: kinds of checkpoints after which it can go on.
    """

    drive: Drive
    resumes: frozenset[str] = frozenset()


_registered: dict[type, Adapter] = {}


def adapter(kind: type) -> Callable[[Drive], Drive]:
    """Say how workflows of a class, and of those derived from it, are run by `WfloWorkflow.execute`.

    The function gets the workflow, its inputs, the `Session` (``step``, ``save``, ``tick``) and the options of `execute`. A plain
    function is run in a thread. It wins over what is built in.
    """
    if not isinstance(kind, type):
        raise ConfigurationError(f"adapter({kind!r}) needs a class: @wflo_nb.adapter(MyFlow).")

    def register(drive: Drive) -> Drive:
        _registered[kind] = Adapter(drive)
        return drive

    return register


def adapter_for(workflow: Any) -> Adapter | None:
    """How this workflow is run; None for something that is simply called.

    Raises:
        ConfigurationError: nobody knows how to run it.
    """
    for kind in type(workflow).__mro__:
        if kind in _registered:
            return _registered[kind]
    for module in {kind.__module__.partition(".")[0] for kind in type(workflow).__mro__}:
        if (found := _built_in(module, workflow)) is not None:
            return found
    if callable(workflow):
        return None
    for method in ("ainvoke", "invoke", "run", "kickoff"):
        if callable(getattr(workflow, method, None)):
            return Adapter(_by_method(method))
    raise ConfigurationError(
        f"A {type(workflow).__module__}.{type(workflow).__qualname__} cannot be run as a workflow: it is no function and has neither "
        "ainvoke, run nor kickoff. Pass a function that runs it, or say how with @wflo_nb.adapter(its class)."
    )


def _by_method(name: str) -> Drive:
    async def drive(workflow: Any, inputs: Any, session: Any, **options: Any) -> Any:  # noqa: ARG001 - every adapter is given it
        method = getattr(workflow, name)
        work = bound(method, inputs, options)
        if is_async(method):
            return await work()
        found = await off_the_loop(work)
        return await found if hasattr(found, "__await__") else found

    return drive


#: By the package that a workflow's class, or one that it is derived from, is of: our module for it.
_BUILT_IN = {
    "langgraph": "langgraph",
    "crewai": "crewai",
    "autogen_agentchat": "autogen",
    "ag2": "ag2",
    "pydantic_ai": "pydantic_ai",
    "agents": "openai_agents",
    "smolagents": "smolagents",
    "llama_index": "llama_index",
    "workflows": "llama_index",
}


def _built_in(package: str, workflow: Any) -> Adapter | None:
    name = _BUILT_IN.get(package)
    if name is None:
        return None
    module = importlib.import_module(f"{__name__}.{name}")
    return Adapter(module.drive, getattr(module, "RESUMES", frozenset())) if module.fits(workflow) else None
