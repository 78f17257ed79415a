"""Functions and classes of the notebook: by value, over the live variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wflo_nb.snapshot.engine import SnapshotEngine

Run = Callable[[str], None]


def test_a_restored_function_sees_the_live_variables(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("def f(): return x\nx = 1")
    engine.take("start")
    run("x = 2\nf = None")
    engine.restore("start")
    assert ns["f"]() == 1
    ns["x"] = 5
    assert ns["f"]() == 5
    assert ns["f"].__globals__ is ns


def test_methods_lambdas_and_partials_see_them_too(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        import functools
        rate = 2
        class Account:
            '''keeps money'''
            total: int = 0
            def __init__(self, n): self.n = n
            def worth(self): return self.n * rate
            @property
            def double(self): return self.n * 2 * rate
            @classmethod
            def make(cls): return cls(rate)
            @staticmethod
            def now(): return rate
        acc = Account(10); worth = acc.worth
        times = lambda k: k * rate
        part = functools.partial(times, 3)
    """)
    engine.take("start")
    run("Account = acc = worth = times = part = None; rate = 7")
    engine.restore("start")
    assert ns["rate"] == 2
    ns["rate"] = 3
    assert ns["acc"].worth() == ns["worth"]() == 30 and ns["acc"].double == 60
    assert ns["Account"].make().n == ns["Account"].now() == 3
    assert ns["times"](2) == 6 and ns["part"]() == 9
    assert isinstance(ns["acc"], ns["Account"]) and ns["worth"].__self__ is ns["acc"]
    assert ns["Account"].__doc__ == "keeps money" and ns["Account"].__annotations__ == {"total": int}


def test_closures_share_their_variable(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        def counter():
            n = 0
            def up():
                nonlocal n
                n += 1
                return n
            return up, lambda: n
        up, get = counter()
        up()
        def outer():
            def fact(k): return 1 if k == 0 else k * fact(k - 1)
            return fact
        fact = outer()
        def half():
            if False: late = 1
            return lambda: late
        empty = half()
    """)
    engine.take("start")
    run("up(); up(); fact = empty = None")
    engine.restore("start")
    assert ns["get"]() == 1
    ns["up"]()
    assert ns["get"]() == 2
    assert ns["fact"](5) == 120 and ns["fact"].__closure__[0].cell_contents is ns["fact"]
    assert ns["empty"].__closure__[0] == type(ns["empty"].__closure__[0])()


def test_all_of_a_function_comes_back(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("def f(a, b=[1], *args, c: int = 3, **kw) -> str:\n    'says it'\n    return b\nf.tag = 'mine'")
    engine.take("start")
    run("f = None")
    engine.restore("start")
    f = ns["f"]
    assert (f.__defaults__, f.__kwdefaults__, f.__doc__, f.tag, f.__name__, f.__qualname__, f.__module__) == (
        ([1],),
        {"c": 3},
        "says it",
        "mine",
        "f",
        "f",
        "__main__",
    )
    assert f.__annotations__ == {"c": int, "return": str}
    f(0).append(2)
    assert f(0) == [1, 2]


def test_a_class_changed_after_the_checkpoint_is_not_written_to(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("class C:\n    limit = 1\nc = C()")
    engine.take("start")
    run("C.limit = 2; C.extra = True")
    changed = ns["C"]
    engine.restore("start")
    assert ns["C"].limit == 1 and not hasattr(ns["C"], "extra") and type(ns["c"]) is ns["C"]
    assert changed.limit == 2 and changed.extra
    engine.undo()
    assert ns["C"].limit == 2 and ns["C"].extra


def test_dataclasses_slots_enums_and_generics_work_after_a_restore(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        import abc, collections, dataclasses, enum, typing
        @dataclasses.dataclass
        class P:
            x: int
            y: list = dataclasses.field(default_factory=list)
        @dataclasses.dataclass(frozen=True, slots=True)
        class Q(typing.Generic[typing.TypeVar('T')]):
            a: int = 1
        class S:
            __slots__ = ('a', 'b')
        class Color(enum.Enum):
            RED = 1
            def say(self): return self.name
        class Base(abc.ABC):
            @abc.abstractmethod
            def go(self): ...
        class Sub(Base):
            def go(self): return super().__class__.__name__ and 'went'
        N = collections.namedtuple('N', 'u v')
        class T(typing.TypedDict):
            k: int
        class Mine(dict): pass
        class Oops(Exception):
            def __init__(self, a, b): super().__init__(a); self.b = b
            def __reduce__(self): return (type(self), (self.args[0], self.b))
        p, q, s, red, sub, n = P(1), Q(5), S(), Color.RED, Sub(), N(1, [2])
        s.a = [p]
        mine = Mine(k=1); mine.note = 'x'; oops = Oops(1, 2)
    """)
    engine.take("start")
    for name in [k for k in ns if not k.startswith("__")]:
        ns[name] = None
    engine.restore("start")
    run("""
        assert dataclasses.replace(p, x=2) == P(2) and P(1) == p and dataclasses.fields(P)[0].default is dataclasses.MISSING
        try: P()
        except TypeError: pass
        else: raise AssertionError('a required field has a default')
        assert q == Q(5) and q.a == 5
        assert s.a[0] is p and not hasattr(s, 'b')
        assert red is Color.RED and Color(1) is red and red.say() == 'RED'
        assert isinstance(sub, Base) and sub.go() == 'went'
        try: Base()
        except TypeError: pass
        else: raise AssertionError('abstract no more')
        assert n == (1, [2]) and n.v == [2] and type(n) is N
        assert type(mine) is Mine and mine == {'k': 1} and mine.note == 'x'
        assert type(oops) is Oops and oops.b == 2
        assert T(k=1) == {'k': 1}
    """)


