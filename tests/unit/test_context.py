from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from types import ModuleType
from typing import Any

import pytest
import trio

from wflo_nb import _context, _threads


@pytest.fixture(autouse=True)
def follow() -> Iterator[None]:
    undo = _threads.follow_threads()
    yield
    undo()


def in_thread() -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(_context.current()))
    thread.start()
    thread.join()
    return found[0]


def test_nothing_is_current_at_first() -> None:
    assert _context.current() is None


def test_inner_scope_counts_until_it_is_left() -> None:
    leave_outer = _context.enter("outer")
    leave_inner = _context.enter("inner")
    assert _context.current() == "inner"
    leave_inner()
    assert _context.current() == "outer"
    leave_outer()
    leave_outer()
    assert _context.current() is None


def test_thread_belongs_to_the_scope_that_started_it_even_among_several() -> None:
    leave_a = _context.enter("a")
    with _context.within("b"):
        assert in_thread() == "b"
    assert in_thread() == "a"
    leave_a()


def test_pool_work_belongs_to_its_submitter_not_to_the_workers_first_user() -> None:
    with ThreadPoolExecutor(1) as pool:
        for name in ("a", "b"):
            with _context.within(name):
                assert pool.submit(_context.current).result() == name
                assert list(pool.map(lambda _: _context.current(), range(2))) == [name, name]


def test_tasks_keep_the_scope_they_were_made_in() -> None:
    async def work() -> list[object]:
        async def look() -> object:
            await asyncio.sleep(0.01)
            return _context.current()

        with _context.within("a"):
            first = asyncio.create_task(look())
        with _context.within("b"):
            second = asyncio.create_task(look())
        return [await first, await second, await asyncio.to_thread(_context.current)]

    assert asyncio.run(work()) == ["a", "b", None]


def test_plain_thread_falls_back_to_the_one_running_scope_then_to_the_default() -> None:
    _context.set_default("notebook")
    seen: list[object] = []
    go, done = threading.Event(), threading.Event()

    def look() -> None:
        for _ in range(3):
            go.wait(5)
            go.clear()
            seen.append(_context.current())
            done.set()

    def ask() -> None:
        done.clear()
        go.set()
        done.wait(5)

    _threads._real_start(threading.Thread(target=look, daemon=True))  # a thread that nobody followed
    try:
        ask()
        leave_a = _context.enter("a")
        ask()
        leave_b = contextvars.Context().run(_context.enter, "b")  # beside it
        ask()
        leave_b()
        leave_a()
    finally:
        _context.set_default(None)
    assert seen == ["notebook", "a", "notebook"]


def test_of_nested_scopes_the_innermost_is_meant_and_of_parallel_ones_what_is_around_them() -> None:
    elsewhere = contextvars.Context()
    leave_outer = _context.enter("outer")
    beside = contextvars.copy_context()
    leave_inner = _context.enter("inner")
    try:
        assert elsewhere.run(_context.current) == "inner"
        leave_second = beside.run(_context.enter, "second")
        assert elsewhere.run(_context.current) == "outer"
        leave_second()
    finally:
        leave_inner()
        leave_outer()
    assert elsewhere.run(_context.current) is None


def test_pool_made_in_a_scope_does_not_belong_to_it_afterwards(follow: None) -> None:
    with ThreadPoolExecutor(1) as pool:
        with _context.within("first"):
            assert pool.submit(_context.current).result() == "first"
        assert pool.submit(_context.current).result() is None
        with _context.within("second"):
            assert pool.submit(_context.current).result() == "second"


def test_doors_are_as_they_were_when_the_last_follower_leaves(follow: None) -> None:
    patched = threading.Thread.start
    undo = _threads.follow_threads()
    undo()
    undo()
    assert threading.Thread.start is patched


def test_call_that_might_belong_to_several_is_charged_to_the_newest_never_to_none() -> None:
    seen: list[object] = []
    go = threading.Event()

    def look() -> None:
        go.wait(5)
        seen.append(_context.current())

    thread = threading.Thread(target=look)
    _threads._real_start(thread)
    leave_a = _context.enter("a")
    token = _context._current.set(None)  # side by side, not nested
    leave_b = _context.enter("b")
    go.set()
    thread.join()
    leave_b()
    _context._current.reset(token)
    leave_a()
    assert seen == ["b"]


