"""Leases: several machines on one server, each with its own spool; silence, lost answers, a server that goes away and comes back.

A machine is a state folder of its own here: that is all that tells two of them apart.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, released, settled, unconfirmed
from tests.postgres import Server
from tests.proxy import Proxy, moved
from wflo_nb.config import Settings
from wflo_nb.errors import StoreUnavailableError, WfloWarning
from wflo_nb.model import MAX_NANO, Call, ExecutionStatus
from wflo_nb.store import Shortfall, courier, leased, open_store
from wflo_nb.store.leased import LeasedStore

Machine = Callable[..., LeasedStore]


@pytest.fixture
def machine(postgres_url: str, tmp_path: Path) -> Iterator[Machine]:
    """Opens the store as some machine sees it."""
    opened: list[LeasedStore] = []

    def one(name: str = "a", url: str = postgres_url) -> LeasedStore:
        store = open_store(url, settings=Settings(state_dir=tmp_path / name))
        assert isinstance(store, LeasedStore)
        opened.append(store)
        return store

    yield one
    for store in opened:
        store._courier._down_until = 0.0
        store.close()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent in by itself."""
    monkeypatch.setattr(courier, "BEAT", 3600.0)


def server(url: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql, params)
        return cursor.fetchall() if cursor.description else []


def row(url: str, budget: str = "team") -> tuple[int, int, int]:
    """Spent, held, unconfirmed, as the table has them."""
    return server(url, "SELECT spent_nano, held_nano, unconfirmed_nano FROM budgets WHERE id = %s", budget)[0]


def crash(store: LeasedStore) -> None:
    """The machine is cut off, or its last process killed: nothing more comes from it."""
    store._courier.closed = True


def falls_silent(url: str) -> None:
    """A minute passes without a sign of life from anybody."""
    server(url, "UPDATE budget_leases SET expires_at = now() - interval '1 second'")


def test_a_call_that_the_server_cannot_keep_holds_up_no_other(machine: Machine, postgres_url: str, quiet: None) -> None:
    store = machine()
    store.open_budget(a_budget("team", 10_000))
    store.begin_execution(an_execution(), holder="host|1|1|x")
    calls = [a_call(budget_id="team") for _ in range(4)]
    for n, call in enumerate(calls):
        store.reserve(call, ["team"], lo_nano=100, hi_nano=100)
        odd = {"http_status": 2**40, "reason": "odd"} if n == 1 else {}  # more than that column of the server's takes
        store.finish(settled(call, 10 + n, **odd))
    with pytest.warns(WfloWarning, match="only what it cost could be recorded.*cannot keep this"):
        store._courier.ship()
    found = server(postgres_url, "SELECT id, cost_nano, model, reason FROM llm_calls ORDER BY cost_nano")
    assert [(id, cost) for id, cost, *_ in found] == [(call.id, 10 + n) for n, call in enumerate(calls)]
    assert [model for _, _, model, _ in found] == ["gpt-4o", "", "gpt-4o", "gpt-4o"] and "out of range" in found[1][3]
    store._courier.give_back()
    assert row(postgres_url) == (46, 0, 0) and not store._courier.spool.outbox.finals(10)


def test_nor_does_one_that_the_server_has_in_another_state(machine: Machine, postgres_url: str, quiet: None) -> None:
    store = machine()
    store.open_budget(a_budget("team", 10_000))
    store.begin_execution(an_execution(), holder="host|1|1|x")
    odd, plain = a_call(budget_id="team"), a_call(budget_id="team")
    for call in (odd, plain):
        store.reserve(call, ["team"], lo_nano=100, hi_nano=100)
    store.finish(unconfirmed(odd))
    store._courier.ship()
    # Its answer was read after all, while this machine still has the call.
    store._courier.spool.store.record(settled(replace(odd, reserved_nano=100), 10, http_status=2**40))
    store.finish(settled(plain, 20))
    with pytest.warns(WfloWarning, match="only what it cost could be recorded.*cannot keep this"):
        store._courier.ship()
    found = server(postgres_url, "SELECT id, state, cost_nano, model FROM llm_calls ORDER BY cost_nano")
    assert found == [(odd.id, "SETTLED", 10, "gpt-4o"), (plain.id, "SETTLED", 20, "gpt-4o")]
    store._courier.give_back()
    assert row(postgres_url) == (30, 0, 0) and not store._courier.spool.outbox.finals(10)


