"""``@wflo_nb.checkpoint``: what a step of a workflow gave is kept, and given again when the workflow is resumed."""

from __future__ import annotations

import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from wflo_nb.workflow.session import Call, current_session
from wflo_nb.workflow.steps import _Inside
from wflo_nb.workflow.wrapping import Before, How, Watch, wrap

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
        return wrap(function, lambda args, kwargs: _Kept(label, args[:own], args[own:], kwargs))

    return decorate if fn is None else decorate(fn)


class _Kept(Watch):
    """One call of a function that is checkpointed."""

    def __init__(self, name: str, owner: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._name = name
        self._items: list[Any] = []
        self._session = current_session()
        self._call: Call | None = None
        # Now, and not when it begins, in a thread: calls are told apart by their order, and others may change what it was given.
        if self._session is not None and self._session.shelf is not None:
            print_, opaque = fingerprint(args, kwargs)
            self._call = self._session.calling(name, print_, (*owner, *opaque), by_order=bool(opaque))

    def begin(self) -> Before | None:
        if self._session is None:
            return None
        saved = self._session.answered(self._call) if self._call is not None else None
        if saved is not None:
            self._session.partial = saved.state
            return Before(saved.state, saved.facts.get("how"), saved.facts.get("returned"))
        self._session.tick(self._name)
        return None

    @contextmanager
    def within(self) -> Iterator[None]:
        with _Inside(self._name), self._session.inside(self._call) if self._session and self._call else nullcontext():
            yield

    def item(self, value: Any) -> None:
        if self._session is not None:
            self._items.append(value)

    def done(self, value: Any, how: How) -> None:
        call, self._call = self._call, None  # whatever is told of it from now on, it has not failed
        if self._session is not None:
            facts = {"how": how, **({} if call is None else call.facts)}
            if how in ("items", "async items"):
                facts["returned"], value = value, self._items
            self._session.save(self._name, value, **facts)

    def failed(self, _: BaseException) -> None:
        call, self._call = self._call, None  # once: it may be made again meanwhile
        if self._session is not None and call is not None:
            self._session.gave_up(call)


def _is_method(function: Callable[..., Any]) -> bool:
    """Whether its first argument is an object that it belongs to, whose own state says nothing about the call."""
    try:
        first = next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return False
    return first in ("self", "cls")


def fingerprint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, list[Any]]:
    """A short name for arguments by their content, None where they are too long; and those that are not in it.

    What cannot be pickled is in it by the name of its type.
    """
    try:
        return _digest((args, kwargs)), []
    except OverflowError:
        return None, [*args, *kwargs.values()]
    except Exception:  # also of circles; pickling runs code of the user's
        pass
    opaque: list[Any] = []

    def told(argument: Any) -> Any:
        try:
            return _digest(argument)
        except Exception:
            opaque.append(argument)
            return (f"{type(argument).__module__}.{type(argument).__qualname__}",)

    return _digest(([told(one) for one in args], {name: told(one) for name, one in kwargs.items()})), opaque


def _digest(thing: object) -> str:
    sink = _Hash()
    pickler = pickle.Pickler(sink, protocol=5)
    pickler.fast = True  # by content alone: without it, the bytes tell which texts happen to be one object
    pickler.dump(thing)
    if sink.sets:
        sink = _Hash()
        pickler = _Sorting(sink, protocol=5)
        pickler.fast = True
        pickler.dump(thing)
    return sink.hash.hexdigest()


class _Sorting(pickle.Pickler):
    """Pickles sets in an order of their own, and not in that of hashes, which are others in each process."""

    def persistent_id(self, thing: Any) -> Any:
        # Of the hooks, this alone is asked about sets; it is also asked about everything else, which takes its time.
        if type(thing) in (set, frozenset):
            return (type(thing).__name__, sorted(map(_digest, thing)))
        return None


class _Hash:
    """A file that only its hash is kept of."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.sets = False  # whether there may be one in it
        self._size = 0

    def write(self, data: Any) -> int:
        """Raises OverflowError for what is too long to be worth it."""
        size = memoryview(data).nbytes
        self._size += size
        if self._size > _LONGEST:
            raise OverflowError
        self.hash.update(data)
        self.sets = self.sets or any(opcode in bytes(data) for opcode in (pickle.EMPTY_SET, pickle.FROZENSET))
        return size
