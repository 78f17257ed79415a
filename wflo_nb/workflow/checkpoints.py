"""``@wflo_nb.checkpoint``: what a step of a workflow gave is kept, and given again when the workflow is resumed."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from wflo_nb.workflow.session import Session, current_session
from wflo_nb.workflow.steps import _Inside
from wflo_nb.workflow.wrapping import NOTHING, Watch, wrap

#: Bytes of pickled arguments beyond which calls are told apart by their order alone.
_LONGEST = 4 * 1024 * 1024


def checkpoint(fn: Callable[..., Any] | str | None = None, /, *, name: str | None = None) -> Any:
    """Keep what a function returns as a checkpoint of the workflow that it runs in.

        @wflo_nb.checkpoint                    # or @checkpoint(name="draft"), @checkpoint("draft")
        async def write_draft(topic): ...

    For plain, async and generator functions and methods (of a generator the list of its items is kept). The state is the *output*, of
    any kind that can be pickled, under `name` (by default the function's), as the next version of that name. It is taken after the
    function is done and never makes it fail: what could not be kept is told in a warning. The function is a step of that name (see
    `step`). In `WfloWorkflow.resume` a step that was finished is not run again: its answer from before is given. Outside of a
    workflow the function runs as if it were not decorated.
    """
    if isinstance(fn, str):
        fn, name = None, fn

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        label: str = name or getattr(function, "__name__", None) or type(function).__name__
        own = _is_method(function)
        return wrap(function, lambda args, kwargs: _Kept(label, args[own:], kwargs))

    return decorate if fn is None else decorate(fn)


class _Kept(Watch):
    """One call of a function that is checkpointed."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._name = name
        self._arguments = (args, kwargs)
        self._session: Session | None = None
        self._print: str | None = None
        self._items: list[Any] | None = None

    def begin(self) -> object:
        self._session = current_session()
        if self._session is None:
            return NOTHING
        if self._session.shelf is not None:
            self._print = fingerprint(self._arguments)  # now: the function may change what it was given
        saved = self._session.answered(self._name, self._print)
        if saved is not None:
            self._session.partial = saved.state
            return saved.state
        self._session.tick(self._name)
        return NOTHING

    def within(self) -> AbstractContextManager[object]:
        return _Inside(self._name)

    def item(self, value: Any) -> None:
        if self._items is None:
            self._items = []
        self._items.append(value)

    def done(self, value: Any) -> None:
        if self._session is not None:
            self._session.save(self._name, value if self._items is None else self._items, print_=self._print)


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether its first argument is an object that it belongs to, whose own state says nothing about the call."""
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return False
    return first in ("self", "cls")


def fingerprint(arguments: object) -> str | None:
    """A short name for arguments by their content; None where they are too long or cannot be pickled."""
    sink = _Hash()
    try:
        pickler = pickle.Pickler(sink, protocol=5)
        pickler.fast = True  # by content alone: without it, the bytes tell which texts happen to be one object
        pickler.dump(arguments)
    except Exception:  # also of circles; pickling runs code of the user's
        return None
    return sink.hash.hexdigest()


class _Hash:
    """A file that only its hash is kept of."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        """Raises OverflowError for what is too long to be worth it."""
        size = memoryview(data).nbytes
        self._size += size
        if self._size > _LONGEST:
            raise OverflowError
        self.hash.update(data)
        return size
