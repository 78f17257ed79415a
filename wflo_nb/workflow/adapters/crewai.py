"""CrewAI: crews and flows, off the event loop (`kickoff` refuses to run inside one); outputs of tasks are checkpointed."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.offloop import off_the_loop
from wflo_nb.workflow.session import Session, current_session


def fits(workflow: Any) -> bool:
    """Whether it is started by `kickoff`."""
    return callable(getattr(workflow, "kickoff", None))


async def drive(crew: Any, inputs: Any, session: Session, **options: Any) -> Any:  # noqa: ARG001 - its callbacks find it by their context
    """``crew.kickoff(inputs=…)`` in a thread, with the calls of each task under the name of its agent."""
    if not hasattr(crew, "tasks"):  # a flow
        return await off_the_loop(lambda: crew.kickoff(inputs=inputs, **options))
    tasks = {str(task.id): task for task in crew.tasks}

    def current() -> Any:
        context: Any = sys.modules.get("crewai.context")
        try:
            return tasks.get(str(context.get_current_task_id()))
        except AttributeError:
            return None

    def labels() -> dict[str, str]:
        task = current()
        told = {"agent": _agent(task), "task": getattr(task, "name", None), "tool": _tool.get()}
        return {kind: name for kind, name in told.items() if name}

    undo, forget = _watched(crew), _following_tools()
    try:
        with _context.framed(_context.Frame(lambda: _agent(current()), _context.frame(), labels=labels)):
            return await off_the_loop(lambda: crew.kickoff(inputs=inputs, **options))
    finally:
        forget()
        undo()


def _agent(task: Any) -> str | None:
    role = getattr(getattr(task, "agent", None), "role", None)
    return role.strip() if isinstance(role, str) else None


#: The tool that runs here. CrewAI calls its hooks for tools where it calls the tool.
_tool: ContextVar[str | None] = ContextVar("wflo_nb_crewai_tool", default=None)
_crews = 0


def _begins(hook: Any) -> None:
    _tool.set(getattr(hook, "tool_name", None))


def _ends(_hook: Any) -> None:
    _tool.set(None)


def _following_tools() -> Callable[[], None]:
    """Know the names of tools while crews run. Counted, since CrewAI's hooks are those of the whole process."""
    global _crews
    hooks: Any = sys.modules.get("crewai.hooks")
    if hooks is None:
        return lambda: None
    with _lock:
        _crews += 1
        if _crews == 1:
            hooks.register_before_tool_call_hook(_begins)
            hooks.register_after_tool_call_hook(_ends)

    def forget() -> None:
        global _crews
        with _lock:
            _crews -= 1
            if _crews == 0:
                hooks.unregister_before_tool_call_hook(_begins)
                hooks.unregister_after_tool_call_hook(_ends)

    return forget


_lock = threading.Lock()
_watching: dict[int, tuple[int, Any]] = {}


def _watched(crew: Any) -> Callable[[], None]:
    """Checkpoint what each task gives, beside the user's own callback. Counted: one crew may run several times at once."""
    with _lock:
        count, theirs = _watching.get(id(crew), (0, crew.task_callback))
        if count == 0:
            crew.task_callback = functools.partial(_over, theirs)
        _watching[id(crew)] = (count + 1, theirs)

    def undo() -> None:
        with _lock:
            count, theirs = _watching.pop(id(crew))
            if count > 1:
                _watching[id(crew)] = (count - 1, theirs)
            else:
                crew.task_callback = theirs
                for task in crew.tasks:  # CrewAI hands the crew's callback on to its tasks
                    if isinstance(task.callback, functools.partial) and task.callback.func is _over:
                        task.callback = None

    return undo


def _over(theirs: Any, output: Any) -> Any:
    session = current_session()
    if session is not None:
        name = output.name or output.agent or "task"
        session.save(str(name), output, kind="task")
        session.ticked(str(name))
    return theirs(output) if theirs is not None else None
