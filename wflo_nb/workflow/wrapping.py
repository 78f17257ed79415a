"""A function of any kind with something watching it: plain, async, generator, async generator; partials and objects that are called.

Decorators and workflows say what they watch (`Watch`); here, and only here, is said how each kind of function is driven.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from wflo_nb.workflow.offloop import WAITING, aside

T = TypeVar("T")

#: How a function gives its answer: as it is, as what a coroutine comes to that it hands out, or as the items of a generator of a kind.
How = Literal["value", "awaited", "items", "async items"]


@dataclass(frozen=True, slots=True)
class Before:
    """An answer from before, to be given again.

    Attributes:
        value: the answer; of a generator the list of its items.
        how: how it was given; None if nobody noted it.
        returned: what a generator returned at its end.
    """

    value: Any
    how: How | None = None
    returned: Any = None

    @property
    def items(self) -> list[Any]:
        """What a generator gives again."""
        return self.value if isinstance(self.value, list) else [self.value]

    @property
    def end(self) -> Any:
        """What a generator returns then."""
        return self.value if self.how is None else self.returned

    def again(self) -> Any:
        """What a function gives again that was no generator function itself, nor a coroutine function."""
        if self.how == "awaited":
            return _awaitable(self.value)
        if self.how == "items":
            return self.followed()
        return self.followed_async() if self.how == "async items" else self.value

    def followed(self) -> Generator[Any, Any, Any]:
        """A generator that gives it again."""
        yield from self.items
        return self.end

    async def followed_async(self) -> AsyncGenerator[Any, Any]:
        """An async generator that gives it again."""
        for item in self.items:
            yield item


async def _awaitable(value: T) -> T:
    return value


class Watch:
    """What happens around one call of a function. Every method may use the disk: in an event loop they run in a thread."""

    def begin(self) -> Before | None:
        """Before the function runs. If it returns an answer, that is given, and the function is not run."""
        return None

    def within(self) -> AbstractContextManager[object]:
        """Set around the function's code, and around each piece of a generator's, never around what its caller does in between."""
        return nullcontext()

    def item(self, value: Any) -> None:
        """A generator gave a value."""

    def done(self, value: Any, how: How) -> None:
        """The function is over; a generator gives its return value, an async one None."""

    def failed(self, error: BaseException) -> None:
        """It raised, was cancelled, or was closed before its end. May be told twice, and after it was done."""


Opening = Callable[[tuple[Any, ...], dict[str, Any]], Watch]


async def _begun(watch: Watch) -> Before | None:
    """`Watch.begin`, off the loop. Where nobody waits for it any more, it is over as soon as it has begun."""
    finished = threading.Event()
    gone: list[BaseException] = []

    def work() -> Before | None:
        answer = watch.begin()
        finished.set()
        if gone:
            watch.failed(gone[0])
        return answer

    try:
        return await aside(work, lane=WAITING)
    except asyncio.CancelledError as error:
        gone.append(error)
        if finished.is_set():
            watch.failed(error)
        raise


def bare(fn: Any) -> Any:
    """The function that says what kind `fn` is: below partials, and of objects with ``__call__``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not (inspect.isroutine(fn) or inspect.isclass(fn)) and hasattr(type(fn), "__call__"):  # noqa: B004 - the method itself is wanted
        return type(fn).__call__
    return fn


def is_async(fn: Any) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(bare(fn))


