"""What cannot be saved is kept by reference, named with its reason, and loses nothing around it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import gc
import pickle
import socket
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.errors import RestoreError
from wflo_nb.snapshot import references
from wflo_nb.snapshot.engine import SnapshotEngine

Run = Callable[[str], None]


def _generator() -> Any:
    yield 1


class _Raises:
    def __reduce__(self) -> Any:
        raise ValueError("no")


class _Nonsense:
    def __reduce__(self) -> Any:
        return 17


class _ItemsRaise:
    def __reduce__(self) -> Any:
        def items() -> Any:
            yield 1
            raise ValueError("no")

        return list, (), None, items()


class _LooksLikeAnother:
    __class__ = dict  # type: ignore[assignment]


UNPICKLABLE: dict[str, Callable[[Path], Any]] = {
    "file": lambda p: (p / "f").open("w"),
    "read file": lambda _: Path(__file__).open(),  # noqa: SIM115  # the open file is what is saved
    "socket": lambda _: socket.socket(),
    "lock": lambda _: threading.Lock(),
    "thread": lambda _: threading.Thread(),
    "event": lambda _: threading.Event(),
    "generator": lambda _: _generator(),
    "future": lambda _: concurrent.futures.Future(),
    "loop": lambda _: asyncio.new_event_loop(),
    "queue": lambda _: asyncio.Queue(),
    "database": lambda _: sqlite3.connect(":memory:"),
    "context variable": lambda _: contextvars.ContextVar("v"),
    "weak reference": lambda _: weakref.ref(test_an_unpicklable_object_is_kept_by_reference),
    "its reducer raises": lambda _: _Raises(),
    "its reducer returns nonsense": lambda _: _Nonsense(),
    "its items raise": lambda _: _ItemsRaise(),
    "it says it is another class": lambda _: _LooksLikeAnother(),
    "frame": lambda _: next(iter([__import__("sys")._getframe()])),
}


@pytest.mark.parametrize("make", UNPICKLABLE.values(), ids=UNPICKLABLE.keys())
def test_an_unpicklable_object_is_kept_by_reference(
    ns: dict[str, Any], engine: SnapshotEngine, make: Callable[[Path], Any], tmp_path: Path
) -> None:
    thing = make(tmp_path)
    ns.update(alone=thing, inside={"thing": thing, "list": [1, 2], "deeper": [(thing,)]}, other=[3])
    try:
        info = engine.take("start")
        assert set(info.left_out) == {"alone", "inside"} and all(info.left_out.values())
        ns.update(alone=None, inside=None, other=None)
        report = engine.restore("start")
        assert ns["alone"] is thing
        assert ns["inside"]["thing"] is thing and ns["inside"]["deeper"][0][0] is thing and ns["inside"]["list"] == [1, 2]
        assert ns["other"] == [3]
        assert report.fates == {"alone": "by reference", "inside": "rebuilt", "other": "rebuilt"}
        assert "inside" in report.notes
    finally:
        if hasattr(thing, "close"):
            thing.close()


def test_everybody_who_holds_it_is_told(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    shared = [threading.Lock()]
    ns.update(a=shared, b={"deep": shared}, c=[1], d=[ns], e=[shared[0]])
    ns["f"] = ns["c"]
    assert set(engine.take("start").left_out) == {"a", "b", "e"}


def test_too_deep_a_structure_is_left_out_with_its_reason(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    part = deep[0][0]
    ns.update(deep=deep, fine=[1], also={"part": part})
    info = engine.take("start")
    assert "nested too deeply" in info.left_out["deep"] and "fine" not in info.left_out
    ns["fine"] = ns["deep"] = None
    engine.restore("start")
    assert ns["fine"] == [1] and ns["deep"] is deep
    del deep, part
    while ns["deep"]:  # one level at a time: releasing all of them at once is deep as well
        ns["deep"] = ns["deep"][0]


def test_attributes_that_raise_do_not_matter(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        class Prickly:
            @property
            def bad(self): raise RuntimeError('never read me')
            def __getattr__(self, name): raise RuntimeError('nor me: ' + name)
            def __repr__(self): raise RuntimeError
            def __eq__(self, other): raise RuntimeError
            def __bool__(self): raise RuntimeError
            def __len__(self): raise RuntimeError
            __hash__ = None
        p = Prickly(); p.__dict__['n'] = 1; around = [p]
    """)
    info = engine.take("start")
    run("p.__dict__['n'] = 2")
    engine.restore("start")
    assert vars(ns["around"][0])["n"] == 1 or "p" in info.left_out


