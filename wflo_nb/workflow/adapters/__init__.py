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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wflo_nb.errors import ConfigurationError
from wflo_nb.workflow.calling import bound
from wflo_nb.workflow.wrapping import aside, is_async

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
        found = _BUILT_IN.get(module)
        if found is not None and (fitting := found(workflow)) is not None:
            return fitting
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
        found = await aside(work)
        return await found if hasattr(found, "__await__") else found

    return drive


def _langgraph(workflow: Any) -> Adapter | None:
    from wflo_nb.workflow.adapters import langgraph

    return Adapter(langgraph.drive, frozenset({"node"})) if langgraph.fits(workflow) else None


def _crewai(workflow: Any) -> Adapter | None:
    from wflo_nb.workflow.adapters import crewai

    return Adapter(crewai.drive) if crewai.fits(workflow) else None


def _autogen(workflow: Any) -> Adapter | None:
    from wflo_nb.workflow.adapters import autogen

    return Adapter(autogen.drive) if autogen.fits(workflow) else None


def _ag2(workflow: Any) -> Adapter | None:
    from wflo_nb.workflow.adapters import autogen

    return Adapter(autogen.ask) if hasattr(workflow, "ask") else None


_BUILT_IN: dict[str, Callable[[Any], Adapter | None]] = {
    "langgraph": _langgraph,
    "crewai": _crewai,
    "autogen_agentchat": _autogen,
    "ag2": _ag2,
}