def wrap(fn: Callable[..., Any], opening: Opening) -> Callable[..., Any]:
    """`fn`, of its own kind, with a watch on each call."""
    kind = bare(fn)
    made: Callable[..., Any]
    if inspect.isasyncgenfunction(kind):

        async def made(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            stream = follow_async(opening(args, kwargs), lambda: fn(*args, **kwargs))
            step: Callable[[], Any] = stream.__anext__
            try:
                while True:
                    try:
                        item = await step()
                    except StopAsyncIteration:
                        return
                    try:
                        step = functools.partial(stream.asend, (yield item))
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step = functools.partial(stream.athrow, error)
            finally:
                await stream.aclose()

    elif inspect.isgeneratorfunction(kind):

        def made(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from follow(opening(args, kwargs), lambda: fn(*args, **kwargs)))

    elif inspect.iscoroutinefunction(kind):

        async def made(*args: Any, **kwargs: Any) -> Any:
            return await awaited(opening(args, kwargs), lambda: fn(*args, **kwargs))

    else:

        def made(*args: Any, **kwargs: Any) -> Any:
            return called(opening(args, kwargs), lambda: fn(*args, **kwargs))

    try:
        return functools.wraps(fn)(made)
    except AttributeError:  # a partial, or an object, without a name
        return made


def called(watch: Watch, work: Callable[[], Any]) -> Any:
    """Run a plain function. One that only hands out a generator or a coroutine is watched until that is over."""
    before = watch.begin()
    if before is not None:
        return before.again()
    try:
        with watch.within():
            answer = work()
    except BaseException as error:
        watch.failed(error)
        raise
    if inspect.iscoroutine(answer):
        return awaited(watch, lambda: answer, begun=True)
    handed = _handed_out(watch, answer)
    if handed is not None:
        return handed
    watch.done(answer, "value")
    return answer


def _handed_out(watch: Watch, answer: Any) -> Any:
    """A generator that a function of another kind gave, watched until it is over; None for what is an answer."""
    if not (inspect.isgenerator(answer) or inspect.isasyncgen(answer)):
        return None
    handed = (follow if inspect.isgenerator(answer) else follow_async)(watch, lambda: answer, begun=True)
    # One that is dropped before its first item runs no code of its own that could tell so.
    weakref.finalize(handed, watch.failed, GeneratorExit()).atexit = False
    return handed


async def awaited(watch: Watch, work: Callable[[], Awaitable[Any]], *, begun: bool = False) -> Any:
    """Run a coroutine. One that only hands out a generator is watched until that is over."""
    before = None if begun else await _begun(watch)
    if before is not None:
        return before.value if before.how == "awaited" else before.again()
    try:
        with watch.within():
            answer = await work()
    except Exception as error:
        await aside(watch.failed, error)
        raise
    except BaseException as error:  # cancelled: its loop may have no time for threads any more
        watch.failed(error)
        raise
    handed = _handed_out(watch, answer)
    if handed is not None:
        return handed
    await aside(watch.done, answer, "awaited" if begun else "value")
    return answer


def follow(watch: Watch, work: Callable[[], Any], *, begun: bool = False) -> Generator[Any, Any, Any]:
    """Run a generator: what goes in goes in, what comes out comes out. An answer from before is given item by item."""
    before = None if begun else watch.begin()
    if before is not None:
        return (yield from before.followed())
    with watch.within():
        inner = work()
    step: Callable[[], Any] = functools.partial(next, inner)
    try:
        while True:
            try:
                with watch.within():
                    item = step()
            except StopIteration as end:
                watch.done(end.value, "items")
                return end.value
            try:
                watch.item(item)
            except BaseException:
                with watch.within():
                    inner.close()
                raise
            try:
                sent = yield item
                step = functools.partial(next, inner) if sent is None else functools.partial(inner.send, sent)
            except GeneratorExit:
                with watch.within():
                    inner.close()
                raise
            except BaseException as error:
                step = functools.partial(inner.throw, error)
    except BaseException as error:
        watch.failed(error)
        raise


async def follow_async(watch: Watch, work: Callable[[], Any], *, begun: bool = False) -> AsyncGenerator[Any, Any]:
    """Run an async generator."""
    before = None if begun else await _begun(watch)
    if before is not None:
        for item in before.items:
            yield item
        return
    with watch.within():
        inner = work()
    step: Callable[[], Any] = inner.__anext__
    try:
        while True:
            try:
                with watch.within():
                    item = await step()
            except StopAsyncIteration:
                await aside(watch.done, None, "async items")
                return
            try:
                watch.item(item)
            except BaseException:
                with watch.within():
                    await inner.aclose()
                raise
            try:
                sent = yield item
                step = inner.__anext__ if sent is None else functools.partial(inner.asend, sent)
            except GeneratorExit:
                with watch.within():
                    await inner.aclose()
                raise
            except BaseException as error:
                step = functools.partial(inner.athrow, error)
    except Exception as error:
        await aside(watch.failed, error)
        raise
    except BaseException as error:
        watch.failed(error)
        raise
