"""What a process sets aside: few transactions, exact sums, nothing lost when it is killed, nothing free when the power goes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, settled
from wflo_nb.errors import WfloWarning
from wflo_nb.model import CallState
from wflo_nb.store import Shortfall, Store, open_store
from wflo_nb.store.holder import this_holder
from wflo_nb.store.journal import Journal
from wflo_nb.store.journal import notes as read
from wflo_nb.store.purse import BEAT, Purse
from wflo_nb.store.sqlite import SQLite

ROOT = Path(__file__).parents[3]
CAP = 10_000
CHAIN = ["team", "cell"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = open_store(path)
    opened.open_budget(a_budget("team", CAP))
    opened.open_budget(a_budget("cell", None, "team"))
    opened.begin_execution(an_execution(), holder=this_holder())
    yield opened
    opened.close()


def purse(store: Store) -> Purse:
    found = store._db.purse
    assert found is not None
    return found


def call_again_and_again(store: Store, times: int, hold: int = 10, cost: int = 4) -> None:
    for _ in range(times):
        call = a_call(budget_id="cell", holder=this_holder())
        assert store.reserve(call, CHAIN, lo_nano=hold, hi_nano=hold) == hold
        store.finish(settled(call, cost))


def in_the_tables(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What the file says, by a connection of the judge's own."""
    database = sqlite3.connect(path)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()


def held(path: Path) -> int:
    return int(in_the_tables(path, "SELECT held_nano FROM budgets WHERE id = 'team'")[0][0])


