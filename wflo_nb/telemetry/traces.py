"""Spans: notebook > cell or workflow > step > call.

Whose child is a call? The user's own current span's, if that was opened inside the execution (or belongs to another trace: then the call
is linked to its execution). Otherwise its step's, else its execution's. It is asked when the call is reserved, because a call may be
settled in another thread, where no context of the user's is left.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wflo_nb import events
from wflo_nb.budget.ledger import renew_in_children
from wflo_nb.errors import MissingDependencyError
from wflo_nb.model import Call, CallState, Execution, now
from wflo_nb.telemetry import names

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, TracerProvider

#: So many executions that are over are remembered, for calls that threads still make for them and for their trace ids.
_REMEMBERED = 10_000
#: Contents that wait for the end of their call; it comes at once.
_WAITING = 1_000

#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(slots=True, eq=False)
class _Open:
    """A span that is not over. `outside` is the id of the span that was current where it began; `last` when a call of it last ended;
    `name` what an execution is called.
    """

    span: Span
    began: int
    outside: int = 0
    name: str = ""
    last: int = 0


class Traces:
    """The listener. One per tracer provider.

    Raises:
        MissingDependencyError: ``opentelemetry-api`` is not installed.
    """

    def __init__(self, provider: TracerProvider, version: str) -> None:
        try:
            from opentelemetry import context, trace
        except ImportError:
            raise MissingDependencyError("opentelemetry-api", "otel") from None
        self._trace = trace
        self._context = context
        self._tracer = provider.get_tracer("wflo_nb", version)
        self._lock = threading.RLock()
        self._executions: dict[str, _Open] = {}
        self._past: dict[str, SpanContext] = {}
        self._notebooks: dict[str, _Open] = {}
        #: By execution and name, the newest last: tasks may be inside steps of one name at once.
        self._steps: dict[tuple[str, str], list[_Open]] = {}
        self._parents: dict[str, tuple[Context, list[Link]]] = {}
        self._contents: dict[str, events.CallContent] = {}
        self._ours: set[int] = set()
        self._hear: dict[type, Callable[[Any], None]] = {
            events.ExecutionStarted: self._started,
            events.ExecutionEnded: self._ended,
            events.CallChanged: lambda event: self._called(event.call),
            events.CheckpointTaken: self._checkpoint,
            events.RolledBack: self._rolled_back,
        }
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child."""
        self._lock = threading.RLock()

    def __call__(self, event: events.Event) -> None:
        """Hear an event."""
        hear = self._hear.get(type(event))
        if hear is not None:
            hear(event)

    def content(self, told: events.CallContent) -> None:
        """Put what a call asked and was answered into its span, whose end is told next."""
        with self._lock:
            if len(self._contents) >= _WAITING:
                del self._contents[next(iter(self._contents))]
            self._contents[told.call_id] = told

    def trace_id(self, execution_id: str) -> str | None:
        """The trace that an execution is or was part of, as 32 hexadecimal digits; None if it was not seen to start."""
        with self._lock:
            seen = self._seen(execution_id)
            return None if seen is None or not seen.is_valid else self._trace.format_trace_id(seen.trace_id)

    def traceparent(self, execution_id: str) -> str | None:
        """An execution's span as a W3C ``traceparent``, for another process; None if it was not seen to start."""
        with self._lock:
            seen = self._seen(execution_id)
        if seen is None or not seen.is_valid:
            return None
        trace = self._trace
        return f"00-{trace.format_trace_id(seen.trace_id)}-{trace.format_span_id(seen.span_id)}-{seen.trace_flags:02x}"

    def adopt(self, execution_id: str, traceparent: str) -> None:
        """Know the span of an execution that runs in another process."""
        told = _TRACEPARENT.fullmatch(traceparent)
        if told is not None:
            trace_id, span_id, flags = (int(part, 16) for part in told.groups())
            seen = self._trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=self._trace.TraceFlags(flags))
            with self._lock:
                self._ours.add(span_id)
                self._remember(execution_id, seen)

    def close(self) -> None:
        """End what is still open, with what is known by now, so that nothing which was sent lacks its parent."""
        with self._lock:
            steps, rest = (
                [one for several in self._steps.values() for one in several],
                [*self._executions.values(), *self._notebooks.values()],
            )
            self._steps, self._executions, self._notebooks = {}, {}, {}
        for one in steps:
            one.span.end(max(one.last, one.began))
        for one in rest:
            one.span.end(names.nanoseconds(now()))

    # -- executions --------------------------------------------------------------------------------------------------------

    def _started(self, event: events.ExecutionStarted) -> None:
        execution = event.execution
        began = names.nanoseconds(execution.created_at)
        attributes = names.execution_attributes(execution, event.figures)
        outside = self._trace.get_current_span().get_span_context().span_id
        with self._lock:
            parent, links = self._place(self._around(execution))
            span = self._tracer.start_span(names.execution_name(execution), parent, attributes=attributes, links=links, start_time=began)
            self._executions[execution.id] = self._known(span, began, outside, execution.workflow)

    def _around(self, execution: Execution) -> _Open | SpanContext | None:
        if execution.parent_id is not None and (outer := self._executions.get(execution.parent_id)) is not None:
            return outer
        notebook = execution.notebook_id
        if notebook is None:
            return self._past.get(execution.parent_id) if execution.parent_id else None
        if notebook not in self._notebooks:
            began = names.nanoseconds(execution.created_at)
            root = self._trace.set_span_in_context(self._trace.INVALID_SPAN)
            attributes: dict[str, names.Value] = {"wflo.notebook.id": notebook}
            if execution.kernel_id:
                attributes["wflo.kernel.id"] = execution.kernel_id
            self._notebooks[notebook] = self._known(
                self._tracer.start_span("notebook", root, attributes=attributes, start_time=began), began
            )
        return self._notebooks[notebook]

    def _known(self, span: Span, began: int, outside: int = 0, name: str = "") -> _Open:
        self._ours.add(span.get_span_context().span_id)
        return _Open(span, began, outside, name)

    def _ended(self, event: events.ExecutionEnded) -> None:
        execution = event.execution
        with self._lock:
            one = self._executions.pop(execution.id, None)
            if one is None:
                return
            steps = [one for key in [key for key in self._steps if key[0] == execution.id] for one in self._steps.pop(key)]
            self._ours.difference_update(one.span.get_span_context().span_id for one in steps)
            self._remember(execution.id, one.span.get_span_context())
        # Outside the lock: a span that ends may be exported there and then.
        for step in steps:
            step.span.end(max(step.last, step.began))
        one.span.set_attributes(names.execution_attributes(execution, event.figures))
        if names.failure(execution) is not None:
            one.span.set_status(self._trace.StatusCode.ERROR)
        one.span.end(names.nanoseconds(execution.updated_at))

    def _remember(self, execution_id: str, seen: SpanContext) -> None:
        self._past[execution_id] = seen
        if len(self._past) > _REMEMBERED:
            forgotten = self._past.pop(next(iter(self._past)))
            self._ours.discard(forgotten.span_id)

    def _seen(self, execution_id: str) -> SpanContext | None:
        one = self._executions.get(execution_id)
        return one.span.get_span_context() if one else self._past.get(execution_id)

    # -- being current in the user's code ----------------------------------------------------------------------------------

    def enter(self, execution_id: str) -> Callable[[], None] | None:
        """Make an execution's span the current one here, so that spans of the user's lie inside it. Returns what leaves it again."""
        with self._lock:
            one = self._executions.get(execution_id)
        return None if one is None else self._carry(one.span)

    def _carry(self, span: Span) -> Callable[[], None]:
        before = self._context.get_current()
        self._context.attach(self._trace.set_span_in_context(span, before))

        def leave() -> None:
            # Not `detach(token)`: it may be left in another context than the one that entered it (async cells, generators).
            if self._trace.get_current_span() is span:
                self._context.attach(before)

        return leave

    def enter_step(self, execution_id: str, name: str) -> Callable[[], None] | None:
        """Open a step's span here and make it current. Returns what ends it. Without this, a step lasts from its first call to its last."""
        with self._lock:
            own = self._executions.get(execution_id)
            if own is None:
                return None
            key, around = (execution_id, name), self._entered(execution_id) or own
            one = self._step(around, key, names.nanoseconds(now()))
        leave = self._carry(one.span)

        def end() -> None:
            leave()
            with self._lock:
                open_ = one in self._steps.get(key, ())  # else its execution was over before, and ended it
                if open_:
                    self._steps[key].remove(one)
                    if not self._steps[key]:
                        del self._steps[key]
                    self._ours.discard(one.span.get_span_context().span_id)
            if open_:
                one.span.end()

        return end

    def _entered(self, execution_id: str) -> _Open | None:
        """The step of this execution whose span is current here."""
        current = self._trace.get_current_span()
        return next((one for key, several in self._steps.items() if key[0] == execution_id for one in several if one.span is current), None)

    def _step(self, around: _Open, key: tuple[str, str], began: int) -> _Open:
        attributes: dict[str, names.Value] = {"wflo.step": key[1], "wflo.execution.id": key[0]}
        parent, links = self._place(around)
        one = self._known(self._tracer.start_span(f"step {key[1]}", parent, attributes=attributes, links=links, start_time=began), began)
        self._steps.setdefault(key, []).append(one)
        return one

    # -- calls -------------------------------------------------------------------------------------------------------------

    def _called(self, call: Call) -> None:
        with self._lock:
            if call.state is CallState.RESERVED:
                self._parents[call.id] = self._place(self._home(call))
                return
            parent, links = self._parents.pop(call.id) if call.id in self._parents else self._place(self._home(call))
            content = self._contents.pop(call.id, None) if self._contents else None
        ended = names.nanoseconds(call.settled_at or now())
        span = self._tracer.start_span(
            f"{names.operation(call)} {call.model}".rstrip(),
            parent,
            kind=self._trace.SpanKind.CLIENT,
            attributes=names.call_attributes(call) | (names.content_attributes(content) if content is not None else {}),
            links=links,
            start_time=names.nanoseconds(call.created_at),
        )
        if names.error_type(call) is not None:
            span.set_status(self._trace.StatusCode.ERROR, call.reason)
        span.end(ended)
        if call.step:
            with self._lock:
                for step in self._steps.get((call.execution_id, call.step), ())[-1:]:
                    step.last = max(step.last, ended)

    def _home(self, call: Call) -> _Open | SpanContext | None:
        """The span of ours that a call belongs to."""
        own = self._executions.get(call.execution_id)
        if own is None:
            return self._past.get(call.execution_id)
        if not call.step or call.step == own.name:  # a step with a budget is an execution of its own
            return self._entered(call.execution_id) or own
        key = (call.execution_id, call.step)
        if key not in self._steps:
            return self._step(own, key, names.nanoseconds(call.created_at))
        entered = self._entered(call.execution_id)
        return entered if entered is not None and entered in self._steps[key] else self._steps[key][-1]

    def _place(self, own: _Open | SpanContext | None) -> tuple[Context, list[Link]]:
        """The context to start a span in that belongs to `own`, and what it is linked to. Looks at the span that is current here."""
        trace, context = self._trace, self._context.get_current()
        current = trace.get_current_span(context)
        theirs = current.get_span_context()
        foreign = theirs.is_valid and theirs.span_id not in self._ours
        if own is None:
            return (context if foreign else trace.set_span_in_context(trace.INVALID_SPAN, context)), []
        span = own.span if isinstance(own, _Open) else trace.NonRecordingSpan(own)
        mine = span.get_span_context()
        inside = trace.set_span_in_context(span, context)
        if not foreign or not mine.is_valid:
            return inside, []
        if theirs.trace_id != mine.trace_id:
            return context, [trace.Link(mine)]
        return (context if self._is_below(current, own) else inside), []

    def _is_below(self, current: Span, own: _Open | SpanContext) -> bool:
        """Whether a span of the user's in our trace was opened inside ours, and not around it."""
        context = current.get_span_context()
        if context.is_remote or not isinstance(own, _Open) or context.span_id == own.outside:
            return False
        began = getattr(current, "start_time", None)
        return began is None or began >= own.began

    # -- variables ---------------------------------------------------------------------------------------------------------

    def _checkpoint(self, event: events.CheckpointTaken) -> None:
        taken = event.checkpoint
        with self._lock:
            one = self._executions.get(taken.execution_id or "")
        if one is not None:
            facts: dict[str, names.Value] = {
                "wflo.checkpoint.id": taken.id,
                "wflo.checkpoint.label": taken.label,
                "wflo.checkpoint.variables": taken.variables,
                "wflo.checkpoint.bytes": taken.bytes_total,
            }
            one.span.add_event("wflo.checkpoint", facts, names.nanoseconds(taken.created_at))

    def _rolled_back(self, event: events.RolledBack) -> None:
        facts = {"wflo.checkpoint.id": event.checkpoint.id, "wflo.checkpoint.label": event.checkpoint.label, "wflo.undo.id": event.undo.id}
        with self._lock:
            notebooks = list(self._notebooks.values())
        for one in notebooks:
            one.span.add_event("wflo.rollback", facts)
