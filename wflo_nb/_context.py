"""Which execution does this code belong to?

Three answers, asked in this order:

1. the ContextVar, right for plain code, ``await``, tasks and ``to_thread``;
2. for threads and pools, which contextvars do not reach: the scope that was current where the thread was started or the
   work submitted (`wflo_nb._threads`);
3. the scope that is running in this process: the only one, or the innermost of several that are nested in each other; if
   there is none, or no telling which, the process's default (the notebook).

A scope is opaque here: the rooms above put their own object in and take it out again.

Beside the scope goes the *frame*: which named piece of work (step, node, agent, tracked function) this code belongs to. It takes
the same ways, and is only a name: what a call costs, and whom, is decided by the scope.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from typing import Any
from weakref import WeakKeyDictionary, ref

_current: ContextVar[Any] = ContextVar("wflo_nb_scope", default=None)
_started_in: WeakKeyDictionary[threading.Thread, Any] = WeakKeyDictionary()
_lock = threading.RLock()
_running: list[tuple[Any, Any]] = []  # scopes, each with the one that was current where it was entered
_apart: set[int] = set()  # ids of those that were entered inside a task of an event loop, or in a thread beside the main one
_default: Any = None
#: Scopes that were left from elsewhere than where they were entered, each with that place and what is around it.
_astray: deque[tuple[Any, tuple[int, Any], Any]] = deque(maxlen=1000)


#: How a piece of work is called: one name, several, none.
Names = str | Sequence[str] | None
#: What a framework, or a step, calls a piece of work besides its name as a step.
KINDS = ("agent", "task", "tool")
Labels = Mapping[str, str]


class Frame:
    """A named piece of work that lies in another one.

    Attributes:
        name: its name, or a function that tells it when a call is made (a framework knows which of its nodes runs); None for none. Of
            places inside each other that one framework knows of (an agent, its tool) all the names, the innermost first.
        outer: the frame around it.
        weak: the name counts only where no other one is known (a function's own name, inside a step).
        notice: is told the id of every call that is made inside.
        labels: names by kind (`KINDS`), or a function that tells them when a call is made; `known`: those that it told where this work
            came from, for places where it no longer knows.
    """

    __slots__ = ("known", "labels", "name", "notice", "outer", "weak")

    def __init__(
        self,
        name: Names | Callable[[], Names],
        outer: Frame | None,
        *,
        weak: bool = False,
        notice: Callable[[str], object] | None = None,
        labels: Labels | Callable[[], Labels] | None = None,
        known: Labels | None = None,
    ) -> None:
        self.labels = labels
        self.known = known
        self.name = name
        self.outer = outer
        self.weak = weak
        self.notice = notice

    def told(self) -> Sequence[str]:
        """Its name at this moment, or names."""
        name = self.name() if callable(self.name) else self.name
        return ((name,) if name else ()) if isinstance(name, str) else name or ()

    def told_labels(self) -> Labels:
        """Its labels at this moment."""
        told = self.labels() if callable(self.labels) else self.labels
        return {**(self.known or {}), **(told or {})}


_frame: ContextVar[Frame | None] = ContextVar("wflo_nb_frame", default=None)
_framed_in: WeakKeyDictionary[threading.Thread, Frame] = WeakKeyDictionary()
_threads_framed = False  # whether there ever was one: asking the dictionary takes longer than all the rest


def frame() -> Frame | None:
    """The innermost piece of work that this code belongs to."""
    one = _frame.get()
    return _framed_in.get(threading.current_thread()) if one is None and _threads_framed else one


def _frames() -> Iterator[Frame]:
    one = frame()
    while one is not None:
        yield one
        one = one.outer


def steps() -> list[str]:
    """The names of the steps that this code lies in, the innermost first."""
    return [name for one in _frames() if not one.weak for name in one.told()]


def announce(call_id: str) -> tuple[str | None, dict[str, Any]]:
    """A call is about to be made here: everything around it that wants to know is told.

    Returns:
        what it is labelled with: the innermost step, else the place in a framework that knows its own, else the innermost function that
        is tracked by name; and its names by kind.
    """
    if frame() is None:  # nearly always
        return (None if _guide is None else _guide()), {}
    for one in _frames():
        if one.notice is not None:
            one.notice(call_id)
    named = next(iter(steps()), None) or (_guide() if _guide is not None else None)
    return named or next((name for one in _frames() if one.weak for name in one.told()), None), _labels()


def _labels() -> dict[str, Any]:
    """The names by kind that a call made here bears, of each kind the innermost."""
    found: dict[str, Any] = {}
    for one in _frames():
        if one.labels is not None:
            found = {**one.told_labels(), **found}
    if found and "agent" not in found:  # around a task or a tool: the step that it belongs to
        agent = next((name for one in _frames() if not one.weak and one.labels is None for name in one.told()), None)
        return found if agent is None else {"agent": agent, **found}
    return found


_guide: Callable[[], str | None] | None = None


def be_guided(guide: Callable[[], str | None] | None) -> None:
    """Ask `guide` for the name of a place that no frame names; None asks nobody."""
    global _guide
    _guide = guide


@contextmanager
def framed(one: Frame | None) -> Iterator[None]:
    """Let the code of a ``with`` block belong to a piece of work."""
    before = _frame.get()
    _frame.set(one)
    try:
        yield
    finally:
        _frame.set(before)  # not `reset`: the block of a generator may end in another context


def carried() -> Frame | None:
    """The frame for work that is handed to a thread, where a framework may no longer know its own place."""
    return _fixed(frame())


def _fixed(one: Frame | None) -> Frame | None:
    if one is None:
        return None
    outer, name = _fixed(one.outer), one.told() if callable(one.name) else None
    known = one.told_labels() if callable(one.labels) else one.known
    if not name and outer is one.outer and (known or {}) == (one.known or {}):
        return one
    kept = name or one.name  # what knows no name here may know one there
    return Frame(kept, outer, weak=one.weak, notice=one.notice, labels=one.labels, known=known)


def current() -> Any:
    """The scope that a call made here and now is charged to, or None."""
    scope = _current.get()
    if scope is None or _astray:  # else nearly always
        scope = told()
    if scope is not None:
        return scope
    return _guess(_running) if _running else _default


def around() -> Any:
    """The scope that a new one, entered here and now, lies in, or None.

    Tasks and threads know what they were started in. One that was started in nothing lies beside the scopes of other tasks and threads
    and not inside them: two requests that a server works on at once do not spend each other's budget.
    """
    scope = told()
    if scope is not None or _default is not None:
        return scope if scope is not None else current()
    outside = [entry for entry in _running if id(entry[0]) not in _apart]
    return _guess(outside) if outside else None


def _task_of(module: str) -> Any:
    """The task that runs here, of a library whose function for it is in `module`; None if none does."""
    loops: Any = sys.modules.get(module)  # importing it takes longer than the rest of us
    try:
        return None if loops is None else loops.current_task()
    except (RuntimeError, AttributeError):  # no loop runs in this thread; the library is just being imported
        return None


def _task() -> Any:
    task = _task_of("asyncio")
    return _task_of("trio.lowlevel") if task is None else task


def _guess(running: list[tuple[Any, Any]]) -> Any:
    """The innermost of nested scopes; of those that run side by side the one around them all, else the default, else the newest: a
    call that might belong to several is charged to one of them, never to none.
    """
    inside = {id(scope) for scope, _ in running}
    around = {id(outer) for _, outer in running}
    innermost = [scope for scope, _ in running if id(scope) not in around]
    outermost = [scope for scope, outer in running if id(outer) not in inside]
    if len(innermost) == 1:
        return innermost[0]
    if len(outermost) == 1:
        return outermost[0]
    return _default if _default is not None else running[-1][0]


def told() -> Any:
    """The scope that this context or this thread was given, without guessing from what happens to run."""
    scope = _current.get()
    if scope is not None and _astray:
        scope = _found(scope)
    return scope if scope is not None else _started_in.get(threading.current_thread())


def _found(scope: Any) -> Any:
    """The scope that counts here: where a scope was entered that was then left from elsewhere, it is over, and what is around it counts.
    Tasks and threads that were started in it keep it.
    """
    for entry in list(_astray):
        if entry[0] is scope and entry[1] == _place():
            with suppress(ValueError):
                _astray.remove(entry)
            _current.set(entry[2])
            return _found(entry[2])
    return scope


def _place() -> tuple[int, Any]:
    """The thread that runs here, and the task that it is at."""
    task = _task()
    return threading.get_ident(), None if task is None else ref(task)


def running() -> list[Any]:
    """The scopes that are entered in this process, the newest last."""
    return [scope for scope, _ in _running]


#: Threads of ours that work for everybody, whatever cell happened to need them first.
_OURS = frozenset({"wflo-courier", "wflo-purse", "wflo-cards", "wflo-gate", "wflo-telemetry", "wflo-telemetry-flush", "wflo_nb-warm-up"})


def left_behind() -> list[str]:
    """The names of threads, and of tasks of the loop that runs here, which belong to a scope and are not over."""
    threads = [thread.name for thread in list(_started_in) if thread.is_alive() and thread.name not in _OURS]
    here = _task_of("asyncio")
    if here is None:
        return threads
    loops: Any = sys.modules["asyncio"]
    return threads + [task.get_name() for task in loops.all_tasks() - {here} if _scope_of(task) is not None]


def _scope_of(task: Any) -> Any:
    """What a task is charged to. It tells its context from Python 3.12 on; before, the garbage collector does."""
    held = [task.get_context()] if hasattr(task, "get_context") else [one for one in gc.get_referents(task) if isinstance(one, Context)]
    return next((scope for context in held if (scope := context.get(_current)) is not None), None)


def give(thread: threading.Thread, scope: Any) -> None:
    """Let a thread that is about to start belong to `scope`, and to the piece of work that starts it."""
    global _threads_framed
    _started_in[thread] = scope
    one = carried()
    if one is not None:
        _framed_in[thread], _threads_framed = one, True


def take_back(thread: threading.Thread) -> None:
    """Let a thread belong to nothing: it serves whoever brings it work."""
    _started_in.pop(thread, None)


def enter(scope: Any) -> Callable[[], None]:
    """Make `scope` current here and count it as running. Returns what leaves it again (from any context, more than once)."""
    global _running
    told()  # not a scope that is over
    outer, place = _current.get(), _place()
    _current.set(scope)
    with _lock:
        _running = [*_running, (scope, outer)]
        if threading.current_thread() is not threading.main_thread() or _task() is not None:
            _apart.add(id(scope))

    def leave() -> None:
        nonlocal outer
        global _running
        with _lock:
            # What was around it may have been left before it: then what is around that.
            outer = next((around for one, around in _running if one is scope), outer)
            _running = [(one, outer if around is scope else around) for one, around in _running if one is not scope]
            _apart.discard(id(scope))
        # Not `reset(token)`: a scope may be left in another context than the one that entered it (async cells, generators).
        if _current.get() is scope:
            _current.set(outer)
        if place != _place():
            _astray.append((scope, place, outer))

    return leave


@contextmanager
def within(scope: Any) -> Iterator[None]:
    """Charge the calls of a ``with`` block to `scope`, without counting it as one more running scope."""
    outer = _current.get()
    _current.set(scope)
    try:
        yield
    finally:
        _current.set(outer)


def set_default(scope: Any) -> None:
    """The scope of last resort, for calls that belong to nothing else (the notebook itself). None takes it away."""
    global _default
    _default = scope