def killed_in_the_middle(path: Path, calls: int, flying: int, chain: Sequence[str] = CHAIN) -> None:
    """A process that makes calls as fast as it can, has some under way, and is gone without a word. Leaves a copy of its ledger as it was
    before the first draw.
    """
    body = f"""
        import os, shutil, sys
        from tests.contract.conftest import a_budget, a_call, an_execution, settled
        from wflo_nb.store import open_store
        from wflo_nb.store.holder import this_holder
        import wflo_nb.store.purse as purse
        purse.BEAT = 60.0  # nothing is booked by itself
        real = purse.Purse._draw
        def saving(self, *asked):
            if not os.path.exists(sys.argv[1] + ".before"):
                for end in ("", "-wal"):
                    shutil.copy(sys.argv[1] + end, sys.argv[1] + ".before" + end)
            return real(self, *asked)
        purse.Purse._draw = saving
        store = open_store(sys.argv[1])
        store.open_budget(a_budget("team", {CAP})); store.open_budget(a_budget("cell", None, "team"))
        store.open_budget(a_budget("exec-1", {CAP}))
        store.begin_execution(an_execution(), holder=this_holder())
        for number in range({calls + flying}):
            call = a_call(budget_id="{chain[-1]}", holder=this_holder())
            assert store.reserve(call, {list(chain)}, lo_nano=10, hi_nano=10) == 10
            if number < {calls}:
                store.finish(settled(call, 4))
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(body), path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_many_calls_take_few_transactions_and_the_sums_are_exact(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    booked: list[int] = []
    real = SQLite.book
    monkeypatch.setattr(SQLite, "book", lambda self, work, **more: (booked.append(1), real(self, work, **more))[1])
    call_again_and_again(store, 300)
    store.write_out()
    assert len(booked) < 100  # 600 and more, if each were waited for
    assert in_the_tables(path, "SELECT spent_nano, held_nano FROM budgets ORDER BY id") == [(1200, 0), (1200, 0)]
    assert in_the_tables(path, "SELECT count(*), sum(cost_nano), min(state), max(state) FROM llm_calls") == [
        (300, 1200, "SETTLED", "SETTLED")
    ]
    assert store.execution("exec-1").cost_nano == 1200
    assert store.leases() == []


def test_what_is_set_aside_is_held_in_the_tables_and_goes_back_when_nobody_needs_it(store: Store, path: Path) -> None:
    call_again_and_again(store, 5)
    assert sum(room.nano for room in purse(store)._rooms.values()) > 0
    assert held(path) >= sum(room.nano for room in purse(store)._rooms.values())
    until = time.monotonic() + 5
    while held(path) and time.monotonic() < until:
        time.sleep(0.02)
    assert held(path) == 0
    assert store.budget("team").spent_nano == 20


def test_a_cap_that_another_process_lowers_takes_back_what_was_set_aside_with_the_next_beat(store: Store, path: Path) -> None:
    beats = purse(store)
    beats._awake = threading.Event()  # its thread is over: the beats are those below
    call_again_and_again(store, 20)
    beats.beat()
    assert sum(room.nano for room in beats._rooms.values()) > 0
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE budgets SET cap_nano = 1 WHERE id = 'team'")
    beats.beat()
    assert held(path) == 0
    assert isinstance(store.reserve(a_call(budget_id="cell"), CHAIN, lo_nano=10, hi_nano=10), Shortfall)


def test_how_a_call_ended_is_on_the_disk_within_a_second_while_calls_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(at=time.monotonic(), monotonic=lambda: clock.at, sleep=time.sleep)
    monkeypatch.setattr("wflo_nb.store.purse.time", clock)
    synced = [clock.at]
    monkeypatch.setattr(SQLite, "sync", lambda _: synced.append(clock.at))
    beats = purse(store)
    beats._awake = threading.Event()
    for _ in range(40):
        call_again_and_again(store, 1)
        clock.at += BEAT
        beats.beat()
    assert len(synced) < 15  # many calls by one
    # What ended right after one is on the disk with the next.
    assert max(after - before for before, after in itertools.pairwise(synced)) <= 1.0 + 1e-6


def test_no_call_is_admitted_beyond_the_cap_and_all_of_it_can_be_used(store: Store) -> None:
    made = 0
    while True:
        call = a_call(budget_id="cell", holder=this_holder())
        got = store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
        if isinstance(got, Shortfall):
            break
        store.finish(settled(call, 10))
        made += 1
    assert made == CAP // 10
    assert store.budget("team").spent_nano == CAP


def test_a_cost_above_its_hold_is_known_before_the_next_call(store: Store) -> None:
    call_again_and_again(store, 3)
    call = a_call(budget_id="cell", holder=this_holder())
    store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
    store.finish(settled(call, 2 * CAP))
    assert isinstance(store.reserve(a_call(budget_id="cell"), CHAIN, lo_nano=1, hi_nano=1), Shortfall)


def test_a_killed_process_loses_no_call_that_had_ended_and_frees_no_hold(path: Path) -> None:
    killed_in_the_middle(path, calls=50, flying=7)
    assert in_the_tables(path, "SELECT count(*) FROM llm_calls WHERE state = 'SETTLED'")[0][0] < 50  # the rest is in its journal
    store = open_store(path)
    found = store.read("calls")
    assert found["state"].count("SETTLED") == 50 and found["state"].count("UNCONFIRMED") == 7
    team = store.budget("team")
    assert (team.spent_nano, team.held_nano, team.unconfirmed_nano) == (50 * 4 + 7 * 10, 0, 70)
    assert store.execution("exec-1").cost_nano == 270
    assert not list(path.parent.glob("*.calls"))
    store.close()


def test_a_call_that_no_table_can_keep_holds_up_no_other(store: Store) -> None:
    """A model that is no text breaks a rule of the table. Of that call the cost is kept, and the user is told."""
    odd = replace(a_call(budget_id="cell"), model=None)  # type: ignore[arg-type]
    calls = [a_call(budget_id="cell") for _ in range(5)]
    for call in (*calls[:3], odd, *calls[3:]):
        assert store.reserve(call, CHAIN, lo_nano=10, hi_nano=10) == 10
        store.finish(settled(call, 4))
    with pytest.warns(WfloWarning, match="only what it cost could be recorded"):
        store.write_out()
    found = dict(zip((frame := store.read("calls"))["id"], zip(frame["model"], frame["cost_nano"], strict=True), strict=True))
    assert found == {odd.id: ("", 4), **{call.id: ("gpt-4o", 4) for call in calls}}
    assert (store.budget("team").spent_nano, store.budget("team").held_nano) == (24, 0)


def test_no_money_is_free_between_calls_that_are_booked_one_by_one(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flying = [a_call(budget_id="cell", holder=this_holder()) for _ in range(3)]
    for call in flying:
        store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
    for model in ("gpt-4o", None, "gpt-4o"):
        call = replace(a_call(budget_id="cell"), model=model)  # type: ignore[arg-type]
        store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
        store.finish(settled(call, 4))
    seen: list[int] = []
    real = SQLite.book

    def spy(self: SQLite, work: Any, **more: Any) -> Any:
        done = real(self, work, **more)
        seen.append(in_the_tables(path, "SELECT spent_nano + held_nano FROM budgets WHERE id = 'team'")[0][0])
        return done

    monkeypatch.setattr(SQLite, "book", spy)
    with pytest.warns(WfloWarning, match="only what it cost"):
        store.write_out()
    assert len(seen) > 5 and min(seen) >= 3 * 10 + 3 * 4
    assert (store.budget("team").spent_nano, store.budget("team").held_nano) == (12, 30)
    assert sorted(store.read("calls")["state"]) == ["RESERVED"] * 3 + ["SETTLED"] * 3
    for call in flying:
        store.finish(settled(call, 5))
    assert (store.budget("team").spent_nano, store.budget("team").held_nano) == (27, 0)


def of_another_boot(path: Path) -> None:
    ((key, value),) = in_the_tables(path, "SELECT key, value FROM wflo_meta WHERE key LIKE 'purse:%'")
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE wflo_meta SET value = ? WHERE key = ?", (json.dumps({**json.loads(value), "boot": "before"}), key))
    database.close()


@pytest.mark.parametrize("left", ["nothing", "half a line", "all"])
def test_a_power_cut_makes_no_money_free(path: Path, left: str) -> None:
    """The journal may lack its last lines: whatever they said, what was set aside counts as spent."""
    killed_in_the_middle(path, calls=50, flying=7)
    (notes,) = path.parent.glob("*.calls")
    set_aside = held(path)
    text = notes.read_bytes()
    notes.write_bytes({"nothing": b"", "half a line": text[: len(text) // 2], "all": text}[left])
    of_another_boot(path)
    store = open_store(path)
    team = store.budget("team")
    assert team.held_nano == 0
    assert 270 <= team.spent_nano <= CAP and team.spent_nano - in_rows(store) == sum(lease.lost_nano for lease in lost(store))
    assert team.spent_nano >= set_aside - 6  # the first call's hold is a row's own, and what that gave back may be known
    assert team.unconfirmed_nano >= sum(lease.lost_nano for lease in lost(store)) > 0
    store.close()


@pytest.mark.parametrize("begun", [True, False])
def test_a_power_cut_that_takes_what_was_drawn_for_a_run_leaves_the_rest_whole(path: Path, begun: bool) -> None:
    """What a run draws of its own budget is not waited for. Nobody spends from that budget again; its calls are in the journal, if that
    got on the disk, also where the run itself did not.
    """
    killed_in_the_middle(path, calls=50, flying=7, chain=["exec-1"])
    for end in ("", "-wal"):
        path.with_name(f"{path.name}.before{end}").replace(path.with_name(path.name + end))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    of_another_boot(path)
    if not begun:
        database = sqlite3.connect(path)
        with database:
            database.execute("DELETE FROM budgets WHERE id = 'exec-1'")
            database.execute("DELETE FROM workflow_executions")
        database.close()
    store = open_store(path)
    states = store.read("calls")["state"]
    assert (states.count("SETTLED"), states.count("UNCONFIRMED")) == (50, 7)
    if begun:
        assert (store.budget("exec-1").spent_nano, store.budget("exec-1").held_nano) == (270, 0)
        assert store.execution("exec-1").cost_nano == 270
    assert sum(store.aggregate("model")["cost_nano"]) == 270
    assert (store.budget("team").spent_nano, store.budget("team").held_nano) == (0, 0)
    store.close()


def in_rows(store: Store) -> int:
    return sum(cost or 0 for cost in store.read("calls")["cost_nano"])


def lost(store: Store) -> list[Any]:
    return [lease for lease in store.leases() if lease.budget_id == "team"]


@pytest.mark.parametrize("end", [b"\x10\0\0\0", b"\x10\0\0\0\1\2\3\4half of it", b"\0" * 500])
def test_a_note_that_was_not_written_whole_costs_no_other_call_its_record(path: Path, end: bytes) -> None:
    killed_in_the_middle(path, calls=20, flying=0)
    (notes,) = path.parent.glob("*.calls")
    with notes.open("ab") as file:
        file.write(end)
    store = open_store(path)
    assert store.read("calls")["state"].count("SETTLED") == 20
    assert (store.budget("team").spent_nano, store.budget("team").held_nano) == (80, 0)
    store.close()


def test_a_journal_grows_begins_again_and_is_renewed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x")
    many = [["held", number, "x" * 1000] for number in range(1500)]
    for note in many:
        journal.note(note)
    assert list(read(journal.path)) == many and journal.long
    journal.renew(many[-2:])
    assert list(read(journal.path)) == many[-2:] and not journal.long
    journal.restart()
    assert list(read(journal.path)) == []
    journal.note(["over", 1, "y"])  # where longer notes have been
    assert list(read(journal.path)) == [["over", 1, "y"]]
    journal.remove()


def test_a_full_disk_is_an_error_at_once_and_the_notes_before_it_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "x")
    journal.note(["held", 1])

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.note(["x" * 100_000])
    assert list(read(journal.path)) == [["held", 1]]
    journal.remove()


class Text(str):
    __slots__ = ()


def test_text_of_a_class_of_its_own_is_noted_like_any_other(path: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x")
    journal.note(["held", 1, Text("gpt-4o"), 2**70, None, 0.5, True])
    assert list(read(journal.path)) == [["held", 1, "gpt-4o", 2**70, None, 0.5, True]]
    journal.remove()


@pytest.mark.parametrize("odd", ["a key", "a circle", "a class", "not a number"])
def test_a_record_of_any_shape_is_noted_and_booked(store: Store, odd: str) -> None:
    circle: list[Any] = []
    circle.append(circle)
    metas: dict[str, dict[Any, Any]] = {"a key": {("a", 1): 1}, "a circle": {"c": circle}, "a class": {Text("x"): {1, 2}}}
    call = a_call(budget_id="cell", holder=this_holder())
    mine = purse(store)
    with mine._booking:  # nothing is booked meanwhile
        store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
        store.finish(settled(call, 4, meta=metas.get(odd, {"x": float("nan")})))
        assert mine._journal is not None
        over = [note for note in read(mine._journal.path) if note and note[0] == "over"]
    assert len(over) == 1
    entry = store.call(call.id)
    assert entry is not None
    assert entry.call.cost_nano == 4


def test_a_store_that_was_dropped_without_a_word_is_closed_by_the_next(store: Store, path: Path) -> None:
    other = open_store(path)
    call_again_and_again(other, 30)
    other._db.purse.closed = True  # type: ignore[union-attr]  # forgotten: its beat ends, and nobody books for it
    assert store.budget("team").spent_nano == 120
    assert store.budget("team").held_nano == 0


def test_money_that_lies_idle_in_another_process_comes_when_it_is_needed(path: Path, store: Store) -> None:
    body = """
        import sys, time
        from tests.unit.store.test_purse import call_again_and_again
        from wflo_nb.store import open_store
        store = open_store(sys.argv[1])
        call_again_and_again(store, 40)
        print("ready", flush=True)
        sys.stdin.readline()
        store.close()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body), path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdin is not None
    try:
        assert other.stdout.readline() == "ready\n"
        call = a_call(budget_id="cell", holder=this_holder())
        rest = CAP - 40 * 4
        assert store.reserve(call, CHAIN, lo_nano=rest, hi_nano=rest) == rest
    finally:
        other.stdin.write("\n")
        other.stdin.close()
        other.wait(20)
    assert other.returncode == 0


