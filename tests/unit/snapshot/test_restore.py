"""Plan, build, swap: all of it or nothing of it, and always a way back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.errors import CheckpointNotFoundError, ConfigurationError, RestoreError
from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.store import Store

Run = Callable[[str], None]


def users(ns: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in ns.items() if not k.startswith("__")}


def test_changed_variables_are_rebuilt_later_ones_deleted_the_others_untouched(
    ns: dict[str, Any], run: Run, engine: SnapshotEngine
) -> None:
    run("same = [1]; changed = [2]; gone = 3")
    engine.take("start")
    same = ns["same"]
    run("changed.append(0); later = 1; del gone")
    plan = engine.plan("start")
    assert plan.fates == {"same": "kept", "changed": "rebuilt", "gone": "rebuilt", "later": "deleted"}
    assert "later" in str(plan) and ns["later"] == 1
    report = engine.restore("start")
    assert report.fates == plan.fates
    assert users(ns) == {"same": [1], "changed": [2], "gone": 3}
    assert ns["same"] is same


def test_undo_takes_a_restore_back_and_undo_of_undo_takes_that_back(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("x = [1]; y = x")
    engine.take("start")
    run("x.append(2); new = {'k': x}")
    report = engine.restore("start")
    assert users(ns) == {"x": [1], "y": [1]}
    assert report.undo.automatic
    engine.undo()
    assert users(ns) == {"x": [1, 2], "y": [1, 2], "new": {"k": [1, 2]}}
    assert ns["x"] is ns["y"] is ns["new"]["k"]
    engine.undo()
    assert users(ns) == {"x": [1], "y": [1]}


def test_undo_gives_references_back(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    engine.take("start")
    generator = ns["later"] = iter((lambda: (yield))())
    engine.restore("start")
    assert "later" not in ns
    engine.undo()
    assert ns["later"] is generator


def test_nothing_to_undo_is_said(engine: SnapshotEngine) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nothing to undo"):
        engine.undo()


def test_checkpoints_are_found_by_id_label_and_last(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns["x"] = 1
    first = engine.take("same name")
    ns["x"] = 2
    engine.take("same name")
    ns["x"] = 3
    engine.take("other", automatic=True)
    for which, expected in ((first.id, 1), ("same name", 2), ("last", 2), (first, 1), ("other", 3)):
        engine.restore(which)
        assert ns["x"] == expected
    assert [c.label for c in engine.list() if not c.automatic] == ["same name", "same name"]


def test_an_unknown_checkpoint_is_answered_with_what_there_is(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint yet"):
        engine.restore("last")
    engine.take("before cleaning")
    with pytest.raises(CheckpointNotFoundError, match=r"'before cleanin'.*Did you mean 'before cleaning'\?.*list"):
        engine.restore("before cleanin")
    with pytest.raises(CheckpointNotFoundError, match="snap-0000"):
        engine.plan("snap-0000")
    with pytest.raises(ConfigurationError, match="needs a name"):
        engine.take("  ")


def test_names_that_are_kept_out_are_neither_saved_nor_deleted(store: Store, ns: dict[str, Any]) -> None:
    engine = SnapshotEngine(store, ns, keep_out=lambda name, value: name.startswith("_") or value is print)
    ns.update(_private=1, show=print, x=1)
    info = engine.take("start")
    assert info.variables == 1
    ns.update(_private=2, x=2, _new=3, show2=print)
    report = engine.restore("start")
    assert report.fates == {"x": "rebuilt"}
    assert (ns["_private"], ns["x"], ns["_new"], ns["show2"]) == (2, 1, 3, print)


class Refusing(MutableMapping[str, Any]):
    """A namespace that refuses one name."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.refuses: tuple[str, str] = ("", "")

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self.refuses == ("set", name):
            self.refuses = ("", "")
            raise RuntimeError(f"will not set {name}")
        self.data[name] = value

    def __delitem__(self, name: str) -> None:
        if self.refuses == ("delete", name):
            self.refuses = ("", "")
            raise KeyboardInterrupt
        del self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def test_a_refused_assignment_leaves_every_variable_untouched(store: Store) -> None:
    namespace = Refusing({"a": [1], "b": [2], "c": [3]})
    engine = SnapshotEngine(store, namespace)
    engine.take("start")
    namespace.data.update(a=[10], b=[20], c=[30], later=1)
    before = dict(namespace.data)
    for refuses, error in ((("set", "b"), RestoreError), (("delete", "later"), KeyboardInterrupt)):
        namespace.refuses = refuses
        with pytest.raises(error):
            engine.restore("start")
        assert namespace.data.keys() == before.keys() and all(namespace.data[k] is before[k] for k in before)
    assert [c.label for c in engine.list()] == ["start"]
    with pytest.raises(CheckpointNotFoundError):
        engine.undo()
    engine.restore("start")
    assert namespace.data == {"a": [1], "b": [2], "c": [3]}


