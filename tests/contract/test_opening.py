"""Opening a store: the first time, by five at once, after a kill, by the wrong version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled
from wflo_nb import store as stores
from wflo_nb.config import Settings
from wflo_nb.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from wflo_nb.model import BudgetState, ExecutionStatus
from wflo_nb.store import Store, holder, migrations, open_store

WORKER = """
import sys
from tests.contract.conftest import a_budget, a_call, an_execution
from wflo_nb.store import open_store
from wflo_nb.store.holder import this_holder

store = open_store(sys.argv[1])
"""


def run(where: str, body: str, **more: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER + textwrap.dedent(body), where],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,  # type: ignore[call-overload]
    )


def execute(where: str, *statements: str) -> None:
    engine = sa.create_engine(where.replace("postgresql://", "postgresql+psycopg://") if "://" in where else f"sqlite:///{where}")
    with engine.begin() as connection:
        for s in statements:
            connection.execute(sa.text(s))
    engine.dispose()


def test_five_processes_may_start_at_once_and_share_one_cap(where: str) -> None:
    body = """
        store.open_budget(a_budget("shared", 3_000))
        print(sum(store.reserve(a_call(), ["shared"], lo_nano=100, hi_nano=100) == 100 for n in range(10)))
    """
    started = [run(where, body) for _ in range(5)]
    ended = [p.communicate(timeout=120) for p in started]
    assert sum(int(out) for out, _ in ended) == 30, ended
    with_all = open_store(where)
    assert with_all.budget("shared").held_nano == 3000
    with_all.close()


def test_a_killed_process_leaves_its_hold_neither_free_nor_lost(where: str, opened: Callable[[], Store]) -> None:
    body = """
        store.begin_execution(an_execution("exec-k"), holder=this_holder())
        store.open_budget(a_budget("cell", 1000))
        call = a_call(id="call-k", execution_id="exec-k", budget_id="cell", holder=this_holder())
        assert store.reserve(call, ["cell"], lo_nano=600, hi_nano=600) == 600
        print("sent", flush=True)
        import time
        time.sleep(120)
    """
    victim = run(where, body)
    assert victim.stdout is not None and victim.stdout.readline() == "sent\n"

    meanwhile = opened()
    assert (meanwhile.budget("cell").held_nano, meanwhile.execution("exec-k").status) == (600, ExecutionStatus.RUNNING)

    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    store = opened()
    b = store.budget("cell")
    assert (b.spent_nano, b.held_nano, b.unconfirmed_nano) == (600, 0, 600)
    e = store.execution("exec-k")
    assert (e.status, e.cost_nano) == (ExecutionStatus.FAILED, 600)
    assert e.error is not None and e.error["type"] == "ProcessEnded"
    calls = store.read("calls")
    assert calls["state"] == ["UNCONFIRMED"] and "ended before" in calls["reason"][0]

    store.finish(settled(a_call(id="call-k", execution_id="exec-k"), 20))  # the provider's own log told later
    assert (store.budget("cell").spent_nano, store.execution("exec-k").cost_nano) == (20, 20)


def test_a_process_killed_while_it_writes_loses_nothing_it_was_told_is_kept(where: str, opened: Callable[[], Store]) -> None:
    body = """
        import os, threading
        from tests.contract.conftest import settled
        store.open_budget(a_budget("cell", None))
        def work():
            while True:
                call = a_call(holder=this_holder())
                store.reserve(call, ["cell"], lo_nano=10, hi_nano=10)
                store.finish(settled(call, 7))
                os.write(1, f"{call.id}\\n".encode())  # whole lines, from four threads at once
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        threading.Event().wait()
    """
    victim = run(where, body)
    assert victim.stdout is not None
    told = [victim.stdout.readline().strip() for _ in range(40)]
    os.kill(victim.pid, signal.SIGKILL)
    told += victim.communicate()[0].splitlines()[:-1]
    store = opened()
    while store.budget("cell").held_nano:  # a server may still be busy with the last words of the dead; the next start sees to them
        time.sleep(0.1)
        store = opened()
    calls = store.read("calls")
    kept = dict(zip(calls["id"], calls["state"], strict=True))
    assert all(kept[id] == "SETTLED" for id in told if id)
    b = store.budget("cell")
    assert b.held_nano == 0 and b.spent_nano == sum(calls["cost_nano"])


def test_what_lives_elsewhere_or_here_is_left_alone(store: Store) -> None:
    here = holder.this_holder()
    elsewhere = "another-host#00000000|1|1|abc"
    for name in (here, elsewhere, "not a holder"):
        store.begin_execution(an_execution(f"exec-{name}"), holder=name)
        store.reserve(a_call(holder=name), (), lo_nano=1, hi_nano=1)
    assert store.sweep(holder.is_dead) == 0
    assert store.sweep(lambda name: name == elsewhere) == 1
    assert sorted(store.read("calls")["state"]) == ["RESERVED", "RESERVED", "UNCONFIRMED"]


def test_teams_do_not_see_each_other(where: str) -> None:
    red, blue = (open_store(where, settings=Settings(team=t)) for t in ("red", "blue"))
    for s, cost in ((red, 1), (blue, 2)):
        s.begin_execution(an_execution(), holder="h|1|1|x")
        s.open_budget(a_budget("cell", 100))
        call = a_call(id="call-1")
        s.reserve(call, ["cell"], lo_nano=50, hi_nano=50)
        s.finish(settled(call, cost))
    assert [s.budget("cell").spent_nano for s in (red, blue)] == [1, 2]
    assert [s.read("calls")["cost_nano"] for s in (red, blue)] == [[1], [2]]
    assert [s.aggregate("workflow")["cost_nano"] for s in (red, blue)] == [[1], [2]]
    red.close()
    blue.close()


def test_a_newer_store_is_left_as_it_is(where: str) -> None:
    open_store(where).close()
    execute(where, "UPDATE wflo_meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(SchemaVersionError, match=rf"version 99.* up to {migrations.VERSION}\b.*pip install -U"):
        open_store(where)
    execute(where, f"UPDATE wflo_meta SET value = '{migrations.VERSION}' WHERE key = 'schema_version'")
    open_store(where).close()


def test_an_older_store_takes_the_steps_that_are_missing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(where)
    first.open_budget(a_budget("kept", 5))
    first.close()
    v = migrations.VERSION
    taken: list[int] = []

    def second(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE budgets ADD COLUMN note text"))
        taken.append(v + 1)

    def third(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE budgets SET note = 'migrated'"))
        taken.append(v + 2)

    monkeypatch.setattr(migrations, "VERSION", v + 2)
    monkeypatch.setattr(migrations, "STEPS", [(v + 1, second), (v + 2, third)])
    for _ in range(2):
        migrated = open_store(where)
        assert migrated._db.select("SELECT id, note FROM budgets", {}) == [("kept", "migrated")]
        migrated.close()
    # A store that is worked with through a lease is two: the server, and the spool on this machine.
    assert taken in ([v + 1, v + 2], [v + 1, v + 2] * 2)


def test_a_store_of_the_first_release_is_brought_up_with_everything_in_it(where: str) -> None:
    first = open_store(where)
    first.open_budget(a_budget("kept", 5))
    first.close()
    for column in ("lease_nano", "name", "period", "zone"):
        execute(where, f"ALTER TABLE budgets DROP COLUMN {column}")
    for table in ("budget_leases", "spool_ops"):
        execute(where, f"DROP TABLE {table}")
    execute(where, "UPDATE wflo_meta SET value = '1' WHERE key = 'schema_version'")

    store = open_store(where)
    assert store.budget("kept") == a_budget("kept", 5)
    call = a_call()
    assert store.reserve(call, ["kept"], lo_nano=3, hi_nano=3) == 3
    shared = BudgetState("team:x", "team", 7, name="x", period="month", zone="Europe/Berlin")
    assert store.open_budget(shared) == shared
    store.close()


def test_a_step_that_fails_leaves_the_store_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(where).close()

    def half(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE budgets ADD COLUMN note text"))
        connection.execute(sa.text("SELECT * FROM nowhere"))

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "VERSION", migrations.VERSION + 1)
        patched.setattr(migrations, "STEPS", [(migrations.VERSION, half)])
        with pytest.raises((StoreUnavailableError, SchemaVersionError), match="nowhere"):
            open_store(where)
    same = open_store(where)
    with pytest.raises((StoreUnavailableError, SchemaVersionError), match="note"):
        same._db.select("SELECT note FROM budgets", {})
    same.close()


def test_tables_of_somebody_else_are_not_touched(where: str) -> None:
    execute(where, "CREATE TABLE chunks (id integer)")
    with pytest.raises(StoreUnavailableError, match=r"chunks.*not made by wflo_nb"):
        open_store(where)


def test_closing_twice_is_fine_and_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    for ask in (lambda: store.budget("x"), lambda: store.reserve(a_call(), (), lo_nano=0, hi_nano=0), lambda: store.read("calls")):
        with pytest.raises(StoreUnavailableError, match="was closed"):
            ask()


def test_a_replaced_store_still_takes_late_answers(opened: Callable[[], Store], tmp_path: Path) -> None:
    old = stores.use(opened())
    call = a_call()
    old.reserve(call, (), lo_nano=1, hi_nano=5)
    new = stores.use(str(tmp_path / "other.db"))
    assert stores.current() is new
    old.finish(settled(call, 3))
    old.finish(released(call))
    assert old.read("calls")["cost_nano"] == [3]
    assert new.read("calls")["id"] == []


def test_a_store_serves_threads_that_come_and_go(store: Store) -> None:
    store.open_budget(a_budget("cell", None))
    failed: list[BaseException] = []

    def once() -> None:
        try:
            store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=1)
        except BaseException as error:
            failed.append(error)

    for _ in range(20):
        batch = [threading.Thread(target=once) for _ in range(5)]
        for t in batch:
            t.start()
        for t in batch:
            t.join()
    assert failed == [] and store.budget("cell").held_nano == 100


def test_unknown_tables_and_columns_are_answered_with_the_nearest(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean 'calls'"):
        store.read("call")
    with pytest.raises(ConfigurationError, match="Did you mean 'model'"):
        store.read("calls", where={"modle": "x"})


def test_rows_are_chosen_by_value_by_list_and_by_absence(store: Store) -> None:
    for cell in ("In [1]", "In [2]", None):
        store.reserve(a_call(cell=cell), (), lo_nano=0, hi_nano=0)
    assert store.read("calls", where={"cell": "In [1]"})["cell"] == ["In [1]"]
    assert store.read("calls", where={"cell": ["In [1]", "In [2]"]})["cell"] == ["In [1]", "In [2]"]
    assert store.read("calls", where={"cell": None})["cell"] == [None]
