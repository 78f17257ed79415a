"""LlamaIndex: workflows and agents through `run`, query and chat engines in a thread; watched by a span handler of its dispatcher."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from wflo_nb import _context
from wflo_nb.errors import WorkflowError
from wflo_nb.workflow.adapters.asking import asked_as, asked_aside, keep
from wflo_nb.workflow.session import Session, current_session

#: What an engine is asked by, and what its argument is called.
_ENGINES = {"BaseQueryEngine": ("query", "str_or_query_bundle"), "BaseChatEngine": ("chat", "message")}
_END = object()
#: Length of what makes the id of a span unlike that of others.
_UNIQUE = 37


def fits(workflow: Any) -> bool:
    """Whether it is a workflow (agents are) or an engine."""
    return _engine(workflow) is not None or _is_workflow(workflow)


def _engine(workflow: Any) -> tuple[str, str] | None:
    return next((_ENGINES[kind.__name__] for kind in type(workflow).__mro__ if kind.__name__ in _ENGINES), None)


def _is_workflow(workflow: Any) -> bool:
    return callable(getattr(workflow, "run", None)) and hasattr(workflow, "add_step")


async def drive(workflow: Any, inputs: Any, session: Session, **options: Any) -> Any:
    """As ``workflow.run(…)``, ``engine.query(…)`` or ``engine.chat(…)``, with the same result, which is checkpointed."""
    name = _agent_of(workflow) or type(workflow).__name__
    engine = _engine(workflow)
    with _watched(), _context.framed(_context.Frame(lambda: [*_places(), name], _context.frame())):
        if engine is not None:
            method, argument = engine
            given = {**asked_as(inputs, argument), **options}
            result = await asked_aside(session, lambda: getattr(workflow, method)(**given))
            if inspect.isgenerator(getattr(result, "__dict__", {}).get("response_gen")):
                result.response_gen = _drawn(result.response_gen, contextvars.copy_context())
        else:
            result = await _finished(workflow.run(**{**_started(workflow, inputs), **options}))
    await keep(session, name, lambda: result)
    return result


def _drawn(pieces: Iterator[Any], context: contextvars.Context) -> Iterator[Any]:
    """An answer that is given in pieces. The model is asked for it by whoever reads it, when the engine is done."""
    while (piece := context.run(next, pieces, _END)) is not _END:
        yield piece


def _started(workflow: Any, inputs: Any) -> dict[str, Any]:
    """What a run begins with: an agent's question, or the event that starts a workflow, or the fields of that event."""
    if any(kind.__name__ == "StartEvent" for kind in type(inputs).__mro__):
        return {"start_event": inputs}
    if _is_agent(workflow):
        return asked_as(inputs, "user_msg")
    return dict(inputs) if isinstance(inputs, Mapping) else asked_as(inputs, "input")


async def _finished(handler: Any) -> Any:
    """What a run gives. It runs beside whoever waits for it, so that it must be told when nobody does any more."""

    async def wait() -> Any:
        return await handler

    waiting = asyncio.create_task(wait())
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        with suppress(Exception):
            await handler.cancel_run()
            await waiting
        raise


def _is_agent(workflow: Any) -> bool:
    """Whether it is an agent, or several that hand over to each other."""
    return hasattr(workflow, "take_step") or (isinstance(getattr(workflow, "agents", None), dict) and hasattr(workflow, "root_agent"))


def _agent_of(workflow: Any) -> str | None:
    return str(workflow.name) if hasattr(workflow, "take_step") and getattr(workflow, "name", None) else None


# -- spans -------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Span:
    """A call of a method that is open. Spans of one run lie in that of the run, whatever task or thread they are in.

    Attributes:
        runs: the workflow, if this is a run of one.
    """

    name: str | None
    outer: str | None
    runs: Any = None


_open: dict[str, _Span] = {}


def _places() -> Iterator[str]:
    """The tools, steps and agents that this code lies in, the innermost first."""
    active: Any = sys.modules.get("llama_index_instrumentation.span")
    id = active.active_span_id.get() if active is not None else None
    while (span := _open.get(id or "")) is not None:
        if span.name:
            yield span.name
        id = span.outer


def _begun(id: str, arguments: Any, instance: Any, outer: str | None) -> None:
    method = id[:-_UNIQUE].rpartition(".")[2]
    span = _open[id] = _Span(None, outer)
    around = _open.get(outer or "")
    if instance is not None and method == "run" and _is_workflow(instance):
        span.name, span.runs = _agent_of(instance), instance
    elif instance is not None and method in ("call", "acall") and hasattr(instance, "metadata"):
        span.name = getattr(instance.metadata, "name", None)
    elif instance is None and around is not None and around.runs is not None:
        _stepped(span, around, method, arguments)


def _stepped(span: _Span, run: _Span, method: str, arguments: Any) -> None:
    """A step of a workflow begins. One of an agent's is its turn, or not worth a name."""
    if _is_agent(run.runs):
        if method != "run_agent_step":
            return
        run.name = getattr(arguments.get("ev"), "current_agent_name", None) or run.name
    else:
        span.name = method
    session = current_session()
    if session is not None:
        with suppress(WorkflowError):  # nobody hears it here: the next call is not sent, and the workflow ends with it
            session.tick(run.name or method)


_lock = threading.Lock()
_users = 0


@contextmanager
def _watched() -> Iterator[None]:
    """Hear of every span while somebody needs it."""
    global _users
    dispatcher: Any = sys.modules["llama_index_instrumentation"].get_dispatcher()
    with _lock:
        _users += 1
        if _users == 1:
            dispatcher.add_span_handler(_handler())
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                dispatcher.span_handlers[:] = [one for one in dispatcher.span_handlers if one is not _handler()]
                _open.clear()


@functools.cache
def _handler() -> Any:
    handlers: Any = sys.modules["llama_index_instrumentation.span_handlers"]

    class Handler(handlers.BaseSpanHandler):  # type: ignore[misc]
        """Knows which spans are open."""

        def span_enter(self, id_: str, bound_args: Any, instance: Any = None, parent_id: str | None = None, **_: Any) -> None:
            _begun(id_, bound_args.arguments, instance, parent_id)

        def span_exit(self, id_: str, *_: Any, **__: Any) -> None:
            _open.pop(id_, None)

        span_drop = span_exit

        def new_span(self, *_: Any, **__: Any) -> None:
            """None is kept: what we know is not theirs."""

        prepare_to_exit_span = prepare_to_drop_span = new_span

    return Handler()
