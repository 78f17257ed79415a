"""What is particular to PostgreSQL: addresses and their secrets, lost connections, time-outs, locks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled
from tests.postgres import Server
from wflo_nb.budget.ledger import ledger_of
from wflo_nb.errors import ConfigurationError, StoreError, StoreUnavailableError
from wflo_nb.model import BudgetState, Call
from wflo_nb.store import Shortfall, Store, open_store, places, postgres
from wflo_nb.store.patience import patient


@pytest.fixture(autouse=True)
def without_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every statement goes to the server itself: see test_leases for the other way."""
    monkeypatch.setenv("WFLO_OFFLINE", "refuse")


SECRET = "hunter2@:/x"
QUOTED = "hunter2%40%3A%2Fx"


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    opened = open_store(postgres_url)
    yield opened
    opened.close()


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def with_user(url: str, user: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}"))


class TestAddresses:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_every_usual_form_is_understood(self, postgres_url: str, scheme: str) -> None:
        store = open_store(postgres_url.replace("postgresql", scheme, 1))
        store.open_budget(a_budget())
        assert store.location.startswith("postgresql://") and not store.local
        store.close()

    def test_the_password_is_shown_nowhere(self, postgres_url: str) -> None:
        store = open_store(with_user(postgres_url, f"wflo:{QUOTED}") + "?application_name=mine&connect_timeout=9")
        shown = f"{store.location} {store!r}"
        assert "hunter2" not in shown and "wflo@127.0.0.1" in shown
        store.close()

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{QUOTED}@127.0.0.1:9/d",
            f"postgresql://me:{SECRET}@127.0.0.1:9/d",
            f"postgresql://127.0.0.1:9/d?password={QUOTED}",
            f"postgresql://me:{QUOTED}@127.0.0.1:9/d?no_such_option=1",
            f"postgresql://me:{QUOTED}@[::1/d",
        ],
    )
    def test_no_error_tells_the_password(self, url: str) -> None:
        started = time.monotonic()
        with pytest.raises((StoreUnavailableError, ConfigurationError)) as caught:
            open_store(url)
        told = [str(caught.value)]
        error: BaseException | None = caught.value
        while error := (error.__cause__ or (None if error.__suppress_context__ else error.__context__)):
            told.append(str(error))
        assert "hunter2" not in " ".join(told)
        assert time.monotonic() - started < 30

    def test_a_server_that_is_not_there_is_named_with_what_to_do(self) -> None:
        with pytest.raises(
            StoreUnavailableError, match=r"postgresql://me@127\.0\.0\.1:9/d cannot be reached: .*%wflo connect default"
        ) as caught:
            open_store("postgresql://me:pw@127.0.0.1:9/d")
        assert "?." not in str(caught.value)

    def test_a_database_that_does_not_exist_is_named(self, postgres_url: str) -> None:
        with pytest.raises(StoreUnavailableError, match='database "wflo_nowhere" does not exist'):
            open_store(urlunsplit(urlsplit(postgres_url)._replace(path="/wflo_nowhere")))

    def test_parts_of_a_password_that_was_not_encoded_are_not_shown(self) -> None:
        assert places.shown(f"postgresql://me:{SECRET}@h:5/d") == "postgresql://…"

    def test_secrets_in_the_query_are_not_shown(self) -> None:
        assert places.shown("postgres://u:p@h:5/d?sslpassword=x") == "postgresql://u@h:5/d"


def test_without_its_driver_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from wflo_nb.errors import MissingDependencyError\nfrom wflo_nb.store import open_store\n"
        "try: open_store('postgresql://h/d')\nexcept MissingDependencyError as e: print(e)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "pip install 'wflo_nb[postgres]'" in told


