"""Any structure, with any aliasing: the graph of identities after a restore is the graph before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.store import Store, open_store

#: A program that builds variables: each step makes a container out of earlier things, or puts one into another (cycles included).
MAKE = st.sampled_from(["list", "dict", "tuple", "set", "frozenset", "bytearray", "array", "view", "object", "text", "number"])
STEP = st.tuples(MAKE, st.lists(st.integers(0, 30), max_size=3), st.integers(0, 9))
LINK = st.tuples(st.integers(0, 30), st.integers(0, 30))
PROGRAM = st.tuples(
    st.lists(STEP, min_size=1, max_size=25),
    st.lists(LINK, max_size=12),
    st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 30), min_size=1),
)


class Node:
    """Importable, with attributes."""


def build(program: Any) -> dict[str, Any]:
    import numpy as np

    steps, links, names = program
    things: list[Any] = []
    for kind, parts, number in steps:
        inner = [things[i % len(things)] for i in parts] if things else []
        hashable = [p for p in inner if isinstance(p, (str, int, Node))]
        arrays = [p for p in inner if isinstance(p, np.ndarray)]
        made: Any
        if kind == "list":
            made = inner
        elif kind == "dict":
            made = {f"k{i}": p for i, p in enumerate(inner)}
        elif kind == "tuple":
            made = tuple(inner)
        elif kind == "set":
            made = set(hashable)
        elif kind == "frozenset":
            made = frozenset(hashable)
        elif kind == "bytearray":
            made = bytearray(b"x" * number)
        elif kind == "array":
            made = np.arange(float(number + 1) * (600 if number > 6 else 1))
        elif kind == "view":
            made = arrays[0][: 1 + len(arrays[0]) // 2] if arrays else np.zeros(3)
        elif kind == "object":
            made = Node()
            made.parts, made.number = inner, number
        elif kind == "text":
            made = "t" * number + str(number)
        else:
            made = number * 10**number
        things.append(made)
    for a, b in links:
        target, value = things[a % len(things)], things[b % len(things)]
        if isinstance(target, list):
            target.append(value)
        elif isinstance(target, dict):
            target[f"l{b}"] = value
        elif isinstance(target, Node):
            target.link = value
    return {name: things[i % len(things)] for name, i in names.items()}


def plain(thing: Any) -> bool:
    return isinstance(thing, (str, int)) or (isinstance(thing, (tuple, frozenset)) and all(map(plain, thing)))


def graph(variables: dict[str, Any]) -> tuple[Any, Any]:
    """Everything reachable, numbered as it is met: equal for equal structures with equal sharing. And who shares memory."""
    import numpy as np

    seen: dict[int, int] = {}
    arrays: list[Any] = []
    found: list[Any] = []
    keep: list[Any] = []

    def meet(thing: Any) -> Any:
        # Texts, numbers and what is made of them alone have no identity that anybody could rely on.
        if isinstance(thing, (str, int, float, bytes)) or thing is None:
            return repr(thing)
        if plain(thing):
            return type(thing).__name__, sorted(map(repr, thing))
        if id(thing) in seen:
            return seen[id(thing)]
        number = seen[id(thing)] = len(seen)
        keep.append(thing)
        found.append(None)
        if isinstance(thing, dict):
            shape: Any = [(k, meet(v)) for k, v in thing.items()]
        elif isinstance(thing, (set, frozenset)):
            shape = sorted(repr(p) if isinstance(p, (str, int)) else f"node {p.number}" for p in thing)
        elif isinstance(thing, (list, tuple)):
            shape = [meet(p) for p in thing]
        elif isinstance(thing, np.ndarray):
            arrays.append(thing)
            shape = thing.tolist()
        elif isinstance(thing, Node):
            shape = [(k, meet(v)) for k, v in sorted(vars(thing).items())]
        else:
            shape = bytes(thing)
        found[number] = (type(thing).__name__, shape)
        return number

    roots = [(name, meet(variables[name])) for name in sorted(variables)]
    sharing = [(i, j) for i in range(len(arrays)) for j in range(i) if np.shares_memory(arrays[i], arrays[j])]
    return (roots, found), sharing


def check(store: Store, program: Any) -> None:
    ns = build(program)
    engine = SnapshotEngine(store, ns)
    expected = graph(ns)
    info = engine.take("start")
    assert info.left_out == {}
    assert graph(ns) == expected
    assert set(engine.plan("start").fates.values()) == {"kept"}
    for name in ns:
        ns[name] = "changed"
    ns["later"] = 1
    engine.restore("start")
    assert graph(ns) == expected
    assert engine.take("again").new_bytes == 0
    assert set(engine.plan("start").fates.values()) == {"kept"}


def test_identities_before_and_after_are_the_same(tmp_path_factory: Any) -> None:
    folder: Path = tmp_path_factory.mktemp("any")
    store = open_store(folder / "s.db")

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=False)
    @given(PROGRAM)
    def run(program: Any) -> None:
        check(store, program)

    try:
        run()
    finally:
        store.close()
