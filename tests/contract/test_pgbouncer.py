"""The ledger through a pooler in transaction mode: every statement may land in another server session."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled, unconfirmed
from tests.pgbouncer import POOL
from wflo_nb.errors import CheckpointNotFoundError
from wflo_nb.model import ExecutionStatus, now_us
from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.store import Shortfall, Store, open_store
from wflo_nb.store.postgres import Postgres

CHAIN = ("team", "cell")


def direct(url: str, team: str = "local") -> Store:
    """A store whose every write is a statement on the server, without leases."""
    database = Postgres(url, team)
    database.prepare()
    return Store(database)


@pytest.fixture
def stores(pgbouncer_url: str) -> Iterator[list[Store]]:
    """Four kernels' stores, eight connections each, on three server sessions."""
    with ThreadPoolExecutor(4) as pool:  # opened at once: one of them makes the tables, the others wait for it
        opened = list(pool.map(lambda _: direct(pgbouncer_url), range(4)))
    yield opened
    for store in opened:
        store.close()


def test_sessions_are_really_shared(stores: list[Store], postgres_url: str) -> None:
    """Without this the other tests prove nothing."""
    ready = threading.Barrier(4 * 8)

    def work(n: int) -> int:
        ready.wait()
        return [int(stores[n % 4]._db.select("SELECT pg_backend_pid()", {})[0][0]) for _ in range(5)][-1]

    with ThreadPoolExecutor(32) as pool:
        pids = set(pool.map(work, range(32)))
    assert len(pids) <= POOL
    assert all(len(store._db._connections) > POOL for store in stores)  # type: ignore[attr-defined]


def test_sums_are_exact_under_concurrency(stores: list[Store]) -> None:
    stores[0].open_budget(a_budget("team", 40_000))
    stores[0].open_budget(a_budget("cell", None, "team"))
    stores[0].begin_execution(an_execution(), holder="h|1|1|x")

    def work(n: int) -> tuple[int, int, int]:
        store, spent, unsure, held = stores[n % 4], 0, 0, 0
        for i in range(20):
            call = a_call(holder=f"h|{n}|1|x")
            amount = store.reserve(call, CHAIN, lo_nano=10, hi_nano=100, share=8)
            if isinstance(amount, Shortfall):
                store.record(a_call(state=a_call().state.REFUSED, budget_id="cell"))
                continue
            match i % 4:
                case 0:
                    store.finish(settled(call, 7))
                    store.finish(settled(call, 7))
                    spent += 7
                case 1:
                    store.finish(released(call))
                case 2:
                    store.finish(unconfirmed(call))
                    unsure += amount
                case _:
                    held += amount
        return spent, unsure, held

    with ThreadPoolExecutor(32) as pool:
        told = list(pool.map(work, range(32)))
    spent, unsure, held = (sum(t[i] for t in told) for i in range(3))
    for id in CHAIN:
        b = stores[1].budget(id)
        assert (b.spent_nano, b.held_nano, b.unconfirmed_nano) == (spent + unsure, held, unsure)
    assert spent + unsure + held <= 40_000
    assert stores[2].execution("exec-1").cost_nano == spent + unsure
    dead = {f"h|{n}|1|x" for n in range(32)}
    with ThreadPoolExecutor(4) as pool:  # every kernel sweeps at once
        list(pool.map(lambda store: store.sweep(dead.__contains__), stores))
    b = stores[3].budget("team")
    assert (b.spent_nano, b.held_nano, b.unconfirmed_nano) == (spent + unsure + held, 0, unsure + held)