class TestRights:
    def test_a_user_who_may_not_create_tables_is_told(self, postgres_url: str, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        name = urlsplit(postgres_url).path[1:] + "_reader"
        admin.execute(f"CREATE ROLE {name} LOGIN")  # type: ignore[call-overload]
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        try:
            with pytest.raises(StoreUnavailableError, match=r"does not allow this user.*CREATE"):
                open_store(with_user(postgres_url, name))
        finally:
            admin.execute(f"DROP ROLE {name}")  # type: ignore[call-overload]

    def test_a_read_only_server_says_so(self, postgres_url: str, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        open_store(postgres_url).close()
        admin.execute(f"ALTER DATABASE {urlsplit(postgres_url).path[1:]} SET default_transaction_read_only = on")  # type: ignore[call-overload]
        store = open_store(postgres_url)
        with pytest.raises(StoreUnavailableError, match="read-only"):
            store.open_budget(a_budget())
        store.close()


class TestConnections:
    def test_few_serve_many_threads_and_prepare_nothing(self, store: Store, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        store.open_budget(a_budget("cell", None))
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda _: store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=1), range(100)))
        assert store.budget("cell").held_nano == 100
        assert isinstance(store._db, postgres.Postgres)
        ours = store._db._connections
        assert 1 <= len(ours) <= 8
        assert all(c.prepare_threshold is None and c.autocommit for c in ours)

    def test_ended_by_the_server_they_are_made_anew(self, store: Store, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        store.open_budget(a_budget("cell", None))
        for n in range(3):
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            assert store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=1) == 1
            assert store.budget("cell").held_nano == n + 1

    def test_a_restart_of_the_server_loses_no_answer(self, own_postgres: Server) -> None:
        store = open_store(own_postgres.url)
        store.begin_execution(an_execution(), holder="h|1|1|x")
        store.open_budget(a_budget("nb", None))
        store.open_budget(a_budget("cell", None, "nb"))
        stop = threading.Event()
        told: list[str] = []
        unsure: list[str] = []

        def work() -> None:
            while not stop.is_set():
                call = a_call()
                try:
                    store.reserve(call, ["nb", "cell"], lo_nano=5, hi_nano=5)
                    store.finish(settled(call, 3))
                    told.append(call.id)
                except StoreUnavailableError:
                    unsure.append(call.id)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        time.sleep(0.5)
        own_postgres.stop()
        own_postgres.start()
        before = len(told)
        while len(told) < before + 20:
            time.sleep(0.05)
        stop.set()
        for t in threads:
            t.join()
        calls = store.read("calls")
        state = dict(zip(calls["id"], calls["state"], strict=True))
        assert told and all(state[id] == "SETTLED" for id in told)
        settled_count = list(state.values()).count("SETTLED")
        held = 5 * list(state.values()).count("RESERVED")
        for budget in ("nb", "cell"):
            b = store.budget(budget)
            assert (b.spent_nano, b.held_nano) == (3 * settled_count, held)
        assert store.execution("exec-1").cost_nano == 3 * settled_count
        assert set(state) <= set(told) | set(unsure)
        store.close()

    def test_a_server_that_is_down_is_told_and_found_again(self, own_postgres: Server) -> None:
        store = open_store(own_postgres.url)
        store.open_budget(a_budget("cell", 100))
        call = a_call()
        assert store.reserve(call, ["cell"], lo_nano=5, hi_nano=5) == 5
        own_postgres.stop()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.read("calls")
        own_postgres.start()
        store.finish(settled(call, 2))
        assert (store.budget("cell").spent_nano, store.budget("cell").held_nano) == (2, 0)
        store.close()

    def test_a_server_that_keeps_silent_is_given_up_and_what_it_did_is_found_afterwards(
        self, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(patient(psycopg), "silence", 1.0)
        store = open_store(own_postgres.url + "?connect_timeout=2")
        store.open_budget(a_budget("cell", 100))
        first, second = a_call(), a_call()
        store.reserve(first, ["cell"], lo_nano=5, hi_nano=5)
        told: list[str] = []

        def ask() -> None:
            for ask in (lambda: store.reserve(second, ["cell"], lo_nano=5, hi_nano=5), lambda: store.finish(settled(first, 2))):
                with pytest.raises(StoreUnavailableError) as caught:
                    ask()
                assert caught.value.unreachable
                told.append(str(caught.value))

        own_postgres.freeze()
        thread = threading.Thread(target=ask, daemon=True)  # were it to wait for ever, only this test would fail
        thread.start()
        thread.join(60)
        own_postgres.thaw()
        assert len(told) == 2 and all("cannot be reached" in words for words in told)
        # What it had been asked before it fell silent it does now, or has never heard: asking again by the same id is right either way.
        assert store.reserve(second, ["cell"], lo_nano=5, hi_nano=5) == 5
        store.finish(settled(first, 2))
        store.finish(settled(second, 3))
        assert (store.budget("cell").spent_nano, store.budget("cell").held_nano) == (5, 0)
        store.close()

    def test_who_stands_in_a_row_before_a_silent_server_does_not_wait_in_turn(
        self, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An event loop's calls are asked for one after the other, threads get eight connections: the last would wait for minutes."""
        monkeypatch.setattr(patient(psycopg), "silence", 1.0)
        store = open_store(own_postgres.url + "?connect_timeout=2")
        store.open_budget(a_budget("cell", 100))
        ledger = ledger_of(store)

        def ask() -> float:
            with pytest.raises(StoreUnavailableError, match="cannot be reached") as caught:
                store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5)
            assert caught.value.unreachable
            return time.monotonic()

        async def ask_from_a_loop() -> float:
            return max(await asyncio.gather(*(ledger.run(ask, float) for _ in range(10))))

        own_postgres.freeze()
        try:
            started = time.monotonic()
            assert asyncio.run(ask_from_a_loop()) - started < 10
            started = time.monotonic()
            with ThreadPoolExecutor(24) as pool:
                assert max(pool.map(lambda _: ask(), range(24))) - started < 10
        finally:
            own_postgres.thaw()
        assert store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5) == 5  # who asks afterwards is not told what was
        store.close()

    def test_silence_is_counted_from_the_last_sign_of_life(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patient(psycopg), "silence", 1.5)
        with pytest.raises(StoreUnavailableError, match="kept silent for"):
            store._db.select("SELECT pg_sleep(30)", {})
        sent = "SELECT repeat('x', 20000) FROM generate_series(1, 6) AS n, LATERAL (SELECT pg_sleep(0.5 + n * 0)) AS s"
        assert len(store._db.select(sent, {})) == 6