def test_a_child_that_is_forked_has_nothing_of_its_parents_purse(store: Store, path: Path) -> None:
    call_again_and_again(store, 10)
    flying = a_call(budget_id="cell", holder=this_holder())
    store.reserve(flying, CHAIN, lo_nano=10, hi_nano=10)
    pid = os.fork()
    if pid == 0:
        try:
            call_again_and_again(store, 10)
            store.write_out()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    store.finish(settled(flying, 5))
    assert store.budget("team").spent_nano == 20 * 4 + 5
    assert store.budget("team").held_nano == 0
    assert set(store.read("calls")["state"]) == {CallState.SETTLED.value}


def test_nothing_is_left_beside_the_file_when_a_store_is_closed(store: Store, path: Path) -> None:
    call_again_and_again(store, 20)
    assert list(path.parent.glob("*.calls"))
    store.close()
    assert not list(path.parent.glob("*.calls"))
    assert in_the_tables(path, "SELECT count(*) FROM wflo_meta WHERE key LIKE 'purse:%'") == [(0,)]


def test_an_end_that_an_interrupt_had_taken_down_twice_is_booked_once(store: Store, path: Path) -> None:
    class Interrupted(dict[str, Any]):
        def __delitem__(self, key: str) -> None:
            raise KeyboardInterrupt

    mine = purse(store)
    call_again_and_again(store, 2)
    call = a_call(budget_id="cell", holder=this_holder())
    store.reserve(call, CHAIN, lo_nano=10, hi_nano=10)
    with mine._booking:  # nothing is booked meanwhile
        flights, mine._flights = mine._flights, Interrupted(mine._flights)
        with pytest.raises(KeyboardInterrupt):
            store.finish(settled(call, 4))
        mine._flights = flights
        store.finish(settled(call, 4))
        call_again_and_again(store, 2)
    assert store.budget("team").spent_nano == 5 * 4
    assert held(path) == 0
    assert store.read("calls")["state"] == [CallState.SETTLED.value] * 5


