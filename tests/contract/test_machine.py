"""The invariant, machine-checked: random lives of a ledger, step by step beside the pure rules of `wflo_nb.budget.core`.

Several kernels with stores of their own work on one database: they reserve, settle, release, doubt and correct, say things twice, record
what never asked, move caps, die, are swept, come back, ask at the same moment; connections are cut before a question arrives and before an
answer does. After every step the counters in the tables must be those of the model, to the nano-dollar, and no step may bring a budget
above its cap but by what a wrong price bound or an unasked cost adds.

The tables are read by a connection of the judge's own: it shares no code with the accused. Through a lease the server's counters are
behind what its machines know; there it is the *truth* (what all calls together hold and spent) that must stay within the cap at every
step, the server must never know less of it than it has lent out, and when everything is sent in and given back the sums must be exact.

``WFLO_EXAMPLES=500 pytest tests/contract/test_machine.py`` plays more lives, each time other ones; as it stands they are always the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.contract.conftest import a_budget, a_call, an_execution
from tests.proxy import Proxy, moved
from wflo_nb.budget import core
from wflo_nb.model import Call, CallState
from wflo_nb.store import Shortfall, Store, open_store
from wflo_nb.store.leased import LeasedStore
from wflo_nb.store.postgres import Postgres
from wflo_nb.store.purse import Purse
from wflo_nb.store.sqlite import SQLite

PARENTS = {"team": None, "nb": "team", "cell": "nb", "other": "nb"}  # their alphabet is not their order
CHAINS: list[tuple[str, ...]] = [(), ("team",), ("team", "nb"), ("team", "nb", "cell"), ("team", "nb", "other")]
RUNS = ("exec-a", "exec-b")
KERNELS = 3
MACHINES = {0, 1}  # of the kernels, two share one
MONEY = st.integers(0, 60)
CAPS = st.none() | st.integers(0, 400)


def lives(count: int, steps: int) -> settings:
    """How many lives are played, of how many steps."""
    more = int(os.environ.get("WFLO_EXAMPLES", "0"))
    return settings(
        max_examples=more or count,
        stateful_step_count=steps,
        derandomize=not more,
        deadline=None,
        database=None,
        # Making a counterexample small takes hundreds of lives; a pipeline is told of the first one that fails.
        phases=[Phase.generate, Phase.shrink] if more else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class World:
    """A database, and a look at its tables that is not ours."""

    faulty = False

    def open(self, team: str, kernel: int) -> Store:
        raise NotImplementedError

    def rows(self, sql: str, team: str) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def cut(self, where: str, after: int) -> None:
        """Cut a connection soon."""

    def end_sessions(self) -> None:
        """End every session that a store has with its server."""


class File(World):
    def __init__(self, path: Path) -> None:
        self._path = path
        open_store(path).close()
        self._judge = sqlite3.connect(path, isolation_level=None)

    def open(self, team: str, kernel: int) -> Store:
        return Store(SQLite(self._path, team))

    def rows(self, sql: str, team: str) -> list[tuple[Any, ...]]:
        return self._judge.execute(sql.replace("%s", "?"), (team,)).fetchall()

    def close(self) -> None:
        self._judge.close()


class Server(World):
    faulty = True

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._proxy = Proxy(parts.hostname or "", parts.port or 5432)
        self.url = moved(url, self._proxy.port)
        Postgres(url, "local").prepare()
        self._judge = psycopg.connect(url, autocommit=True)

    def open(self, team: str, kernel: int) -> Store:
        return Store(Postgres(self.url, team))

    def rows(self, sql: str, team: str) -> list[tuple[Any, ...]]:
        return self._judge.execute(sql, (team,)).fetchall()  # type: ignore[call-overload, no-any-return]

    def cut(self, where: str, after: int) -> None:
        self._proxy.cut("question" if where == "question" else "answer", after)

    def end_sessions(self) -> None:
        self._judge.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    def close(self) -> None:
        self._proxy.close()
        self._judge.close()


class Money(RuleBasedStateMachine):
    """One life. The store's every answer and every counter is compared with the model's."""

    calls: Bundle[Call] = Bundle("calls")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.team = secrets.token_hex(6)
        self.books = core.Books()
        self.run_of: dict[str, str] = {}
        self.stores: list[Store] = []
        self.holders: list[str] = []
        self.home_of: dict[str, int] = {}
        self.dead: set[str] = set()
        self.left_behind: list[Store] = []
        self.allowed: dict[str, int] = {}

    # -- the world -----------------------------------------------------------------------------------------------------

    @initialize(caps=st.tuples(CAPS, CAPS, CAPS, CAPS))
    def begin(self, caps: tuple[int | None, ...]) -> None:
        for n in range(KERNELS):
            self.stores.append(self.world.open(self.team, n))
            self.holders.append(self.fresh_holder(n))
        for (id, parent), cap in zip(PARENTS.items(), caps, strict=True):
            budget = a_budget(id, cap, parent)
            self.stores[0].open_budget(budget)
            self.books = core.open_budget(self.books, budget)
        for run in RUNS:
            self.stores[0].begin_execution(an_execution(run), holder=self.holders[0])
        self.begin_judging()

    def begin_judging(self) -> None:
        self.totals = self.counted()

    def fresh_holder(self, k: int) -> str:
        holder = f"elsewhere|1|1|{secrets.token_hex(4)}"
        self.home_of[holder] = k
        return holder

    def teardown(self) -> None:
        self.world.cut("question", 10**9)
        for store in self.stores + self.left_behind:
            store.close()

    def counted(self) -> dict[str, int]:
        """What each budget has spent and holds together."""
        return {id: b.spent_nano + b.held_nano for id, b in self.books.budgets.items()}

    def excuse(self, call: Call, cost: int | None, hold: int, chain: tuple[str, ...]) -> None:
        """A cost above its hold may bring budgets above their caps, by the difference."""
        for id in chain:
            self.allowed[id] = self.allowed.get(id, 0) + max(0, (cost or 0) - hold)

    # -- what kernels do -----------------------------------------------------------------------------------------------

    @rule(target=calls, k=st.integers(0, KERNELS - 1), chain=st.sampled_from(CHAINS), run=st.sampled_from(RUNS), lo=MONEY,
          more=st.just(0) | MONEY, share=st.integers(0, 5))  # fmt: skip
    def reserve(self, k: int, chain: tuple[str, ...], run: str, lo: int, more: int, share: int) -> Call:
        call = a_call(execution_id=run, budget_id=chain[-1] if chain else None, holder=self.holders[k])
        self.run_of[call.id] = run
        self.ask(k, call, chain, lo, lo + more, share)
        return call

    def ask(self, k: int, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> None:
        got = self.stores[k].reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
        self.books, expected = core.reserve(self.books, call.id, chain, lo, hi, share=share, holder=call.holder)
        assert got == expected

    @rule(k=st.integers(0, KERNELS - 1), call=calls, chain=st.sampled_from(CHAINS), lo=MONEY, more=MONEY)
    def reserve_again(self, k: int, call: Call, chain: tuple[str, ...], lo: int, more: int) -> None:
        """A repeat, also by a call that was refused and asks for less now."""
        entry = self.books.calls.get(call.id)
        self.ask(k, call, entry.chain if entry else chain, lo, lo + more, 1)

    @rule(chain=st.sampled_from(CHAINS[1:]), each=st.integers(1, 60), run=st.sampled_from(RUNS))
    def reserve_at_once(self, chain: tuple[str, ...], each: int, run: str) -> None:
        """As many at the same moment as there are kernels, twice: who is served is luck, how many are is not."""
        asked = [a_call(execution_id=run, budget_id=chain[-1], holder=self.holders[n % KERNELS]) for n in range(2 * KERNELS)]
        ready = threading.Barrier(len(asked))

        def work(n: int) -> int | Shortfall:
            ready.wait()
            return self.stores[n % KERNELS].reserve(asked[n], chain, lo_nano=each, hi_nano=each)

        with ThreadPoolExecutor(len(asked)) as pool:
            got = list(pool.map(work, range(len(asked))))
        for call, amount in sorted(zip(asked, got, strict=True), key=lambda pair: isinstance(pair[1], Shortfall)):
            self.run_of[call.id] = run
            self.take(call, chain, each, amount)
        self.at_once(chain, asked)

    def take(self, call: Call, chain: tuple[str, ...], each: int, amount: int | Shortfall) -> None:
        self.books, expected = core.reserve(self.books, call.id, chain, each, each, holder=call.holder)
        assert isinstance(amount, Shortfall) is isinstance(expected, Shortfall)

    def at_once(self, chain: tuple[str, ...], asked: list[Call]) -> None:
        """The same with their ends."""
        flying = [(n, c) for n, c in enumerate(asked) if c.id in self.books.calls]
        if flying:
            with ThreadPoolExecutor(len(flying)) as pool:
                ended = [(n, replace(c, state=CallState.SETTLED, cost_nano=n)) for n, c in flying]
                list(pool.map(lambda pair: self.stores[pair[0] % KERNELS].finish(pair[1]), ended))
            for n, call in flying:
                self.excuse(call, n, self.books.calls[call.id].held, chain)
                self.books = core.settle(self.books, call.id, n)

    @rule(
        k=st.integers(0, KERNELS - 1),
        call=calls,
        cost=st.none() | MONEY,
        state=st.sampled_from(["SETTLED", "SETTLED", "RELEASED", "UNCONFIRMED"]),
    )
    def finish(self, k: int, call: Call, cost: int | None, state: str) -> None:
        """Whatever it was before: open, over, in doubt, refused."""
        known = self.books.calls.get(call.id)
        chain = known.chain if known else self.default_chain(call)
        self.excuse(call, cost, known.held if known and known.state is CallState.RESERVED else 0, chain)
        self.stores[k].finish(replace(call, state=CallState(state), cost_nano=cost, reserved_nano=known.held if known else 0))
        self.books = core.finish(self.books, call.id, CallState(state), cost, chain)

    def default_chain(self, call: Call) -> tuple[str, ...]:
        return next(c for c in CHAINS if (c[-1] if c else None) == call.budget_id)

    @rule(target=calls, k=st.integers(0, KERNELS - 1), chain=st.sampled_from(CHAINS), run=st.sampled_from(RUNS), cost=st.none() | MONEY,
          state=st.sampled_from(["SETTLED", "UNCONFIRMED", "REFUSED"]), twice=st.booleans())  # fmt: skip
    def record(self, k: int, chain: tuple[str, ...], run: str, cost: int | None, state: str, twice: bool) -> Call:
        call = a_call(execution_id=run, budget_id=chain[-1] if chain else None, state=CallState(state), cost_nano=cost)
        self.run_of[call.id] = run
        self.excuse(call, cost, 0, chain)
        for n in range(1 + twice):
            self.stores[(k + n) % KERNELS].record(call, None if state == "SETTLED" else chain)
        # Nothing is charged for a refused call: it has no chain in the table, nor a cost.
        self.books = core.record(self.books, call.id, CallState(state), cost, chain)
        return call

    @rule(k=st.integers(0, KERNELS - 1), budget=st.sampled_from(list(PARENTS)), cap=CAPS)
    def set_cap(self, k: int, budget: str, cap: int | None) -> None:
        assert self.stores[k].set_cap(budget, cap).cap_nano == cap
        self.books = core.set_cap(self.books, budget, cap)

    # -- what happens to them ------------------------------------------------------------------------------------------

    @rule(k=st.integers(0, KERNELS - 1))
    def dies(self, k: int) -> None:
        """Without a word; another kernel takes its place."""
        self.dead.add(self.holders[k])
        self.abandon(k)
        self.stores[k], self.holders[k] = self.world.open(self.team, k), self.fresh_holder(k)

    def abandon(self, k: int) -> None:
        self.left_behind.append(self.stores[k])

    @rule(k=st.integers(0, KERNELS - 1))
    def sweeps(self, k: int) -> None:
        self.stores[k].sweep(self.dead.__contains__)
        self.books = core.sweep(self.books, self.dead.__contains__)

    @rule(k=st.integers(0, KERNELS - 1))
    def closes_and_opens(self, k: int) -> None:
        self.stores[k].close()
        self.stores[k] = self.world.open(self.team, k)

    @precondition(lambda self: self.world.faulty)
    @rule(where=st.sampled_from(["question", "answer"]), after=st.integers(0, 5))
    def cut_soon(self, where: str, after: int) -> None:
        self.world.cut(where, after)

    @precondition(lambda self: self.world.faulty)
    @rule()
    def sessions_end(self) -> None:
        self.world.end_sessions()

    # -- the judge -----------------------------------------------------------------------------------------------------

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        if not self.stores:
            return
        assert core.faults(self.books) == []
        sums = "SELECT id, cap_nano, spent_nano, held_nano, unconfirmed_nano FROM budgets WHERE team_id = %s"
        assert {r[0]: tuple(r[1:]) for r in self.world.rows(sums, self.team)} == {
            b.id: (b.cap_nano, b.spent_nano, b.held_nano, b.unconfirmed_nano) for b in self.books.budgets.values()
        }
        listed = "SELECT id, state, reserved_nano, cost_nano FROM llm_calls WHERE team_id = %s"
        assert {r[0]: tuple(r[1:]) for r in self.world.rows(listed, self.team)} == {
            id: (e.state.value, e.held, e.cost) for id, e in self.books.calls.items()
        }
        self.runs_are_as_the_model_says()

    def runs_are_as_the_model_says(self) -> None:
        costs = "SELECT id, cost_nano FROM workflow_executions WHERE team_id = %s"
        assert dict(self.world.rows(costs, self.team)) == {
            run: sum(e.cost or 0 for id, e in self.books.calls.items() if self.run_of[id] == run) for run in RUNS
        }

    @invariant()
    def nothing_rises_above_its_cap(self) -> None:
        if not self.stores:
            return
        now = self.counted()
        for id, cap in ((b.id, b.cap_nano) for b in self.books.budgets.values()):
            if cap is not None:
                assert now[id] <= max(cap, self.totals[id]) + self.allowed.get(id, 0), f"{id}: {now[id]} of {cap}"
        self.totals, self.allowed = now, {}


class Machines(Server):
    """The same server worked with through leases: two kernels share a machine, and so its spool; the third has one of its own.

    Nothing is sent in, given back or prolonged by itself: when it happens is for the life to say.
    """

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self._folder = folder

    def open(self, team: str, kernel: int) -> LeasedStore:
        store = LeasedStore(Postgres(self.url, team), self._folder / f"machine-{kernel // 2}", self.url)
        store._courier.touch = lambda used=False: None  # type: ignore[method-assign]
        return store

    def run_out(self, team: str) -> None:
        """A minute without a sign of life passes."""
        self._judge.execute("UPDATE budget_leases SET expires_at = now() - interval '1 second' WHERE team_id = %s", (team,))


class Leased(Money):
    """What a call gets depends on what its machine has leased; what all of them get together must stay within the caps."""

    world: Machines
    stores: list[LeasedStore]  # type: ignore[assignment]

    def begin_judging(self) -> None:
        #: Per budget, what it may reach: its cap, or what was spent and lent when that was lowered, and what was spent beyond holds.
        self.ceiling = {b.id: b.cap_nano for b in self.books.budgets.values()}
        self.always_capped = {b.id for b in self.books.budgets.values() if b.cap_nano is not None}
        #: Per budget, the machines that know its newest cap.
        self.told = {id: set(MACHINES) for id in PARENTS}

    # -- what kernels do -----------------------------------------------------------------------------------------------

    def ask(self, k: int, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> None:
        got = self.stores[k].reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
        if isinstance(got, Shortfall):
            assert call.id not in self.books.calls
            assert got.needed_nano == lo
        else:
            known = self.books.calls.get(call.id)
            assert got == known.held if known else lo <= got <= hi
            self.hold(call, chain, got)

    def hold(self, call: Call, chain: tuple[str, ...], amount: int) -> None:
        """What the store granted is held, whatever the model would have said: the judge looks at the sums."""
        caps = {b.id: b.cap_nano for b in self.books.budgets.values()}
        free = replace(self.books, budgets={id: replace(b, cap_nano=None) for id, b in self.books.budgets.items()})
        free, _ = core.reserve(free, call.id, chain, amount, amount, holder=call.holder)
        self.books = replace(free, budgets={id: replace(b, cap_nano=caps[id]) for id, b in free.budgets.items()})

    def take(self, call: Call, chain: tuple[str, ...], each: int, amount: int | Shortfall) -> None:
        if not isinstance(amount, Shortfall):
            assert amount == each
            self.hold(call, chain, amount)

    @rule(k=st.integers(0, KERNELS - 1), call=Money.calls, chain=st.sampled_from(CHAINS), lo=MONEY, more=MONEY)
    def reserve_again(self, k: int, call: Call, chain: tuple[str, ...], lo: int, more: int) -> None:
        """From the machine that asked before: a call that is over, or is another machine's, is not asked for again; nor one that is held
        in no budget, which a store that was opened since would not look for.
        """
        entry = self.books.calls.get(call.id)
        if entry is None:
            self.ask(k, replace(call, holder=self.holders[k]), self.default_chain(call), lo, lo + more, 1)
        elif entry.state is CallState.RESERVED and entry.chain:
            self.ask(self.home_of[entry.holder or ""], call, entry.chain, lo, lo + more, 1)

    @rule(
        k=st.integers(0, KERNELS - 1),
        call=Money.calls,
        cost=st.none() | MONEY,
        state=st.sampled_from(["SETTLED", "SETTLED", "RELEASED", "UNCONFIRMED"]),
    )
    def finish(self, k: int, call: Call, cost: int | None, state: str) -> None:
        """By a kernel of the machine that holds it: no other one knows of the call while it is open."""
        known = self.books.calls.get(call.id)
        if known is not None and known.state is CallState.RESERVED:
            k = self.home_of[known.holder or ""]
        else:
            self.all_send_in()
        hold = known.held if known else 0
        super().finish(k, call, cost if cost is None or cost > 55 else min(cost, hold), state)

    def all_send_in(self) -> None:
        for store in self.stores:
            store.flush()

    @rule(
        target=Money.calls,
        k=st.integers(0, KERNELS - 1),
        chain=st.sampled_from(CHAINS),
        run=st.sampled_from(RUNS),
        cost=st.none() | MONEY,
        state=st.sampled_from(["SETTLED", "UNCONFIRMED", "REFUSED"]),
        twice=st.booleans(),
    )
    def record(self, k: int, chain: tuple[str, ...], run: str, cost: int | None, state: str, twice: bool) -> Call:
        return super().record(k, chain, run, cost if cost is None or cost > 55 else 0, state, twice)

    @rule(k=st.integers(0, KERNELS - 1), budget=st.sampled_from(list(PARENTS)), cap=CAPS)
    def set_cap(self, k: int, budget: str, cap: int | None) -> None:
        super().set_cap(k, budget, cap)
        spent, held = self.on_server()[budget][:2]
        self.ceiling[budget] = None if cap is None else max(cap, spent + held)
        self.told[budget] = {k // 2}
        if cap is None:
            self.always_capped.discard(budget)

    @rule(k=st.integers(0, KERNELS - 1))
    def sweeps(self, k: int) -> None:
        """Of the dead, a machine knows its own."""
        self.stores[k].sweep(self.dead.__contains__)
        self.learns(k)
        known = {h for h in self.dead if self.home_of[h] // 2 == k // 2}
        self.books = core.sweep(self.books, known.__contains__)

    # -- what happens to their leases ----------------------------------------------------------------------------------

    @rule(k=st.integers(0, KERNELS - 1))
    def sends_in(self, k: int) -> None:
        self.stores[k].flush()

    @rule(k=st.integers(0, KERNELS - 1))
    def gives_back(self, k: int) -> None:
        self.stores[k]._courier.give_back()

    @rule(k=st.integers(0, KERNELS - 1))
    def writes_off_all_that_is_lent(self, k: int) -> None:
        self.world.run_out(self.team)
        self.stores[k]._courier._lessor.expire()

    @rule(k=st.integers(0, KERNELS - 1))
    def comes_back(self, k: int) -> None:
        self.stores[k]._courier.renew()
        self.learns(k)

    def learns(self, k: int) -> None:
        for machines in self.told.values():
            machines.add(k // 2)

    # -- the judge -----------------------------------------------------------------------------------------------------

    def on_server(self) -> dict[str, tuple[int, int, int]]:
        sums = "SELECT id, spent_nano, held_nano, unconfirmed_nano FROM budgets WHERE team_id = %s"
        found = {r[0]: (r[1], r[2], r[3]) for r in self.world.rows(sums, self.team)}
        return {id: found.get(id, (0, 0, 0)) for id in PARENTS}

    def lent(self) -> dict[str, tuple[int, int]]:
        """Outstanding and lost, per budget."""
        sums = "SELECT budget_id, sum(outstanding_nano)::bigint, sum(lost_nano)::bigint FROM budget_leases WHERE team_id = %s GROUP BY 1"
        return dict.fromkeys(PARENTS, (0, 0)) | {r[0]: (r[1], r[2]) for r in self.world.rows(sums, self.team)}

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        if not self.stores:
            return
        assert core.faults(self.books) == []
        lent = self.lent()
        for id, (spent, held, doubt) in self.on_server().items():
            assert held == lent[id][0], f"{id}: {held} held, {lent[id][0]} lent"
            assert spent >= doubt >= lent[id][1]

    @rule()
    def everything_is_sent_in(self) -> None:
        for k, store in enumerate(self.stores):
            store.flush()
            store._courier.renew()
            store._courier.give_back()
            self.learns(k)
        lent = self.lent()
        for id, (spent, held, doubt) in self.on_server().items():
            b, lost = self.books.budgets[id], lent[id][1]
            assert (spent - lost, doubt - lost) == (b.spent_nano, b.unconfirmed_nano), id
            if id in self.always_capped:
                assert held + lost == b.held_nano, id
        self.runs_are_as_the_model_says()

    @invariant()
    def nothing_rises_above_its_cap(self) -> None:
        if not self.stores:
            return
        truth, server = self.counted(), self.on_server()
        for id, ceiling in self.ceiling.items():
            # A first cap reaches other machines with their next sign of life: until then they spend as if there were none.
            if ceiling is not None and id in self.always_capped:
                ceiling += self.allowed.get(id, 0)
                assert truth[id] <= ceiling, f"{id}: calls hold and spent {truth[id]} of {ceiling}"
                assert sum(server[id][:2]) <= ceiling, f"{id}: the server has {server[id]} of {ceiling}"
            cap = self.books.budgets[id].cap_nano
            if ceiling is not None and cap is not None and self.told[id] == MACHINES:  # what falls may not rise again beyond the cap
                self.ceiling[id] = max(cap, min(ceiling, truth[id]))


class Pockets(File):
    """The same file by kernels that have purses: what they do is booked now and then, and a killed one leaves its journal."""

    def open(self, team: str, kernel: int) -> Store:
        return Store(SQLite(self._path, team, purse=True))


class Pursed(Money):
    """Between two looks of the judge kernels answer from memory. What a clamped call gets depends on what is set aside then; that a
    call is refused does not.
    """

    seen = 0

    def purse(self, k: int) -> Purse:
        found = self.stores[k]._db.purse
        assert found is not None
        return found

    def ask(self, k: int, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> None:
        got = self.stores[k].reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
        _, expected = core.reserve(self.books, call.id, chain, lo, hi, share=share, holder=call.holder)
        assert isinstance(got, Shortfall) is isinstance(expected, Shortfall)
        if isinstance(got, int):
            assert got == self.books.calls[call.id].held if call.id in self.books.calls else lo <= got <= hi
            self.books, _ = core.reserve(self.books, call.id, chain, got, got, holder=call.holder)

    @rule(k=st.integers(0, KERNELS - 1), chain=st.sampled_from(CHAINS), run=st.sampled_from(RUNS), each=st.integers(0, 9),
          costs=st.lists(st.none() | st.integers(0, 9), min_size=3, max_size=12))  # fmt: skip
    def calls_again_and_again(self, k: int, chain: tuple[str, ...], run: str, each: int, costs: list[int | None]) -> None:
        """So that it draws ahead; a cost of None is a call that stays under way."""
        for cost in costs:
            call = a_call(execution_id=run, budget_id=chain[-1] if chain else None, holder=self.holders[k])
            self.run_of[call.id] = run
            self.ask(k, call, chain, each, each, 1)
            known = self.books.calls.get(call.id)
            if known is not None and cost is not None:
                self.excuse(call, cost, known.held, chain)
                self.stores[k].finish(replace(call, state=CallState.SETTLED, cost_nano=cost, reserved_nano=known.held))
                self.books = core.settle(self.books, call.id, cost)

    @rule(k=st.integers(0, KERNELS - 1), call=Money.calls, lo=MONEY, more=MONEY)
    def reserve_again(self, k: int, call: Call, lo: int, more: int) -> None:  # type: ignore[override]
        """By the store that held it: a call that is over, or is another store's, is not asked for again."""
        entry = self.books.calls.get(call.id)
        if entry is None:
            self.ask(k, replace(call, holder=self.holders[k]), self.default_chain(call), lo, lo + more, 1)
        elif call.id in self.purse(k)._flights:
            self.ask(k, call, entry.chain, lo, lo + more, 1)

    def abandon(self, k: int) -> None:
        """Its memory is gone, and the next one that looks finds its journal. The calls that it has under way are found as those of a dead
        kernel, like any others.
        """
        self.purse(k).closed = True
        self.stores[(k + 1) % KERNELS].budget("team")

    @rule(k=st.integers(0, KERNELS - 1), landed=st.booleans())
    def is_interrupted_while_it_books(self, k: int, landed: bool) -> None:
        """Before its transaction, or right after it, so that it does not know."""
        store = self.stores[k]
        real = store._db.book

        def book(work: Any, **more: Any) -> Any:
            if landed:
                real(work, **more)
            raise KeyboardInterrupt

        store._db.book = book  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            store.write_out()
        del store._db.book  # type: ignore[method-assign]

    def all_book(self) -> bool:
        """Every third time there is something to judge: in between, kernels go on."""
        self.seen += 1
        if self.stores and self.seen % 3 == 0:
            self.stores[0].budget("team")
            return True
        return False

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        if self.all_book():
            super().tables_are_as_the_model_says()

    @invariant()
    def nothing_rises_above_its_cap(self) -> None:
        """What is set aside is within the caps as well."""
        super().nothing_rises_above_its_cap()
        sums = "SELECT id, cap_nano, spent_nano + held_nano FROM budgets WHERE team_id = %s"
        for id, cap, total in self.world.rows(sums, self.team) if self.stores else ():
            b = self.books.budgets[id]
            if cap is not None:
                assert total <= max(cap, b.spent_nano + b.held_nano), f"{id}: {total} of {cap}"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    world = File(tmp_path / "store.db")
    yield world
    world.close()


@pytest.fixture
def server(postgres_url: str) -> Iterator[Server]:
    world = Server(postgres_url)
    yield world
    world.close()


def test_sqlite_keeps_the_books_of_the_model(file: File) -> None:
    run_state_machine_as_test(lambda: Money(file), settings=lives(40, 40))


def test_purses_keep_the_books_of_the_model_whoever_is_killed_or_interrupted(tmp_path: Path) -> None:
    world = Pockets(tmp_path / "store.db")
    try:
        run_state_machine_as_test(lambda: Pursed(world), settings=lives(40, 40))
    finally:
        world.close()


def test_postgres_keeps_the_books_of_the_model_whatever_happens_to_its_connections(server: Server) -> None:
    run_state_machine_as_test(lambda: Money(server), settings=lives(25, 40))


def test_leases_keep_the_truth_within_the_caps_whatever_is_lost_and_written_off(postgres_url: str, tmp_path: Path) -> None:
    world = Machines(postgres_url, tmp_path)
    try:
        run_state_machine_as_test(lambda: Leased(world), settings=lives(16, 40))
    finally:
        world.close()