@pytest.mark.parametrize("sql", ["INSERT INTO wflo_meta (key) VALUES (NULL)", "SELECT CAST('no number' AS bigint)", "SELECT 1 / 0"])
def test_what_no_table_can_keep_is_not_taken_for_a_server_that_is_away(store: Store, sql: str) -> None:
    with pytest.raises(StoreError, match=r"cannot keep this: .") as told:
        store._db.transact(lambda cursor: cursor.execute(sql))
    assert not isinstance(told.value, StoreUnavailableError)
    assert [tuple(row) for row in store._db.select("SELECT 1", {})] == [(1,)]


class TestLocks:
    def test_a_time_out_of_the_server_is_told_at_once_and_changes_nothing(self, postgres_url: str) -> None:
        open_store(postgres_url).close()
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {urlsplit(postgres_url).path[1:]} SET lock_timeout = '100ms'")  # type: ignore[call-overload]
        store = open_store(postgres_url)
        store.open_budget(a_budget("cell", 100))
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT * FROM budgets FOR UPDATE")
            with pytest.raises(StoreUnavailableError, match=r"gave up.*Nothing was changed"):
                store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5)
            other.rollback()
        assert store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5) == 5
        assert store.budget("cell").held_nano == 5
        store.close()

    def test_who_is_stopped_in_a_transaction_keeps_others_waiting_for_a_moment_only(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-Z, a debugger, a machine that sleeps. When it goes on it does again what the server has undone."""
        monkeypatch.setattr(postgres, "_STOPPED", 1.0)
        stopped, go_on = threading.Event(), threading.Event()

        def opening(cursor: Any) -> BudgetState:
            state = store._opening(a_budget("team", 100))(cursor)
            stopped.set()
            assert go_on.wait(60)
            return state

        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(store.begin_with, an_execution(), "h|1|1|x", opening)
            assert stopped.wait(30)
            started = time.monotonic()
            try:
                store.open_budget(a_budget("team", 200))
                store.begin_execution(an_execution(), holder="h|1|1|x")
                assert time.monotonic() - started < 10
            finally:
                go_on.set()
            state = slow.result(30)
            assert state is not None and state.cap_nano == 200
        assert store.execution("exec-1").status == "RUNNING"

    def test_chains_that_meet_never_deadlock(self, store: Store, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        """Cells of three notebooks of one team, reserved and settled by sixteen threads: rows are always locked root first."""
        store.open_budget(a_budget("z-team", None))
        for nb in range(3):
            store.begin_execution(an_execution(f"exec-{nb}"), holder="h|1|1|x")
            store.open_budget(a_budget(f"m-{nb}", None, "z-team"))
            store.open_budget(a_budget(f"a-{nb}", None, f"m-{nb}"))

        def work(seed: int) -> None:
            nb = seed % 3
            for n in range(15):
                call: Call = a_call(execution_id=f"exec-{nb}")
                assert not isinstance(store.reserve(call, ["z-team", f"m-{nb}", f"a-{nb}"], lo_nano=2, hi_nano=2), Shortfall)
                store.finish(settled(call, 1) if n % 3 else released(call))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))
        assert store.budget("z-team").spent_nano == 16 * 10
        admin.execute("SELECT pg_stat_clear_snapshot()")
        row = admin.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
        assert row == (0,)

    @pytest.mark.parametrize("first", ["execution", "call"])
    @pytest.mark.parametrize("held", [False, True], ids=["recorded", "held before"])
    def test_a_call_that_ends_while_its_execution_is_entered_is_in_its_cost(
        self, store: Store, admin: psycopg.Connection[tuple[object, ...]], first: str, held: bool
    ) -> None:
        """Entered at the same moment, neither would see the other."""
        call = a_call(budget_id="cell")
        store.open_budget(a_budget("cell", None))
        if held:
            store.reserve(call, ["cell"], lo_nano=50, hi_nano=50)

        def enter_with_another() -> None:  # what `begin_execution` does when it opens a budget; here it has to wait for that
            waits = "SELECT 1 FROM budgets WHERE id = 'cell' FOR UPDATE"
            store.begin_with(an_execution(), "host|1|1|x", lambda cursor: cursor.execute(waits) and a_budget("cell", None))

        asked = [enter_with_another, lambda: store.finish(settled(call, 10))]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with ThreadPoolExecutor(2) as pool, psycopg.connect(admin.info.dsn) as slow:
            slow.execute("SELECT 1 FROM budgets FOR UPDATE")
            running = []
            for one in asked if first == "execution" else reversed(asked):
                running.append(pool.submit(one))
                until = time.monotonic() + 10
                while admin.execute(waiting).fetchone() != (len(running),):
                    assert time.monotonic() < until
                    time.sleep(0.02)
            slow.rollback()
            for future in running:
                future.result(30)
        assert store.execution("exec-1").cost_nano == store.budget("cell").spent_nano == 10

    def test_bytes_are_not_compressed_a_second_time(self, store: Store, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        row = admin.execute("SELECT attstorage FROM pg_attribute WHERE attrelid = 'chunks'::regclass AND attname = 'data'").fetchone()
        assert row == ("e",) or row == (b"e",)

    def test_dollars_are_numeric_in_the_table(self, store: Store, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        store.begin_execution(an_execution(cost_nano=1_234_567_890), holder="h|1|1|x")
        row = admin.execute("SELECT pg_typeof(cost_total_usd)::text, cost_total_usd::text FROM workflow_executions").fetchone()
        assert row == ("numeric", "1.234567890")
