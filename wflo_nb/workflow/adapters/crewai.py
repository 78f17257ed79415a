"""CrewAI: crews and flows, off the event loop (`kickoff` refuses to run inside one); outputs of tasks are checkpointed."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from wflo_nb import _context
from wflo_nb.workflow.session import Session, current_session
from wflo_nb.workflow.wrapping import aside


def fits(workflow: Any) -> bool:
    """Whether it is started by `kickoff`."""
    return callable(getattr(workflow, "kickoff", None))


async def drive(crew: Any, inputs: Any, session: Session, **options: Any) -> Any:  # noqa: ARG001 - its callbacks find it by their context
    """``crew.kickoff(inputs=…)`` in a thread, with the calls of each task under the name of its agent."""
    if not hasattr(crew, "tasks"):  # a flow
        return await aside(lambda: crew.kickoff(inputs=inputs, **options))
    agents = {str(task.id): _agent(task) for task in crew.tasks}

    def agent() -> str | None:
        context: Any = sys.modules.get("crewai.context")
        try:
            return agents.get(str(context.get_current_task_id()))
        except AttributeError:
            return None

    undo = _watched(crew)
    try:
        with _context.framed(_context.Frame(agent, _context.frame())):
            return await aside(lambda: crew.kickoff(inputs=inputs, **options))
    finally:
        undo()


def _agent(task: Any) -> str | None:
    role = getattr(task.agent, "role", None)
    return role.strip() if isinstance(role, str) else None


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
