"""Threads and pools, which contextvars do not reach, belong to the scope and the piece of work that started them or gave them work.

The doors are patched while somebody needs it (`follow_threads`): ``Thread.start``, ``ThreadPoolExecutor.submit`` and the methods of
``multiprocessing.pool.ThreadPool``, which joblib's threads work with, too.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from wflo_nb import _context

_lock = threading.RLock()
_pooling = threading.local()
_followers = 0
_real_start = threading.Thread.start
_real_submit: Any = ThreadPoolExecutor.submit


@functools.wraps(_real_start)
def _start(self: threading.Thread) -> None:
    # Not `current()`: a kernel's own threads, started while a cell happens to run, outlive the cell and do not belong to it.
    # Nor does a pool's worker belong to whoever submitted first: it serves others later, and each piece of work brings its own.
    scope = None if getattr(_pooling, "submitting", False) else _context.told()
    if scope is not None:
        _context.give(self, scope)
    _watch_thread_pools()  # one that is made now starts its threads before it is given any work
    _real_start(self)


def _submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    scope = _context.told()
    if scope is None or _elsewhere(self):
        return _pooled(self, fn, *args, **kwargs)

    return _pooled(self, _bound(scope, fn), *args, **kwargs)


def _elsewhere(pool: ThreadPoolExecutor) -> bool:
    """Whether its threads run in interpreters of their own, which our function cannot be sent to (nor see the calls made there)."""
    kind: Any = getattr(sys.modules.get("concurrent.futures.interpreter"), "InterpreterPoolExecutor", None)
    return kind is not None and isinstance(pool, kind)


def _pooled(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    _pooling.submitting = True
    try:
        return _real_submit(pool, fn, *args, **kwargs)  # type: ignore[no-any-return]
    finally:
        _pooling.submitting = False


# -- multiprocessing's pools of threads ----------------------------------------------------------------------------------------

#: Where a `ThreadPool` may come from; the second is the first under the name that pathos gives it.
_POOL_MODULES = ("multiprocessing.pool", "multiprocess.pool")
#: How work comes in; all others (map, starmap, apply) end in one of these.
_POOL_DOORS = ("apply_async", "_map_async", "imap", "imap_unordered")
_POOL_HANDLERS = ("_worker_handler", "_task_handler", "_result_handler")
_pool_doors: dict[str, list[tuple[Any, str, Any]]] = {}


def _watch_thread_pools() -> None:
    """Patch the pools' classes as soon as they are loaded: importing them for this would cost those who do not need them."""
    for name in _POOL_MODULES:
        module = sys.modules.get(name)
        cls: Any = getattr(module, "ThreadPool", None)  # a module that is just being imported has none yet
        if cls is None or name in _pool_doors:
            continue
        doors = _pool_doors[name] = []
        for door in _POOL_DOORS:
            if hasattr(cls, door):
                wrapped = _door(getattr(cls, door))
                doors.append((cls, door, wrapped))
                setattr(cls, door, wrapped)  # in this class alone: pools of processes inherit the same methods from another one


def _leave_thread_pools() -> None:
    for doors in _pool_doors.values():
        for cls, door, wrapped in doors:
            if cls.__dict__.get(door) is wrapped:
                delattr(cls, door)
    _pool_doors.clear()


def _door(real: Any) -> Any:
    import inspect

    shape = inspect.signature(real)

    @functools.wraps(real)
    def door(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = _context.told()
        for thread in (*self._pool, *(getattr(self, name, None) for name in _POOL_HANDLERS)):
            if thread is not None:  # its threads serve whoever brings them work, not the scope that made them
                _context.take_back(thread)
        if scope is None:
            return real(self, *args, **kwargs)
        given = shape.bind(self, *args, **kwargs)
        for name in ("func", "callback", "error_callback"):
            if given.arguments.get(name) is not None:
                given.arguments[name] = _bound(scope, given.arguments[name])
        items = given.arguments.get("iterable")
        if items is not None and not hasattr(items, "__len__"):  # a generator may make calls, too, in whatever thread asks it
            given.arguments["iterable"] = _Drawn(scope, items)
        return real(*given.args, **given.kwargs)

    return door


def _bound(scope: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    one = _context.carried()

    @functools.wraps(fn, updated=())
    def bound(*args: Any, **kwargs: Any) -> Any:
        with _context.within(scope), _context.framed(one):
            return fn(*args, **kwargs)

    return bound


class _Drawn:
    """An iterator that is asked in `scope`."""

    def __init__(self, scope: Any, items: Iterable[Any]) -> None:
        self._scope = scope
        self._items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with _context.within(self._scope):
            return next(self._items)


def follow_threads() -> Callable[[], None]:
    """Let threads and pool work inherit the scope of their starter until the returned undo is called. Counted."""
    global _followers
    with _lock:
        _followers += 1
        if _followers == 1:
            threading.Thread.start = _start  # type: ignore[method-assign]
            ThreadPoolExecutor.submit = _submit  # type: ignore[assignment, method-assign]
        _watch_thread_pools()
    done = False

    def undo() -> None:
        nonlocal done
        global _followers
        with _lock:
            if done:
                return
            done = True
            _followers -= 1
            if _followers == 0:
                # Somebody may have wrapped us meanwhile; putting the original back would silently cut them off.
                if threading.Thread.start is _start:
                    threading.Thread.start = _real_start  # type: ignore[method-assign]
                if ThreadPoolExecutor.submit is _submit:
                    ThreadPoolExecutor.submit = _real_submit  # type: ignore[method-assign]
                _leave_thread_pools()

    return undo