def test_no_statement_stays_prepared_and_nothing_is_set_in_a_session(stores: list[Store], pgbouncer_url: str, postgres_url: str) -> None:
    stores[0].open_budget(a_budget("cell", 10**9))
    for n in range(40):  # drivers prepare what they see often
        call = a_call()
        stores[n % 4].reserve(call, ["cell"], lo_nano=5, hi_nano=5)
        stores[n % 4].finish(settled(call, 3))
        stores[n % 4].record(a_call(state=call.state.REFUSED))
        stores[n % 4].read("calls")
    with psycopg.connect(pgbouncer_url, autocommit=True, prepare_threshold=None) as client:
        for _ in range(20):
            assert client.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
            assert client.execute(
                "SELECT count(*) FROM pg_settings WHERE source = 'session' AND name <> 'application_name'"
            ).fetchone() in (
                (0,),
                (1,),  # the pooler itself sets client_encoding
            )
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        assert admin.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_reports_see_every_kernel(stores: list[Store]) -> None:
    stores[0].open_budget(a_budget("cell", None))
    for n, store in enumerate(stores):
        store.begin_execution(an_execution(f"exec-{n}"), holder="h|1|1|x")
        call = a_call(execution_id=f"exec-{n}")
        store.reserve(call, ["cell"], lo_nano=5, hi_nano=5)
        store.finish(settled(call, 3))
        store.end_execution(f"exec-{n}", ExecutionStatus.COMPLETED)
    assert stores[1].read("calls")["cost_nano"] == [3] * 4
    assert stores[2].aggregate("model")["cost_nano"] == [12]
    assert set(stores[3].read("executions")["status"]) == {"COMPLETED"}


def test_snapshots_are_kept_restored_and_collected(stores: list[Store]) -> None:
    def work(n: int) -> None:
        namespace = {"x": list(range(1000)), "own": secrets.token_bytes(100_000), "n": n}
        engine = SnapshotEngine(stores[n % 4], namespace, scope=f"nb:{n}")
        before = dict(namespace)
        info = engine.take("before")
        namespace.update(x=None, own=b"", n=-1)
        engine.restore(info.id)
        assert namespace == before

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    kept = stores[0].snapshots("nb:3")
    for row in kept:
        stores[1].delete_snapshot("nb:3", row.id)
    with pytest.raises(CheckpointNotFoundError):
        stores[2].snapshot("nb:3", kept[0].id)
    assert stores[3].collect(grace=timedelta(seconds=-1)) > 0
    assert stores[3].snapshots("nb:4")


def test_tables_of_version_1_are_migrated_once_by_kernels_that_start_together(pgbouncer_url: str, postgres_url: str) -> None:
    first = direct(pgbouncer_url)
    first.open_budget(a_budget("cell", 500))
    first.close()
    with psycopg.connect(postgres_url, autocommit=True) as admin:  # back to what the first release made
        for table in ("budget_leases", "spool_ops"):
            admin.execute(f"DROP TABLE {table}")  # type: ignore[call-overload]
        for column in ("lease_nano", "name", "period", "zone"):
            admin.execute(f"ALTER TABLE budgets DROP COLUMN {column}")  # type: ignore[call-overload]
        admin.execute("UPDATE wflo_meta SET value = '1' WHERE key = 'schema_version'")
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: direct(pgbouncer_url), range(8)))
    assert [store.budget("cell").cap_nano for store in opened] == [500] * 8
    assert not isinstance(opened[5].reserve(a_call(created_us=now_us()), ["cell"], lo_nano=5, hi_nano=5), Shortfall)
    for store in opened:
        store.close()


def test_a_store_opened_by_its_url_works_as_it_does_without_a_pooler(pgbouncer_url: str) -> None:
    store = open_store(pgbouncer_url)
    store.open_budget(a_budget("cell", 1000))
    store.begin_execution(an_execution(), holder="h|1|1|x")
    calls = [a_call(budget_id="cell") for _ in range(20)]

    def work(n: int) -> None:
        assert store.reserve(calls[n], ["cell"], lo_nano=10, hi_nano=10) == 10
        store.finish(settled(calls[n], 4))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(20)))
    assert store.budget("cell").spent_nano == 80
    assert store.execution("exec-1").cost_nano == 80
    assert len(store.read("calls")["id"]) == 20
    store.close()