def test_a_call_that_is_made_just_as_a_beat_begins_keeps_no_later_one_waiting(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_without_a_budget() -> None:
        call = a_call(holder=this_holder())
        store.reserve(call, [], lo_nano=10, hi_nano=10)
        store.finish(settled(call, 4))

    def booked(calls: int) -> None:
        until = time.monotonic() + 10
        while in_the_tables(path, "SELECT count(*) FROM llm_calls") != [(calls,)]:
            assert time.monotonic() < until, "nobody books what is over"
            time.sleep(0.02)

    awake, late = purse(store)._awake, iter([call_without_a_budget])
    clear = awake.clear
    monkeypatch.setattr(awake, "clear", lambda: (next(late, lambda: None)(), clear()))  # made between the first steps of a beat
    call_without_a_budget()
    booked(2)
    call_without_a_budget()
    booked(3)


def test_who_looks_just_as_a_beat_takes_back_what_is_idle_finds_it_given_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wflo_nb.store.purse.BEAT", 3600.0)
    with contextlib.closing(open_store(path)) as store:
        store.open_budget(a_budget("team", CAP))
        store.open_budget(a_budget("cell", None, "team"))
        mine = purse(store)
        call_again_and_again(store, 5)
        mine.write_out(give=False)
        assert held(path) > 0
        lock, before = mine._lock, iter([lambda: mine._return(mine._rooms.values())])

        class Contended:
            """Where somebody else was quicker, the first time."""

            def __enter__(self) -> None:
                lock.acquire()
                next(before, lambda: None)()

            def __exit__(self, *_: object) -> None:
                lock.release()

        monkeypatch.setattr(mine, "_lock", Contended())
        assert store.budget("team").held_nano == 0


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_hold_that_could_not_be_noted_goes_back(path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """Also where it used up the room to the last cent, and the purse ends right after it."""
    store = open_store(path)
    store.open_budget(a_budget("team", 100_000))
    purse = store._db.purse
    assert purse is not None

    def one(reserve: Any) -> None:
        call = a_call(budget_id="team")
        assert reserve(call, ["team"], lo_nano=100, hi_nano=100) == 100
        store.finish(settled(call, 100))

    for _ in range(2):
        one(store.reserve)
    while purse._rooms[("team",)].nano > 100:
        one(store.reserve_now)
    purse.write_out(give=False)
    note = Journal.note

    def fails_once(self: Journal, values: list[Any]) -> None:
        monkeypatch.setattr(Journal, "note", note)
        raise fault

    monkeypatch.setattr(Journal, "note", fails_once)
    call = a_call(budget_id="team")
    with contextlib.suppress(KeyboardInterrupt):
        store.reserve(call, ["team"], lo_nano=100, hi_nano=100)
    store.finish(replace(call, state=CallState.RELEASED, cost_nano=0))
    store.close()
    again = open_store(path)
    assert again.budget("team").held_nano == 0
    again.close()