def test_new_scope_of_a_task_lies_beside_those_of_other_tasks_and_inside_what_its_own_was_started_in() -> None:
    async def request(name: str) -> list[object]:
        seen = [_context.around()]
        leave = _context.enter(name)
        await asyncio.sleep(0.01)
        seen.append(_context.around())

        async def part() -> object:
            return _context.around()

        seen.append(await asyncio.create_task(part()))
        leave()
        return seen

    async def serve() -> list[list[object]]:
        return await asyncio.gather(request("a"), request("b"))

    assert asyncio.run(serve()) == [[None, "a", "a"], [None, "b", "b"]]
    leave = _context.enter("script")
    assert asyncio.run(serve()) == [["script", "a", "a"], ["script", "b", "b"]]
    leave()


def test_new_scope_of_a_task_of_trio_lies_beside_those_of_other_tasks() -> None:
    seen: dict[str, list[object]] = {}

    async def request(name: str, mine: trio.Event, others: trio.Event) -> None:
        around = _context.around()
        leave = _context.enter(name)
        mine.set()
        await others.wait()
        seen[name] = [around, _context.current(), _context.around()]
        leave()

    async def serve() -> None:
        entered = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request, "a", *entered)
            nursery.start_soon(request, "b", *reversed(entered))

    trio.run(serve)
    assert seen == {"a": [None, "a", "a"], "b": [None, "b", "b"]}
    assert _context.current() is None


def test_new_scope_of_a_thread_lies_beside_those_of_other_threads_and_inside_what_its_own_was_started_in() -> None:
    def request(name: str, seen: list[object], entered: threading.Barrier) -> None:
        seen.append(_context.around())
        leave = _context.enter(name)
        entered.wait(5)
        seen.append(_context.around())
        inner = threading.Thread(target=lambda: seen.append(_context.around()))
        inner.start()
        inner.join()
        entered.wait(5)
        leave()

    def serve() -> list[list[object]]:
        entered, seen, threads = threading.Barrier(2), {"a": [], "b": []}, []  # type: ignore[var-annotated]
        for name, list_ in seen.items():
            threads.append(threading.Thread(target=request, args=(name, list_, entered)))
            threads[-1].start()
            while len(list_) < 1:
                threading.Event().wait(0.01)
        for thread in threads:
            thread.join()
        return [*seen.values()]

    assert serve() == [[None, "a", "a"], [None, "b", "b"]]
    leave = _context.enter("script")
    assert serve() == [["script", "a", "a"], ["script", "b", "b"]]
    leave()


def test_new_scope_of_a_task_that_nobody_followed_lies_in_the_one_that_plain_code_entered() -> None:
    seen: list[object] = []

    def loop_of_its_own() -> None:
        async def look() -> None:
            seen.append(_context.around())

        asyncio.run(look())

    leave = _context.enter("script")
    thread = threading.Thread(target=loop_of_its_own)
    _threads._real_start(thread)
    thread.join()
    leave()
    assert seen == ["script"]


def test_scopes_may_be_left_in_any_order_and_none_that_was_left_comes_back() -> None:
    leaves = {name: _context.enter(name) for name in ("a", "b", "c")}
    leaves["a"]()
    assert _context.current() == "c"
    leaves["b"]()
    leaves["c"]()
    assert _context.current() is None and _context.running() == []


def test_where_a_scope_was_entered_that_was_left_from_another_thread_what_is_around_it_counts() -> None:
    leave_outer = _context.enter("outer")
    leave = _context.enter("inner")
    inherited = contextvars.copy_context()  # as a task has that was started inside
    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    elsewhere: list[object] = []
    beside = threading.Thread(target=lambda: elsewhere.append(inherited.run(_context.current)))
    beside.start()
    beside.join()
    assert elsewhere == ["inner"]
    leave_again = _context.enter("next")
    assert _context.current() == "next"
    leave_again()
    assert _context.current() == "outer"
    leave_outer()
    assert _context.current() is None and not _context._astray