def test_an_object_that_cannot_be_rebuilt_leaves_every_variable_untouched(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("""
        broken = False
        class Fussy:
            def __init__(self): self.n = 1
            def __setstate__(self, state):
                if broken: raise ValueError('cannot wake up')
                self.__dict__.update(state)
        fussy = Fussy(); a = [1]; z = [1]
    """)
    engine.take("start")
    run("fussy.n = 2; a.append(2); z.append(2); later = 1; broken = True")
    before = {name: (id(value), repr(value)) for name, value in users(ns).items()}
    with pytest.raises(RestoreError, match=r"fussy could not be rebuilt: ValueError: cannot wake up.*as they were.*without") as caught:
        engine.restore("start")
    assert {name: (id(value), repr(value)) for name, value in users(ns).items()} == before
    assert caught.value.plan.fates["a"] == "rebuilt" and isinstance(caught.value.__cause__, ValueError)
    report = engine.restore("start", without=["fussy"])
    assert ns["a"] == ns["z"] == [1] and "later" not in ns and ns["fussy"].n == 2
    assert "Fussy" not in report.fates


def test_finalisers_run_after_the_swap(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("class Last:\n    def __del__(self): seen.append((a, b))\nseen = []; a = [1]; b = [1]")
    engine.take("start")
    run("a = [2]; b = Last(); c = Last()")
    ns["seen"] = log = []
    ns["Last"].__del__.__globals__["seen"] = log
    engine.restore("start")
    import gc

    gc.collect()
    assert all(entry == ([1], [1]) for entry in log)


def test_differences_are_told_by_content(ns: dict[str, Any], run: Run, engine: SnapshotEngine) -> None:
    run("same = [1]; changed = {'k': 1}; gone = 1")
    engine.take("one")
    run("same = [1]; changed['k'] = 2; del gone; new = 5")
    engine.take("two")
    for difference in (engine.diff("one", "two"), engine.diff("one")):
        assert (difference.added, difference.removed, difference.changed, difference.same) == (("new",), ("gone",), ("changed",), ("same",))
    assert not engine.diff("two") and str(engine.diff("two")) == "no difference"


def test_equal_content_is_stored_once(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    import numpy as np

    ns["a"] = np.random.default_rng(0).random(500_000)
    first = engine.take("one")
    assert first.new_bytes and 3_500_000 < first.new_bytes < 4_100_000
    size = engine.stored_bytes()
    assert engine.take("two").new_bytes == 0
    ns["b"] = ns["a"].copy()
    assert engine.take("three").new_bytes < 1000
    ns["a"][250_000] = 0
    assert engine.take("four").new_bytes <= 1 << 20
    assert size <= engine.stored_bytes() < size + (2 << 20)
    ns["zeros"] = np.zeros(1_000_000)
    assert engine.take("five").new_bytes < 5000


def test_a_deleted_checkpoint_is_gone_and_the_others_are_whole(ns: dict[str, Any], store: Store, engine: SnapshotEngine) -> None:
    ns.update(x=list(range(1000)), y="only in one" * 1000)
    engine.take("one")
    del ns["y"]
    engine.take("two")
    engine.delete("one")
    store.collect(grace=0)
    assert [c.label for c in engine.list()] == ["two"]
    ns["x"] = None
    engine.restore("two")
    assert ns["x"] == list(range(1000))
    with pytest.raises(CheckpointNotFoundError):
        engine.delete("one")


def test_scopes_do_not_see_each_other(ns: dict[str, Any], store: Store, engine: SnapshotEngine) -> None:
    other = SnapshotEngine(store, {"x": 1}, scope="other")
    taken = other.take("theirs")
    assert engine.list() == [] and len(other.list()) == 1
    with pytest.raises(CheckpointNotFoundError):
        engine.restore(taken.id)


def test_an_empty_namespace_can_be_saved_and_restored(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    assert engine.take("nothing").variables == 0
    ns["x"] = 1
    engine.restore("nothing")
    assert users(ns) == {}
    assert "removed" in str(engine.undo().checkpoint.label) or ns["x"] == 1


def test_an_engine_opens_its_store_by_path(tmp_path: Path) -> None:
    ns = {"x": 1}
    SnapshotEngine(tmp_path / "a.db", ns).take("start")
    again: dict[str, Any] = {}
    SnapshotEngine(str(tmp_path / "a.db"), again).restore("start")
    assert again == {"x": 1}


def test_the_record_of_the_execution_is_kept(ns: dict[str, Any], engine: SnapshotEngine) -> None:
    engine.take("start", execution_id="exec-1")
    (info,) = engine.list()
    assert info.execution_id == "exec-1" and info.trusted and not info.automatic


FRESH = """
    import sys
    {extra}
    from wflo_nb.snapshot.engine import SnapshotEngine
    ours = {{"ours", "engine", "SnapshotEngine", "sys", "report", "RestoreError"}}
    engine = SnapshotEngine({store!r}, globals(), keep_out=lambda name, value: name in ours)
    {body}
"""


def fresh(store: Path, body: str, extra: str = "") -> str:
    source = textwrap.dedent(FRESH).format(store=str(store), body=textwrap.dedent(body), extra=extra)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fresh_process_restores_what_another_one_saved(tmp_path: Path) -> None:
    fresh(
        tmp_path / "s.db",
        """
import threading
import numpy as np
import pandas as pd
class Agent:
    def __init__(self): self.lock = threading.Lock(); self.history = []
    def ask(self): return factor * len(self.history)
factor = 2
agent = Agent(); agent.history += ["a", "b"]; alias = agent.history
lock = threading.Lock()
api_key = "sk-abcdefghijklmnopqrstuvwxyz"
a = np.arange(10_000.); v = a[5:]
df = pd.DataFrame({"x": [1, 2]}); column = df["x"]
print(sorted(engine.take("start").left_out))
""",
    )
    out = fresh(
        tmp_path / "s.db",
        """
from wflo_nb.errors import RestoreError
report = engine.restore("start")
assert alias is agent.history and agent.ask() == 4
factor = 5
assert agent.ask() == 10
a[5] = -1
assert v[0] == -1
df.loc[0, "x"] = 9
assert column.tolist() == [1, 2]
assert report.fates["lock"] == report.fates["api_key"] == "lost" and report.fates["agent"] == "rebuilt"
for use in (lambda: lock.acquire(), lambda: agent.lock.__enter__(), lambda: api_key.strip()):
    try: use()
    except RestoreError as error: print(error)
    else: raise AssertionError
print(lock)
""",
    )
    assert out.count("Run the code that makes it again") == 3 and "_thread.lock" in out
    assert "sk-abcdefghijklmnopqrstuvwxyz" not in out


def test_in_a_fresh_process_an_object_that_was_made_again_is_left_in_place(tmp_path: Path) -> None:
    fresh(tmp_path / "s.db", "import threading; lock = threading.Lock(); engine.take('start')")
    fresh(
        tmp_path / "s.db",
        "import threading; lock = threading.Lock(); report = engine.restore('start')\n"
        "assert lock.acquire() and report.fates['lock'] == 'by reference'",
    )


def test_nothing_heavy_is_loaded_before_the_first_checkpoint_and_nothing_the_user_did_not_load() -> None:
    source = (
        "import sys; import wflo_nb.snapshot.engine\n"
        "bad = {'cloudpickle', 'numpy', 'pandas', 'blake3', 'zstandard', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


def test_saving_plain_variables_loads_no_data_library(tmp_path: Path) -> None:
    fresh(
        tmp_path / "s.db",
        "x = [1]; engine.take('one'); x = 2; engine.restore('one')\n"
        "bad = {'numpy', 'pandas', 'pyarrow'} & set(sys.modules)\nassert not bad, bad",
    )