def test_saving_changes_nothing(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("class C: pass\nc = C(); c.x = [1]; d = {'c': c}; items = [3, 1, 2]; it = iter(items)\ndef f(): return d")
    before = {name: (id(value), repr(value)) for name, value in ns.items()}
    attributes = set(vars(ns["C"])), set(vars(ns["f"])), dict(vars(ns["c"]))
    engine.take("start")
    assert {name: (id(value), repr(value)) for name, value in ns.items()} == before
    # `__slotnames__` is where Python's own copyreg remembers the slots of a class.
    assert (set(vars(ns["C"])) - {"__slotnames__"}, set(vars(ns["f"])), dict(vars(ns["c"]))) == attributes
    assert next(ns["it"]) == 3


def test_a_reference_lives_as_long_as_somebody_wants_it() -> None:
    class Thing:
        pass

    hold: references.Hold = []
    thing = Thing()
    token = references.token_of(thing, hold)
    assert references.token_of(thing, []) == token and references.recall(token, "Thing", "") is thing
    del thing
    assert references.alive(token)
    hold.clear()
    gc.collect()
    assert not references.alive(token)
    assert isinstance(references.recall(token, "Thing", ""), references.Lost)


def test_objects_at_a_reused_address_get_tokens_of_their_own() -> None:
    tokens = {references.token_of(object(), []) for _ in range(200)}
    assert len(tokens) == 200


def test_checkpoints_do_not_keep_objects_for_ever(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns["lock"] = threading.Condition()
    gone = weakref.ref(ns["lock"])
    engine.take("start")
    ns["lock"] = None
    gc.collect()
    assert gone() is not None
    for i in range(40):
        engine.take(f"later {i}")
    gc.collect()
    assert gone() is None


def test_saving_keeps_nothing_alive_that_the_user_drops(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    import numpy as np

    array = np.zeros(10_000)
    dropped = [weakref.ref(array), weakref.ref(node := _Node())]
    ns.update(a=array, view=array[5:], node=node, holder=[node])
    del array, node
    gc.collect()
    gc.disable()
    try:
        engine.take("start")
        engine.plan("start")
        for name in ("a", "view", "node", "holder"):
            del ns[name]
        assert [ref() for ref in dropped] == [None, None]
    finally:
        gc.enable()


class _Node:
    pass


def test_a_stub_raises_on_use_and_says_what_it_was() -> None:
    stub: Any = references.Lost("sqlite3.Connection", "tied to this process")
    assert "sqlite3.Connection" in repr(stub)
    for use in (
        lambda: stub.execute("x"),
        lambda: stub(),
        lambda: list(stub),
        lambda: stub[0],
        lambda: bool(stub),
        lambda: len(stub),
        lambda: setattr(stub, "x", 1),
    ):
        with pytest.raises(RestoreError, match=r"sqlite3\.Connection.*tied to this process.*Run the code"):
            use()
    with pytest.raises(RestoreError):
        stub.__enter__()
    again = pickle.loads(pickle.dumps(stub))
    assert repr(again) == repr(copy.copy(stub)) == repr(stub)
    assert getattr(stub, "_repr_html_", None) is None and stub in {stub}


def test_another_thread_changing_a_dict_never_breaks_a_checkpoint(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    busy: dict[int, Any] = {i: [i] for i in range(3000)}
    ns.update(busy=busy, calm=[1, 2])
    stop = threading.Event()

    def mutate() -> None:
        i = 0
        while not stop.is_set():
            busy[3000 + i % 500] = [i]
            busy.pop(3000 + (i * 7) % 500, None)
            i += 1

    worker = threading.Thread(target=mutate)
    worker.start()
    try:
        for i in range(5):
            info = engine.take(f"t{i}")
            assert "calm" not in info.left_out
            assert "busy" not in info.left_out or "another thread" in info.left_out["busy"]
    finally:
        stop.set()
        worker.join()
    ns["calm"] = None
    engine.restore("t4")
    assert ns["calm"] == [1, 2]
