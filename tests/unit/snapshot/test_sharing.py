"""Variables that share an object share it after a restore; variables that do not are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.snapshot.partition import partition

Run = Callable[[str], None]


def components(ns: dict[str, Any]) -> list[tuple[str, ...]]:
    variables = {k: v for k, v in ns.items() if not k.startswith("__")}
    return partition(variables, ns, [], {}).components


def test_a_list_under_two_names_stays_one_list(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("a = [1, 2]; b = a; holder = {'inner': a}; lonely = [1, 2]")
    engine.take("start")
    run("a.append(3); b = [9]; holder['inner'] = None")
    report = engine.restore("start")
    assert ns["a"] == [1, 2]
    assert ns["a"] is ns["b"] is ns["holder"]["inner"]
    assert report.names("rebuilt") == ("a", "b", "holder")
    assert report.names("kept") == ("lonely",)


def test_cycles_come_back_as_cycles(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        loop = []; loop.append(loop)
        a = {}; b = {'a': a}; a['b'] = b
        t = ([],); t[0].append(t)
    """)
    engine.take("start")
    run("loop = a = b = t = None")
    engine.restore("start")
    assert ns["loop"][0] is ns["loop"]
    assert ns["a"]["b"] is ns["b"] and ns["b"]["a"] is ns["a"]
    assert ns["t"][0][0] is ns["t"]


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np; a = np.arange(5.); b = np.arange(5.)",
        "import numpy as np; a = np.float64(1); b = np.float64(1); c = np.dtype('f8')",
        "import numpy as np; a = {'t': np.float64, 'd': np.dtype('f8')}; b = [np.float64, np.dtype('f8')]",
        "import pandas as pd; a = pd.DataFrame({'x': [1]}); b = pd.DataFrame({'x': [1]})",
        "import pandas as pd; a = pd.Series(['x'], dtype='str'); b = pd.Series(['x'], dtype='str')",
        "import numpy as np; whole = np.arange(100.); a, b = np.split(whole, 2); del whole",
        "import enum, re; E = enum.Enum('E', 'x'); E = re.RegexFlag; a = [E.I]; b = [E.I]",
        "import re; p = re.compile('x'); a = [p]; b = [p]; del p",
        "import datetime as d; z = d.timezone.utc; a = [z]; b = [z]; del z",
        "import decimal, uuid; q = (decimal.Decimal(1), uuid.uuid4()); a = [q[0], q[1]]; b = [q[0], q[1]]; del q",
        "t = (1, 'two', (3.0, None)); a = [t]; b = [t]; del t",
        "a = [len, dict, print]; b = [len, dict, print]",
        "import json; a = [json.dumps, json.JSONDecoder]; b = [json.dumps, json.JSONDecoder]",
        "import dataclasses; a = [dataclasses.MISSING]; b = [dataclasses.MISSING]",
        "import threading; lock = threading.Lock(); a = [lock]; b = [lock]; del lock",
        "import logging; a = [logging.getLogger('x')]; b = [logging.getLogger('x')]",
        "s = 'a long text ' * 100; a = [s]; b = [s]; del s",
        "def make():\n    def f(): return 1\n    return f\na = make(); b = make()",
        "a = []; b = ()\nc = [b]; d = [()]",
    ],
)
def test_what_cannot_change_joins_nothing(ns: dict[str, Any], run: Run, source: str) -> None:
    run(source)
    assert all(len(names) == 1 for names in components(ns)), components(ns)


@pytest.mark.parametrize(
    "source",
    [
        "x = []; a = (x, 1); b = {'k': x}; del x",
        "x = {1}; a = [x]; b = [[x]]; del x",
        "class C: pass\nx = C(); a = [x]; b = [x]; del x; C_ = C; del C_",
        "def f(): pass\na = [f]; b = {'f': f}; del f",
        "import collections; x = collections.deque([1]); a = [x]; b = [x]; del x",
        "import array; x = array.array('d', [1]); a = [x]; b = [x]; del x",
        "x = bytearray(b'1'); a = [x]; b = [x]; del x",
        "x = bytearray(b'12345678'); a = memoryview(x); b = memoryview(x)[2:4]; del x",
        "import numpy as np; x = np.zeros(9); a = x[:5]; b = x[4:]; del x",
        "import numpy as np; x = np.zeros(9, object); a = x; b = x[4:]; del x",
        "import numpy as np; a = np.zeros((3, 3)); b = a.T",
        "import pandas as pd; a = pd.DataFrame({'x': [1.0]}); b = a['x']",
        "import numpy as np, pandas as pd; a = np.zeros((2, 2)); b = pd.DataFrame(a, copy=False)",
        "x = object(); a = [x]; b = {x: 1}; del x",
        "x = []; a = x.append; b = [x]; del x",
        "x = [1, 2]; a = iter(x); b = [x]; del x",
        "x = {}; a = x.keys(); b = [x]; del x",
        "def make():\n    n = 0\n    def up():\n        nonlocal n; n += 1; return n\n    return up, lambda: n\na, b = make()",
    ],
)
def test_what_can_change_joins_its_holders(ns: dict[str, Any], run: Run, source: str) -> None:
    run(source)
    assert any({"a", "b"} <= set(names) for names in components(ns)), components(ns)


def test_a_shared_structure_is_walked_once(ns: dict[str, Any]) -> None:
    ns["big"] = [[i] for i in range(2000)]
    for i in range(200):
        ns[f"alias{i}"] = [ns["big"]]
    (names,) = components(ns)
    assert len(names) == 201


def test_iterators_and_bound_methods_stay_bound(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("items = [1, 2, 3]; it = iter(items); first = next(it); push = items.append; d = {'k': 1}; keys = d.keys()")
    engine.take("start")
    run("rest = list(it); push(9); d['z'] = 0")
    engine.restore("start")
    assert next(ns["it"]) == 2
    ns["push"](4)
    assert ns["items"] == [1, 2, 3, 4] and list(ns["it"]) == [3, 4]
    ns["d"]["new"] = 1
    assert list(ns["keys"]) == ["k", "new"]


def test_the_namespace_itself_comes_back_live(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("g = globals(); box = [globals()]; x = 1")
    engine.take("start")
    run("x = 2; g = None; box = None")
    engine.restore("start")
    assert ns["g"] is ns and ns["box"][0] is ns and ns["x"] == 1


@pytest.mark.parametrize(
    "value",
    [
        10**5000,
        -(2**63),
        float("nan"),
        float("-inf"),
        "x" * 3_000_000,
        "\ud800 lone surrogate",
        b"\0" * 70_000,
        {float("nan"): 1},
        frozenset({1}),
        ...,
        1j,
    ],
    ids=lambda v: type(v).__name__,
)
def test_unusual_plain_values_come_back(ns: dict[str, Any], engine: SnapshotEngine, value: object) -> None:
    ns["value"] = value
    ns["inside"] = [value, {"k": value}]
    engine.take("start")
    ns["value"] = ns["inside"] = "changed"
    engine.restore("start")
    assert type(ns["value"]) is type(value)
    assert ns["value"] == value or repr(ns["value"]) == repr(value)
    assert ns["inside"] == [value, {"k": value}] or repr(ns["inside"]) == repr([value, {"k": value}])