def test_modules_come_back_by_import(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("import json as j, os.path as p")
    import json
    import os.path

    info = engine.take("start")
    assert info.bytes_total < 1000
    run("j = p = None")
    engine.restore("start")
    assert ns["j"] is json and ns["p"] is os.path


def test_functions_made_by_a_library_keep_the_globals_of_that_library(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        import functools
        @functools.singledispatch
        def g(x): return 'any'
        g.register(int)(lambda x: 'int')
    """)
    import functools

    engine.take("start")
    before = ns["g"]
    run("g = None")
    engine.restore("start")
    assert ns["g"] is not before and ns["g"](1) == "int" and ns["g"]("") == "any"
    assert ns["g"].__globals__ is vars(functools)


def test_unchanged_classes_and_functions_are_found_unchanged(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        class Message:
            def __init__(self, content): self.content = content
            def get(self): return self.content
        ms = [Message('a'), {'content': 'b'}]
        def f(content): return content
    """)
    first = engine.take("start")
    assert first.new_bytes
    run("ms.append(1); f = None")
    engine.restore("start")
    assert engine.take("again").new_bytes == 0
    assert engine.diff("start", "again").changed == ()
    assert set(engine.plan("start").fates.values()) == {"kept"}


def test_definitions_are_never_run_again(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        import enum, typing
        ran = []
        class Meta(type):
            def __new__(meta, name, bases, space): ran.append('new'); return super().__new__(meta, name, bases, space)
            def __init__(cls, *args): ran.append('init'); super().__init__(*args)
        class Base(metaclass=Meta):
            kinds = []
            def __init_subclass__(cls, **kw): ran.append('subclass'); Base.kinds.append(cls)
        class Sub(Base, typing.Generic[typing.TypeVar('T')]): pass
        class Planet(enum.Enum):
            EARTH = (5.9, 6.3)
            MARS = (0.6, 3.3)
            def __init__(self, mass, radius): ran.append('planet'); self.mass = mass; self.radius = radius
        thing, planet = Sub(), Planet.EARTH
    """)
    engine.take("start")
    before = list(ns["ran"])
    ns["thing"].changed = ns["Planet"].EARTH.mass = 1
    live = ns["Base"]
    engine.restore("start")
    assert ns["ran"] == before
    assert live.kinds == [live.__subclasses__()[0]] and live is not ns["Base"]
    assert ns["Base"].kinds == [ns["Sub"]] and type(ns["Sub"]) is ns["Meta"] and ns["Sub"].__mro__[1] is ns["Base"]
    assert ns["planet"] is ns["Planet"].EARTH and ns["planet"].mass == 5.9 and ns["Planet"]((0.6, 3.3)).radius == 3.3
    run("class Later(Base): pass")
    assert ns["Base"].kinds == [ns["Sub"], ns["Later"]]


def test_errors_come_back_whatever_their_constructor_asks_for(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        class Mine(Exception):
            def __init__(self, a, b): super().__init__(f'{a} and {b}'); self.b = b
        mine = Mine(1, 2); plain = ValueError('x'); os_error = FileNotFoundError(2, 'no', 'file')
        try: b'\\xff'.decode('ascii')
        except UnicodeDecodeError as error: decode = error
    """)
    shown = [repr(ns[name]) + str(ns[name]) for name in ("mine", "plain", "os_error", "decode")]
    engine.take("start")
    run("mine = plain = os_error = decode = None")
    engine.restore("start")
    assert [repr(ns[name]) + str(ns[name]) for name in ("mine", "plain", "os_error", "decode")] == shown
    assert type(ns["mine"]) is ns["Mine"] and ns["mine"].b == 2 and ns["os_error"].filename == "file"


def test_models_of_pydantic_defined_in_the_notebook_work(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        import pydantic
        class Model(pydantic.BaseModel):
            n: int = 1
            parts: list[str] = []
            @pydantic.field_validator('n')
            @classmethod
            def more(cls, n): return n + offset
        offset = 10
        model = Model(n=1, parts=['a'])
    """)
    engine.take("start")
    run("Model = model = None; offset = 0")
    engine.restore("start")
    assert ns["model"].n == 11 and ns["model"].parts == ["a"] and ns["Model"](n=5).n == 15


def test_cached_functions_come_back_with_an_empty_cache(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("import functools\n@functools.lru_cache(maxsize=7)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nfib(20)")
    engine.take("start")
    run("fib = None")
    engine.restore("start")
    assert ns["fib"](30) == 832040 and ns["fib"].cache_parameters()["maxsize"] == 7