def test_tasks_keep_a_scope_that_another_task_has_left() -> None:
    async def work() -> list[object]:
        leaves: list[Any] = []

        async def enters() -> tuple[object, Any]:
            leaves.append(_context.enter("a"))
            inside = asyncio.create_task(later())
            await left.wait()
            return _context.current(), await inside

        async def later() -> object:
            await left.wait()
            return _context.current()

        left = asyncio.Event()
        task = asyncio.create_task(enters())
        await asyncio.sleep(0)
        leaves[0]()
        left.set()
        return [*await task, _context.current()]

    assert asyncio.run(work()) == [None, "a", None]


def test_work_for_another_interpreter_is_handed_over_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python 3.14 has: a pool of threads that sends each piece of work, pickled, into an interpreter of its own.
    class InterpreterPoolExecutor(ThreadPoolExecutor):
        """Its kind."""

    module: Any = ModuleType("concurrent.futures.interpreter")
    module.InterpreterPoolExecutor = InterpreterPoolExecutor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    handed: list[object] = []
    real = _threads._real_submit
    monkeypatch.setattr(_threads, "_real_submit", lambda pool, fn, *args: handed.append(fn) or real(pool, fn, *args))
    with _context.within("cell"), InterpreterPoolExecutor(1) as theirs, ThreadPoolExecutor(1) as ours:
        theirs.submit(print).result()
        ours.submit(print).result()
    assert handed[0] is print and handed[1] is not print


def seen_by(pool: ThreadPool) -> dict[str, set[object]]:
    """The scopes that code sees which comes in by the doors of a pool: work, callbacks, and the generator that it is drawn from."""
    seen: dict[str, set[object]] = {}

    def look(*_: object) -> object:
        return _context.current()

    def note(name: str) -> Any:
        return lambda _: seen.setdefault(name, set()).add(_context.current())

    def items() -> Iterator[int]:
        for n in range(2):
            note("drawn")(n)
            yield n

    def fail() -> None:
        raise ValueError

    seen["apply"] = {pool.apply(look)}
    seen["map"] = set(pool.map(look, range(3)))
    seen["starmap"] = set(pool.starmap(look, [(1, 2), (3, 4)]))
    seen["imap"] = {*pool.imap(look, items()), *pool.imap(look, items(), 2)}
    seen["imap_unordered"] = set(pool.imap_unordered(look, iterable=items()))
    pool.map_async(look, range(2), 1, note("mapped")).wait()
    pool.apply_async(look, (), {}, note("applied"), None).wait()
    pool.apply_async(fail, error_callback=note("failed")).wait()
    pool.close()
    pool.join()
    return seen


def test_thread_pool_of_multiprocessing_works_for_whoever_brings_it_work_and_not_for_its_maker() -> None:
    with _context.within("maker"):
        used, unused = ThreadPool(2), ThreadPool(2)
    with _context.within("bringer"):
        seen = seen_by(used)
    assert len(seen) == 9 and all(scopes == {"bringer"} for scopes in seen.values()), seen
    assert all(scopes == {None} for scopes in seen_by(unused).values())


def test_thread_pool_that_is_loaded_or_made_before_anybody_follows_is_followed_from_then_on(follow: None) -> None:
    pool = ThreadPool(1)  # the module was loaded before, too
    with _context.within("cell"):
        assert pool.apply(_context.current) == "cell"
    pool.terminate()


def test_process_pools_keep_their_methods() -> None:
    from multiprocessing.pool import Pool

    assert all(door in vars(ThreadPool) and not hasattr(vars(Pool)[door], "__wrapped__") for door in _threads._POOL_DOORS)


def test_place_that_lies_in_others_tells_all_their_names_also_in_threads() -> None:
    places = ["tool", "agent"]
    told: list[list[str]] = []
    leave = _context.enter("scope")
    with _context.framed(_context.Frame("outer", None)), _context.framed(_context.Frame(lambda: places, _context.frame())):
        assert (_context.steps(), _context.announce("call-1")[0]) == (["tool", "agent", "outer"], "tool")
        thread = threading.Thread(target=lambda: told.append(_context.steps()))
        thread.start()
        thread.join()
        with _context.framed(_context.Frame(list, _context.frame())):
            assert _context.announce("call-1")[0] == "tool"
    places.clear()
    leave()
    assert told == [["tool", "agent", "outer"]]
    assert (_context.steps(), _context.announce("call-1")) == ([], (None, {}))
