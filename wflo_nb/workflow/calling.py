"""How a workflow's inputs reach a function, and how async work is run for code that is not async."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from typing import Any

from wflo_nb.workflow.offloop import off_the_loop

_END = object()
#: A first parameter of these names, if it is the only one needed, takes the inputs as they are, even if one of them is called the same.
_WHOLE = ("inputs", "state")


def bound(fn: Callable[..., Any], inputs: Any, options: Mapping[str, Any]) -> Callable[[], Any]:
    """`fn` with its inputs: by name where its parameters are called as the inputs are, as one argument otherwise, none if it takes none."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin that does not tell
        return lambda: fn(inputs, **options)
    parameters = list(signature.parameters.values())
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not parameters or (inputs is None and not required):
        return lambda: fn(**options)
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        whole = parameters[0].name in _WHOLE and _fits(signature, inputs, **options)
        if not whole and _fits(signature, **{**inputs, **options}):
            return lambda: fn(**inputs, **options)
    return lambda: fn(inputs, **options)


def _fits(signature: inspect.Signature, /, *args: Any, **kwargs: Any) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


async def pulled(generator: Generator[Any, Any, Any]) -> AsyncGenerator[Any, Any]:
    """A plain generator as an async one, with what is sent and thrown into it.

    Its pieces run in threads, and all in one context, so that a step around several of them stays a step.
    """
    context, turn = contextvars.copy_context(), threading.Lock()

    def piece(step: Callable[[], Any]) -> Any:
        with turn:
            try:
                return context.run(step)
            except StopIteration:
                return _END

    step: Callable[[], Any] = functools.partial(next, generator)
    try:
        while (item := await off_the_loop(piece, step)) is not _END:
            try:
                step = functools.partial(generator.send, (yield item))
            except GeneratorExit:
                piece(generator.close)
                raise
            except BaseException as error:
                step = functools.partial(generator.throw, error)
    except asyncio.CancelledError:  # the thread cannot be cancelled: one closes it when the piece is over
        asyncio.get_running_loop().run_in_executor(None, piece, generator.close)
        raise


def waited_for(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The result of a coroutine, from plain code: also where an event loop runs already, as in a notebook's cell."""
    if not in_loop():
        return asyncio.run(work())
    with _LoopThread() as loop:
        return loop.run(work())


def in_loop() -> bool:
    """Whether this code runs in an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def items_of(stream: AsyncGenerator[Any, Any]) -> Generator[Any, Any, None]:
    """What an async generator gives, for plain code, with what is sent and thrown into it."""
    items = _items(stream)
    _given.add(items)
    return items


#: Generators that run in loops of ours. They are closed before the process ends: after that nothing runs in such a loop any more.
_given: weakref.WeakSet[Generator[Any, Any, None]] = weakref.WeakSet()


def _close_given() -> None:
    for items in list(_given):
        with suppress(Exception):
            items.close()


def _items(stream: AsyncGenerator[Any, Any]) -> Generator[Any, Any, None]:
    step: Callable[[], Awaitable[Any]] = stream.__anext__
    with _LoopThread() as loop:
        try:
            while (item := loop.run(_piece(step))) is not _END:
                atexit.unregister(_close_given)
                atexit.register(_close_given)  # to be done before the store, which is open by now, is closed
                try:
                    step = functools.partial(stream.asend, (yield item))
                except GeneratorExit:
                    raise
                except BaseException as error:
                    step = functools.partial(stream.athrow, error)
        finally:
            loop.run(stream.aclose())


async def _piece(step: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await step()
    except StopAsyncIteration:
        return _END


async def _cancel_all() -> None:
    """Cancel the tasks that are left in the loop, as `asyncio.run` does."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


class _LoopThread:
    """An event loop of its own in a thread of its own, in one context: that of whoever asked for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = contextvars.copy_context()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wflo-workflow", daemon=True)

    def __enter__(self) -> _LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(_cancel_all())
        self.run(self._loop.shutdown_asyncgens())
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a coroutine; an interrupt cancels it."""
        started: list[asyncio.Task[Any]] = []
        over = threading.Event()

        def start() -> None:
            task = self._loop.create_task(work, context=self._context)
            started.append(task)
            task.add_done_callback(lambda _: over.set())

        self._loop.call_soon_threadsafe(start)
        try:
            over.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: started[0].cancel())
            over.wait()
            raise
        return started[0].result()