@pytest.mark.parametrize("beat", [False, True], ids=["the call asks first", "some is given back first"])
def test_after_a_call_cost_more_than_was_held_the_server_says_what_is_left(
    machine: Machine, postgres_url: str, quiet: None, beat: bool
) -> None:
    store = machine()
    store.open_budget(a_budget("team", 1000))
    first, dear = a_call(budget_id="team"), a_call(budget_id="team")
    assert store.reserve(first, ["team"], lo_nano=100, hi_nano=100) == 100
    store.finish(released(first))  # leaves 100 leased here
    assert store.reserve(dear, ["team"], lo_nano=50, hi_nano=50) == 50
    store.finish(settled(dear, 980))  # 20 are left of the budget, and 50 of the lease
    if beat:  # in the moment before the next call
        store._courier.give_back({"team": 10})
    short = store.reserve(a_call(budget_id="team"), ["team"], lo_nano=40, hi_nano=40)
    assert isinstance(short, Shortfall) and short.budget.left_nano == 20
    assert store.reserve(a_call(budget_id="team"), ["team"], lo_nano=20, hi_nano=20) == 20
    assert row(postgres_url) == (980, 20, 0)


def test_a_call_that_cost_more_while_others_were_sent_in_is_not_forgotten(
    machine: Machine, postgres_url: str, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine()
    store.open_budget(a_budget("team", 1000))
    early, late = a_call(budget_id="team"), a_call(budget_id="team")
    for call in (early, late):
        assert store.reserve(call, ["team"], lo_nano=100, hi_nano=100) == 100
    store.finish(settled(early, 110))
    ship = store._courier.ship

    def and_another_ends() -> None:
        ship()
        store.finish(settled(late, 880))

    with monkeypatch.context() as patched:
        patched.setattr(store._courier, "ship", and_another_ends)
        store._courier.give_back()
    assert store._courier.overdrawn
    assert isinstance(store.reserve(a_call(budget_id="team"), ["team"], lo_nano=20, hi_nano=20), Shortfall)


class TestALoweredCap:
    """What calls hold when a cap falls below it is the server's again as soon as they are over, and nobody's before."""

    @pytest.fixture
    def held(self, machine: Machine, quiet: None) -> tuple[LeasedStore, Call]:
        store = machine()
        store.open_budget(a_budget("team", 1000))
        call = a_call(budget_id="team")
        assert store.reserve(call, ["team"], lo_nano=100, hi_nano=100) == 100
        return store, call

    def test_holds_for_what_becomes_free_later(self, held: tuple[LeasedStore, Call], postgres_url: str) -> None:
        store, call = held
        assert store.set_cap("team", 60).held_nano == 100
        store.finish(settled(call, 20))
        assert store.budget("team").left_nano == 40
        short = store.reserve(a_call(budget_id="team"), ["team"], lo_nano=41, hi_nano=41)
        assert isinstance(short, Shortfall) and short.budget.left_nano == 40
        assert store.reserve(a_call(budget_id="team"), ["team"], lo_nano=40, hi_nano=40) == 40
        assert row(postgres_url) == (20, 40, 0) and not store._spool.owed()

    def test_may_rise_again_meanwhile(self, held: tuple[LeasedStore, Call], postgres_url: str) -> None:
        store, call = held
        store.set_cap("team", 0)
        store.set_cap("team", 500)
        assert store.reserve(a_call(budget_id="team"), ["team"], lo_nano=400, hi_nano=400) == 400
        store.finish(released(call))
        assert store.reserve(a_call(budget_id="team"), ["team"], lo_nano=100, hi_nano=100) == 100
        assert row(postgres_url) == (0, 500, 0) and not store._spool.owed()

    def test_is_kept_by_the_next_process_too(self, held: tuple[LeasedStore, Call], machine: Machine, postgres_url: str) -> None:
        store, call = held
        store.set_cap("team", 0)
        store.close()
        store = machine()
        assert store._spool.owed() == {"team": 100} and store._spool.leased()
        store.finish(released(call))
        assert isinstance(store.reserve(a_call(budget_id="team"), ["team"], lo_nano=1, hi_nano=1), Shortfall)
        store._courier.round()
        assert row(postgres_url) == (0, 0, 0) and not store._spool.owed() and not store._spool.leased()

    def test_is_learned_by_other_machines(self, held: tuple[LeasedStore, Call], machine: Machine, postgres_url: str) -> None:
        first, call = held
        second, another = machine("b"), a_call(budget_id="team")
        second.open_budget(a_budget("team", 1000))
        assert second.reserve(another, ["team"], lo_nano=300, hi_nano=300) == 300
        first.set_cap("team", 150)
        second._courier.renew()
        first.finish(released(call))
        second.finish(released(another))
        assert isinstance(second.reserve(a_call(budget_id="team"), ["team"], lo_nano=151, hi_nano=151), Shortfall)
        first._courier.round()
        assert second.reserve(a_call(budget_id="team"), ["team"], lo_nano=150, hi_nano=150) == 150
        assert row(postgres_url) == (0, 150, 0) and not first._spool.owed() and not second._spool.owed()

    def test_of_a_run_is_learned_by_other_machines_too(self, machine: Machine, quiet: None) -> None:
        first, second, call = machine("a"), machine("b"), a_call(budget_id="exec-1")
        first.open_budget(a_budget("exec-1", 1000))
        first._courier.sender.announce()
        assert second.reserve(call, ["exec-1"], lo_nano=300, hi_nano=300) == 300
        first.set_cap("exec-1", 100)
        second._courier.renew()
        second.finish(settled(call, 50))
        assert isinstance(second.reserve(a_call(budget_id="exec-1"), ["exec-1"], lo_nano=250, hi_nano=250), Shortfall)

    def test_counts_for_what_another_kernel_of_the_machine_is_being_lent(
        self, machine: Machine, postgres_url: str, quiet: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = machine(), machine()
        for store in (first, second):
            store.open_budget(a_budget("team", 1000))
        lend, call = second._courier._lessor.lease, a_call(budget_id="team")

        def and_the_cap_falls(*asked: Any) -> Any:
            lent = lend(*asked)
            first.set_cap("team", 100)
            return lent

        monkeypatch.setattr(second._courier._lessor, "lease", and_the_cap_falls)
        assert isinstance(second.reserve(call, ["team"], lo_nano=500, hi_nano=500), Shortfall)
        assert sum(row(postgres_url)[:2]) <= 100


class TestSharing:
    def test_machines_together_never_get_more_than_the_cap_and_can_use_nearly_all_of_it(self, machine: Machine, postgres_url: str) -> None:
        machines = [machine(name) for name in "abc"]
        for store in machines:
            store.open_budget(a_budget("team", 100_000))
        admitted: list[int] = []

        def work(store: LeasedStore) -> None:
            for _ in range(60):
                call = a_call(budget_id="team")
                held = store.reserve(call, ["team"], lo_nano=1000, hi_nano=1000)
                if isinstance(held, Shortfall):
                    time.sleep(0.1)
                    continue
                store.finish(settled(call, 900))
                admitted.append(900)
                spent, holding, _ = row(postgres_url)
                assert spent + holding <= 100_000

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, machines * 2))
        for store in machines:
            store.close()
        assert row(postgres_url) == (sum(admitted), 0, 0)
        assert 90_000 <= sum(admitted) <= 100_000

    def test_a_lone_call_leases_what_it_needs(self, machine: Machine, postgres_url: str, quiet: None) -> None:
        store = machine()
        store.open_budget(a_budget("team", 1000))
        assert store.reserve(a_call(), ["team"], lo_nano=100, hi_nano=100) == 100
        assert row(postgres_url) == (0, 100, 0)

    def test_who_asks_often_is_lent_more_at_a_time(self, machine: Machine, postgres_url: str, quiet: None) -> None:
        store = machine()
        store.open_budget(a_budget("team", MAX_NANO // 2))
        for _ in range(200):
            store.reserve(a_call(), ["team"], lo_nano=100, hi_nano=100)
        assert len(server(postgres_url, "SELECT 1 FROM spool_ops WHERE kind = 'lease'")) < 20

    def test_idle_money_comes_back_by_itself(self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(courier, "BEAT", 0.05)
        monkeypatch.setattr(courier, "IDLE", 0.2)
        store, other = machine("a"), machine("b")
        store.open_budget(a_budget("team", 1000))
        call = a_call()
        store.reserve(call, ["team"], lo_nano=1000, hi_nano=1000)
        assert isinstance(other.reserve(a_call(), ["team"], lo_nano=500, hi_nano=500), Shortfall)
        store.finish(settled(call, 10))
        deadline = time.monotonic() + 20
        while isinstance(other.reserve(a_call(id="call-b"), ["team"], lo_nano=500, hi_nano=500), Shortfall):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert row(postgres_url) == (10, 500, 0)

    def test_a_lower_cap_takes_back_what_is_not_in_use(self, machine: Machine, postgres_url: str, quiet: None) -> None:
        store = machine()
        store.open_budget(a_budget("team", 10_000))
        for _ in range(5):
            store.reserve(a_call(), ["team"], lo_nano=100, hi_nano=100)
        store.set_cap("team", 600)
        assert row(postgres_url) == (0, 500, 0)
        assert store.reserve(a_call(), ["team"], lo_nano=100, hi_nano=100) == 100
        assert isinstance(store.reserve(a_call(), ["team"], lo_nano=1, hi_nano=1), Shortfall)

    def test_a_first_cap_counts_what_is_under_way(self, machine: Machine, postgres_url: str, quiet: None) -> None:
        store = machine()
        store.open_budget(a_budget("team", None))
        call = a_call()
        store.reserve(call, ["team"], lo_nano=700, hi_nano=700)
        assert store.set_cap("team", 1000).held_nano == 700
        assert row(postgres_url) == (0, 700, 0)
        assert isinstance(machine("b").reserve(a_call(), ["team"], lo_nano=301, hi_nano=301), Shortfall)
        store.finish(settled(call, 50))
        assert store.budget("team").spent_nano == 50

    def test_a_first_cap_reaches_the_other_machines(self, machine: Machine, postgres_url: str, quiet: None) -> None:
        store, other = machine("a"), machine("b")
        store.open_budget(a_budget("team", None))
        call = a_call()
        assert other.reserve(call, ["team"], lo_nano=700, hi_nano=700) == 700
        store.set_cap("team", 1000)
        other._courier.renew()
        assert row(postgres_url) == (0, 700, 0)
        assert isinstance(store.reserve(a_call(), ["team"], lo_nano=301, hi_nano=301), Shortfall)
        assert isinstance(other.reserve(a_call(), ["team"], lo_nano=301, hi_nano=301), Shortfall)
        other.finish(settled(call, 100))
        assert other.reserve(a_call(), ["team"], lo_nano=900, hi_nano=900) == 900

    def test_a_cap_from_elsewhere_holds_as_soon_as_the_budget_is_opened_again(
        self, machine: Machine, postgres_url: str, quiet: None
    ) -> None:
        store, other = machine("a"), machine("b")
        for each in (store, other):
            each.open_budget(a_budget("team", None))
        store.set_cap("team", 10)
        other.open_budget(a_budget("team", None))  # another kernel of that machine begins
        assert isinstance(other.reserve(a_call(), ["team"], lo_nano=11, hi_nano=11), Shortfall)
        assert other.reserve(a_call(), ["team"], lo_nano=10, hi_nano=10) == 10


@pytest.mark.usefixtures("quiet")
class TestSilence:
    def test_what_a_silent_machine_had_counts_as_spent_and_unconfirmed(self, machine: Machine, postgres_url: str) -> None:
        silent, other = machine("a"), machine("b")
        silent.open_budget(a_budget("team", 1000))
        silent.reserve(a_call(), ["team"], lo_nano=400, hi_nano=400)
        crash(silent)
        falls_silent(postgres_url)
        other.sweep(lambda _: False)
        assert row(postgres_url) == (400, 0, 400)
        assert isinstance(other.reserve(a_call(), ["team"], lo_nano=601, hi_nano=601), Shortfall)
        other.sweep(lambda _: False)
        assert row(postgres_url) == (400, 0, 400)

    def test_its_calls_are_counted_once_when_it_is_heard_of_again(self, machine: Machine, postgres_url: str) -> None:
        silent, other = machine("a"), machine("b")
        silent.open_budget(a_budget("team", 1000))
        done, doubtful, flying = a_call(), a_call(), a_call()
        for call in (done, doubtful, flying):
            silent.reserve(call, ["team"], lo_nano=100, hi_nano=100)
        silent.finish(settled(done, 30))
        silent.finish(unconfirmed(doubtful))
        crash(silent)
        falls_silent(postgres_url)
        other.sweep(lambda _: False)
        before = row(postgres_url)
        assert before[0] >= 300 and before[1] == 0 and before[0] == before[2]
        again = machine("a")  # another process of the machine
        assert row(postgres_url) == (30 + 100 + 100, 0, 200)  # one paid, one in doubt, one still under way; the rest was never spent
        again.finish(settled(flying, 60))
        again.flush()
        again._courier.give_back()
        assert row(postgres_url) == (190, 0, 100)

    def test_a_machine_that_was_cut_off_for_long_goes_on_within_what_is_left(self, machine: Machine, postgres_url: str) -> None:
        store, other = machine("a"), machine("b")
        store.open_budget(a_budget("team", 1000))
        store.reserve(a_call(), ["team"], lo_nano=100, hi_nano=100)
        falls_silent(postgres_url)
        other.sweep(lambda _: False)
        assert other.reserve(a_call(), ["team"], lo_nano=900, hi_nano=900) == 900
        store._courier._valid_until = 0.0
        store._spool._db.transact(lambda cursor: cursor.execute("DELETE FROM wflo_meta WHERE key = 'valid_until'", {}))
        assert isinstance(store.reserve(a_call(), ["team"], lo_nano=1, hi_nano=1), Shortfall)


@pytest.mark.usefixtures("quiet")
class TestLostAnswers:
    """The server did it, and nobody was told."""

    def lose(self, monkeypatch: pytest.MonkeyPatch, store: LeasedStore, name: str, *, before: bool) -> None:
        asked = getattr(store._courier._lessor, name)

        def cut(*args: Any, **kwargs: Any) -> Any:
            monkeypatch.setattr(store._courier._lessor, name, asked)
            if not before:
                asked(*args, **kwargs)
            raise StoreUnavailableError("the connection was lost")

        monkeypatch.setattr(store._courier._lessor, name, cut)

    @pytest.mark.parametrize("before", [True, False])
    def test_of_a_lease(self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
        store = machine()
        store.open_budget(a_budget("team", 1000))
        self.lose(monkeypatch, store, "lease", before=before)
        with pytest.raises(StoreUnavailableError):
            store.reserve(a_call(), ["team"], lo_nano=600, hi_nano=600)
        assert store.reserve(a_call(), ["team"], lo_nano=300, hi_nano=300) == 300
        store.flush()
        store._courier.give_back()
        assert row(postgres_url) == (0, 300, 0)

    def test_of_a_lease_of_all_that_was_left(self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        parts = urlsplit(postgres_url)
        with contextlib.closing(Proxy(parts.hostname or "", parts.port or 5432)) as proxy:
            store = machine(url=moved(postgres_url, proxy.port))
            store.open_budget(a_budget("team", 1000))
            once, call = store._courier._server.once, a_call()

            def cut(*args: Any) -> Any:
                proxy.cut("answer")
                return once(*args)

            monkeypatch.setattr(store._courier._server, "once", cut)
            assert store.reserve(call, ["team"], lo_nano=600, hi_nano=1000) == 1000  # asked again, and there is no room left by then
            assert proxy.cuts == 1 and row(postgres_url) == (0, 1000, 0)
            store.finish(released(call))
            store._courier.give_back()
            assert row(postgres_url) == (0, 0, 0)

    def test_a_question_that_arrives_after_its_repeat_was_refused_lends_nothing(
        self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, other = machine(), machine("b")
        store.open_budget(a_budget("team", 1000))
        call = a_call()
        assert other.reserve(call, ["team"], lo_nano=900, hi_nano=900) == 900
        way, late = store._courier._server, []
        once, one = way.once, way._connections._one

        class Slow:
            def execute(self, *question: Any) -> None:
                late.append(question)
                monkeypatch.setattr(way._connections, "_one", one)
                raise psycopg.OperationalError("the connection was lost")

        def by_the_slow_one(*args: Any) -> Any:
            monkeypatch.setattr(way, "once", once)
            monkeypatch.setattr(way._connections, "_one", lambda _: contextlib.nullcontext(Slow()))
            return once(*args)

        monkeypatch.setattr(way, "once", by_the_slow_one)
        assert isinstance(store.reserve(a_call(), ["team"], lo_nano=600, hi_nano=600), Shortfall)
        other.finish(released(call))
        other._courier.give_back()
        with psycopg.connect(postgres_url, autocommit=True) as connection, contextlib.suppress(psycopg.errors.UniqueViolation):
            connection.execute(*late[0])
        assert row(postgres_url) == (0, 0, 0)
        assert store.reserve(a_call(), ["team"], lo_nano=600, hi_nano=600) == 600

    @pytest.mark.parametrize("before", [True, False])
    def test_of_money_given_back(self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
        store = machine()
        store.open_budget(a_budget("team", 1000))
        call = a_call()
        store.reserve(call, ["team"], lo_nano=600, hi_nano=600)
        store.finish(released(call))
        self.lose(monkeypatch, store, "give", before=before)
        with pytest.raises(StoreUnavailableError):
            store._courier.give_back()
        for _ in range(2):
            store.flush()
            assert row(postgres_url) == (0, 0, 0)

    @pytest.mark.parametrize("before", [True, False])
    def test_of_rows_sent_in(self, machine: Machine, postgres_url: str, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
        store = machine()
        store.begin_execution(an_execution("exec-1"), holder="h|1|1|x")
        store.open_budget(a_budget("team", 1000))
        for cost in (10, 20):
            call = a_call()
            store.reserve(call, ["team"], lo_nano=100, hi_nano=100)
            store.finish(settled(call, cost))
        self.lose(monkeypatch, store, "ship", before=before)
        with pytest.raises(StoreUnavailableError):
            store.flush()
        for _ in range(2):
            store.flush()
        store._courier.give_back()
        assert row(postgres_url) == (30, 0, 0)
        assert server(postgres_url, "SELECT cost_nano FROM workflow_executions") == [(30,)]
        assert sorted(store.read("calls")["cost_nano"]) == [10, 20]

    def test_of_a_correction(self, machine: Machine, postgres_url: str) -> None:
        store = machine()
        store.open_budget(a_budget("team", 1000))
        call = a_call()
        store.reserve(call, ["team"], lo_nano=400, hi_nano=400)
        store.finish(unconfirmed(call))
        for _ in range(2):
            store.finish(settled(call, 150))
        store._courier.give_back()
        assert row(postgres_url) == (150, 0, 0)
        assert store.reserve(a_call(), ["team"], lo_nano=850, hi_nano=850) == 850


def test_calls_of_another_machine_that_arrive_with_their_execution_are_in_its_cost(
    machine: Machine, postgres_url: str, quiet: None
) -> None:
    first, second = machine("a"), machine("b")
    for store in (first, second):
        store.open_budget(a_budget("team", 1000))
        store._courier.sender.announce()
    first.begin_execution(an_execution(), holder="host|1|1|x")
    call = a_call(budget_id="team")
    second.reserve(call, ["team"], lo_nano=100, hi_nano=100)
    second.finish(settled(call, 10))

    def waiting() -> int:
        locked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return int(server(postgres_url, locked)[0][0])

    with ThreadPoolExecutor(2) as pool, psycopg.connect(postgres_url) as slow:
        slow.execute("SELECT 1 FROM budgets FOR UPDATE")
        asked = []
        for store in (second, first):
            asked.append(pool.submit(store.flush))
            until = time.monotonic() + 5
            while waiting() < len(asked) and not asked[-1].done():
                assert time.monotonic() < until
                time.sleep(0.02)
        slow.rollback()
        for one in asked:
            one.result(30)
    assert server(postgres_url, "SELECT cost_nano FROM workflow_executions") == [(10,)]


@pytest.mark.usefixtures("quiet")
class TestServerDown:
    """A server that goes away in the middle, and comes back."""

    def test_mid_cell(self, machine: Machine, own_postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(courier, "PATIENCE", 0.0)
        store = machine("a", own_postgres.url)
        store.begin_execution(an_execution("exec-1"), holder="h|1|1|x")
        store.open_budget(a_budget("team", 1000))
        first, second = a_call(), a_call()
        assert store.reserve(first, ["team"], lo_nano=100, hi_nano=100) == 100
        own_postgres.stop()
        store.finish(settled(first, 40))
        # 60 of the lease are left: that much may still be spent, and no more.
        assert store.reserve(second, ["team"], lo_nano=60, hi_nano=60) == 60
        with pytest.raises(StoreUnavailableError, match="cannot be reached"), pytest.warns(WfloWarning, match="leased"):
            store.reserve(a_call(), ["team"], lo_nano=1, hi_nano=1)
        store.finish(settled(second, 60))
        free = a_call(execution_id="exec-2")
        assert store.reserve(free, (), lo_nano=5, hi_nano=5) == 5  # without a budget work goes on
        store.finish(settled(free, 5))
        own_postgres.start()
        assert store.reserve(a_call(), ["team"], lo_nano=900, hi_nano=900) == 900
        store.flush()
        store.flush()
        assert row(own_postgres.url) == (100, 900, 0)
        assert sorted(c for c in store.read("calls")["cost_nano"] if c is not None) == [5, 40, 60]
        assert store.execution("exec-1").cost_nano == 100

    def test_at_the_start_with_a_lease_that_still_lasts(
        self, machine: Machine, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(courier, "PATIENCE", 0.0)
        before = machine("a", own_postgres.url)
        before.open_budget(a_budget("team", 1000))
        call = a_call()
        before.reserve(call, ["team"], lo_nano=500, hi_nano=500)
        before.finish(settled(call, 100))
        crash(before)
        own_postgres.stop()
        with pytest.warns(WfloWarning, match="recorded on this machine"):
            store = machine("a", own_postgres.url)
        paid, unpaid = a_call(), a_call(execution_id="exec-2")
        assert store.reserve(paid, ["team"], lo_nano=400, hi_nano=400) == 400
        with pytest.raises(StoreUnavailableError):
            store.reserve(a_call(), ["team"], lo_nano=1, hi_nano=1)
        store.begin_execution(an_execution("exec-2"), holder="h|1|1|x")
        store.record(settled(unpaid, 7))
        store.end_execution("exec-2", ExecutionStatus.COMPLETED)
        store.finish(settled(paid, 300))
        own_postgres.start()
        store.flush()
        store._courier.give_back()
        assert row(own_postgres.url) == (400, 0, 0)
        assert store.execution("exec-2").cost_nano == 7

    def test_at_the_start_with_a_lease_that_has_run_out(
        self, machine: Machine, own_postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(courier, "PATIENCE", 0.0)
        monkeypatch.setattr(courier, "TTL", 0.05)
        before = machine("a", own_postgres.url)
        before.open_budget(a_budget("team", 1000))
        call = a_call()
        before.reserve(call, ["team"], lo_nano=500, hi_nano=500)
        before.finish(settled(call, 100))
        crash(before)
        own_postgres.stop()
        time.sleep(0.1)
        with pytest.warns(WfloWarning):
            store = machine("a", own_postgres.url)
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            store.reserve(a_call(), ["team"], lo_nano=1, hi_nano=1)
        own_postgres.start()

    def test_an_address_that_never_worked_is_an_error(self, machine: Machine, own_postgres: Server) -> None:
        own_postgres.stop()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            machine("new", own_postgres.url)
        own_postgres.start()


@pytest.mark.usefixtures("quiet")
def test_a_restart_of_the_machine_begins_a_new_spool_and_empties_the_old(
    machine: Machine, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(leased, "this_boot", lambda: "earlier")
        store = machine()
        store.open_budget(a_budget("team", 1000))
        call = a_call()
        store.reserve(call, ["team"], lo_nano=500, hi_nano=500)
        store.finish(settled(call, 100))
        crash(store)
        store._spool.close()
    after = machine()
    assert row(postgres_url) == (100, 400, 0)  # what was leased and not spent is not known to be free
    falls_silent(postgres_url)
    after.sweep(lambda _: False)
    assert row(postgres_url) == (500, 0, 400)
    assert [p.name for p in (tmp_path / "a" / "spools").glob("*.db")] == [after._spool.path.name]


def test_threads_of_one_machine_and_a_reader_agree(machine: Machine, postgres_url: str) -> None:
    store, reader = machine("a"), machine("b")
    store.open_budget(a_budget("team", 50_000))
    done = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not done.is_set():
            state = reader.budget("team")
            seen.append(state.spent_nano + state.held_nano)

    watcher = threading.Thread(target=watch)
    watcher.start()

    def work(n: int) -> int:
        call = a_call()
        held = store.reserve(call, ["team"], lo_nano=100, hi_nano=900, share=4)
        if isinstance(held, Shortfall):
            return 0
        cost = held // 3
        store.finish(settled(call, cost) if n % 5 else unconfirmed(call))
        return cost if n % 5 else held

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(work, range(120)))
    done.set()
    watcher.join()
    assert max(seen) <= 50_000
    store.close()
    assert row(postgres_url)[:2] == (spent, 0)
