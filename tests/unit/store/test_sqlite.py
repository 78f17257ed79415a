"""What is particular to the embedded store: the file, its place, its rules for flushing, a full disk."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.conftest import a_budget, a_call, an_execution, settled, unconfirmed
from tests.contract.test_shelf import a_chunk, a_snapshot
from wflo_nb.config import Settings
from wflo_nb.errors import ChunkCorruptedError, ConfigurationError, StoreUnavailableError, WfloWarning
from wflo_nb.model import CallState, ExecutionStatus
from wflo_nb.store import Shortfall, Store, gate, open_store, places, sqlite
from wflo_nb.store.sqlite import SQLite

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = open_store(path)
    yield opened
    opened.close()


def database(store: Store) -> SQLite:
    assert isinstance(store._db, SQLite)
    return store._db


class TestPlaces:
    def test_the_default_is_in_the_state_folder(self, state_dir: Path) -> None:
        store = open_store()
        assert Path(store.location) == state_dir / "wflo.db" and store.local
        store.close()

    @pytest.mark.parametrize(
        ("given", "file"),
        [
            ("x.db", "x.db"),
            ("x.sqlite", "x.sqlite"),
            ("runs", "runs/wflo.db"),
            ("runs/", "runs/wflo.db"),
            ("old", "old/wflo.db"),
            ("old/x.db", "old/x.db"),
            ("a file", "a file"),
            ("sqlite:///{}/x.db", "x.db"),
            ("v1.2", "v1.2/wflo.db"),
        ],
    )
    def test_a_path_is_a_file_or_a_folder(self, tmp_path: Path, given: str, file: str) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "a file").touch()
        where = given.format(tmp_path) if "{}" in given else f"{tmp_path}/{given}"
        store = open_store(where)
        assert Path(store.location) == tmp_path / file
        store.close()

    def test_a_setting_says_where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WFLO_STORE", str(tmp_path / "here.db"))
        store = open_store()
        assert Path(store.location) == tmp_path / "here.db"
        store.close()

    @pytest.mark.parametrize(
        ("where", "says"), [("mysql://h/d", "mysql://"), ("postgress://h/d", "mean postgres"), ("", "no place"), (":memory:", "no place")]
    )
    def test_what_is_no_place_is_said(self, where: str, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            open_store(where)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailableError, match=r"nowhere does not exist.*%wflo connect"):
            open_store(tmp_path / "nowhere" / "x.db")

    def test_a_state_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreUnavailableError, match=r"file.*WFLO_STATE_DIR"):
            open_store(settings=Settings(state_dir=tmp_path / "file" / "state"))

    def test_a_file_of_another_kind_is_left_as_it_is(self, path: Path) -> None:
        path.write_bytes(b"These are my notes, and no database at all." * 100)
        before = path.read_bytes()
        with pytest.raises(StoreUnavailableError, match="not an SQLite database"):
            open_store(path)
        assert path.read_bytes() == before

    def test_an_empty_file_becomes_a_store(self, path: Path) -> None:
        path.touch()
        open_store(path).close()

    def test_a_damaged_store_says_so(self, path: Path) -> None:
        store = open_store(path)
        for _ in range(200):
            store.record(a_call(state=CallState.REFUSED))
        store.close()
        data = bytearray(path.read_bytes())
        data[4096 * 2 :] = os.urandom(len(data) - 4096 * 2)
        path.write_bytes(data)
        with pytest.raises(StoreUnavailableError, match="damaged"):
            open_store(path).read("calls")

    @pytest.mark.parametrize("what", ["folder", "file"])
    def test_a_place_that_is_read_only_is_named(self, tmp_path: Path, what: str) -> None:
        """As an ordinary user: root may write anywhere."""
        folder = tmp_path / "locked"
        folder.mkdir()
        if what == "file":
            open_store(folder / "store.db").close()
            for file in folder.iterdir():
                file.chmod(0o444)
        folder.chmod(0o555)
        body = """
            import os, sys
            import wflo_nb.store.sqlite  # before the change of user, who may not read where Python is
            from wflo_nb.errors import StoreUnavailableError
            from wflo_nb.store import open_store
            if os.geteuid() == 0:
                os.setgroups([]); os.setgid(65534); os.setuid(65534)
            try:
                open_store(sys.argv[1])
            except StoreUnavailableError as error:
                print(error)
        """
        for parent in folder.parents:  # pytest's own folders are closed to others
            if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
                parent.chmod(0o755)
        told = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(body), folder / "store.db"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        folder.chmod(0o755)
        assert "locked/store.db cannot be written" in told and "read-only" in told and "%wflo connect" in told and "WFLO_STORE" in told

    def test_network_file_systems_are_known_by_their_mounts(self) -> None:
        mounts = (
            "/dev/sda1 / ext4 rw 0 0\nsrv:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/me/fast ext4 rw 0 0\nx /mnt/s\\040p fuse.sshfs rw 0 0\n"
        )
        kinds = {
            p: places.network_filesystem(Path(p), mounts) for p in ("/tmp/x", "/home/me/x", "/home/me/fast/x", "/mnt/s p/x", "/homework/x")
        }
        assert kinds == {"/tmp/x": None, "/home/me/x": "nfs4", "/home/me/fast/x": None, "/mnt/s p/x": "fuse.sshfs", "/homework/x": None}

    def test_a_network_file_system_is_warned_about_and_used_without_shared_memory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite, "network_filesystem", lambda _: "nfs4")
        with pytest.warns(WfloWarning, match=r"network file system \(nfs4\).*PostgreSQL"):
            store = open_store(path)
        assert database(store).select("PRAGMA journal_mode", {}) == [("delete",)]
        store.open_budget(a_budget())
        assert store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=5) == 5
        store.close()


class TestFlushing:
    def test_everything_is_waited_for_but_what_the_next_thing_that_is_waited_for_brings(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, int] = {}
        doing: list[str] = []
        real = sqlite.Handle.transact

        def spy(self: sqlite.Handle, work: object, durable: bool) -> object:
            def watched(cursor: sqlite3.Cursor) -> object:
                seen[doing[-1]] = cursor.execute("PRAGMA synchronous").fetchone()[0]
                return work(cursor)  # type: ignore[operator]

            return real(self, watched, durable)

        monkeypatch.setattr(sqlite.Handle, "transact", spy)
        call, chunk = a_call(), a_chunk()
        for verb, act in {
            "open": lambda: store.open_budget(a_budget()),
            "open a run's": lambda: store.open_budget(a_budget("exec-1")),
            "open a shared one": lambda: store.open_budget(replace(a_budget("team:x"), name="x")),
            "reserve": lambda: store.reserve(call, ["cell"], lo_nano=1, hi_nano=5),
            "finish": lambda: store.finish(unconfirmed(call)),
            "write out": store.write_out,
            "reserve in a run": lambda: store.reserve(a_call(), ["exec-1"], lo_nano=1, hi_nano=5),
            "reserve again": lambda: store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=5),
            "record": lambda: store.record(a_call(state=CallState.REFUSED)),
            "begin": lambda: store.begin_execution(an_execution(), holder="h"),
            "end": lambda: store.end_execution("exec-1", ExecutionStatus.COMPLETED),
            "chunks": lambda: store.put_chunks([chunk]),
            "snapshot": lambda: store.put_snapshot(a_snapshot(chunk.digest)),
        }.items():
            doing.append(verb)
            act()
        full, later = 2, 1
        waits = dict.fromkeys((verb for verb in doing if verb != "finish"), full)
        assert seen == {**waits, **dict.fromkeys(("open", "open a run's", "write out", "begin", "end", "reserve in a run"), later)}
        assert database(store).select("PRAGMA journal_mode", {}) == [("wal",)]

    def test_what_was_not_waited_for_is_on_the_disk_when_it_is_asked_for_and_when_nothing_goes_on(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        waited = threading.Event()
        real = os.fsync

        def fsync(fd: int) -> None:
            synced.append(fd)
            real(fd)
            waited.set()

        store.open_budget(a_budget())
        monkeypatch.setattr(os, "fsync", fsync)
        for how in (store.write_out, lambda: waited.wait(30)):
            waited.clear()
            synced.clear()
            call = a_call()
            store.reserve(call, ["cell"], lo_nano=1, hi_nano=5)
            store.finish(unconfirmed(call))
            how()
            assert len(synced) == 1

    def test_files_are_for_their_owner_only(self, store: Store, path: Path) -> None:
        store.put_chunks([a_chunk(100_000)])
        kept = list(path.parent.glob("store.db*")) + list((path.parent / "store.db.packs").iterdir())
        assert {p.name for p in kept} >= {"store.db", "store.db-wal", "store.db.gate", "store.db.packs", "store.db.spare"}
        assert [p.name for p in kept if p.stat().st_mode & 0o077] == []


class TestGate:
    def test_writers_wait_for_it_and_readers_do_not(self, store: Store, path: Path) -> None:
        store.open_budget(a_budget())
        fd = gate.open_gate(f"{path}.gate")
        gate.lock(fd)
        held: list[int | Shortfall] = []
        writer = threading.Thread(target=lambda: held.append(store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=5)))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and held == []
        assert store.budget("cell").held_nano == 0
        gate.unlock(fd)
        os.close(fd)
        writer.join(10)
        assert held == [5]

    def test_process_that_was_stopped_inside_it_is_told_and_waited_for_no_longer(
        self, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.open_budget(a_budget())
        holds = "import fcntl, os, signal, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); os.kill(os.getpid(), signal.SIGSTOP)"
        other = subprocess.Popen([sys.executable, "-c", holds, f"{path}.gate"])
        os.waitid(os.P_PID, other.pid, os.WSTOPPED)
        told: list[str] = []

        def ask() -> None:
            for _ in range(3):
                with pytest.raises(StoreUnavailableError) as caught:
                    store.reserve(a_call(), ["cell"], lo_nano=1, hi_nano=1)
                told.append(str(caught.value))

        with monkeypatch.context() as patched:
            patched.setattr(gate, "PATIENCE", 0.5)
            threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            child = os.fork()  # has copies of the descriptors that are still waited with
            if child == 0:
                time.sleep(60)
                os._exit(0)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        try:
            assert len(told) == 9 and all(f"{path}.gate" in words and "Was that process stopped" in words for words in told)
            assert store.reserve(a_call(), ["cell"], lo_nano=5, hi_nano=5) == 5, "it is open again"
            assert store.budget("cell").held_nano == 5
            fd = gate.open_gate(f"{path}.gate")
            gate.lock(fd)  # nobody who gave up has kept it
            os.close(fd)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_all_who_wait_get_their_turn(self, path: Path) -> None:
        """Of several processes that write without a pause, none is kept out by the others."""
        writes = """
import sys, time
from wflo_nb.store import gate
door, done = gate.Door(sys.argv[1]), 0
print("ready", flush=True)
until = float(sys.stdin.readline())
while time.time() < until:
    door.lock()
    time.sleep(0.001)
    door.unlock()
    done += 1
print(done)
"""
        command = [sys.executable, "-c", writes, f"{path}.gate"]
        writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        until = f"{time.time() + 2}\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(until)
            writer.stdin.flush()
        done = [int(writer.communicate(timeout=60)[0]) for writer in writers]
        assert max(done) < 10 * min(done), done

    def test_is_open_again_after_a_transaction_that_failed(self, store: Store, path: Path) -> None:
        def fail(_: sqlite3.Cursor) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database(store).transact(fail)
        other = open_store(path)
        other.open_budget(a_budget())
        other.close()

    def test_a_child_that_outlives_its_parents_transaction_does_not_keep_it_shut(self, store: Store, path: Path) -> None:
        """A fork in the middle of another thread's transaction copies the descriptor that holds the gate."""
        inside, leave = threading.Event(), threading.Event()

        def work(_: sqlite3.Cursor) -> None:
            inside.set()
            leave.wait(20)

        thread = threading.Thread(target=lambda: database(store).transact(work))
        thread.start()
        inside.wait(10)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        try:
            leave.set()
            thread.join(20)
            other = open_store(path)
            other.open_budget(a_budget())
            other.close()
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


class TestFullDisk:
    """The limit is set on the files of a process (RLIMIT_FSIZE) or on the pages of the database: both are met by real failed writes."""

    def test_nothing_recorded_is_lost_and_paid_calls_are_still_recorded(self, tmp_path: Path) -> None:
        """On a real file system of three megabytes where we may mount one; else on one that is just as full by the database's own limit."""
        folder = tmp_path / "small"
        folder.mkdir()
        mounted = (
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False).returncode == 0
        )
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self._fill_and_go_on(folder / "store.db", mounted)
            assert not mounted or any("is full" in str(w.message) for w in told)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", folder], check=True)

    def _fill_and_go_on(self, path: Path, mounted: bool) -> None:
        store = open_store(path)
        store.open_budget(a_budget("cell", None))
        before, flying = [a_call() for _ in range(20)], [a_call() for _ in range(100)]
        for call in before + flying:
            store.reserve(call, ["cell"], lo_nano=9, hi_nano=9)
        for call in before:
            store.finish(settled(call, 4))

        if not mounted:
            for handle in database(store)._all:
                pages = handle.db.execute("PRAGMA page_count").fetchone()[0]
                handle.db.execute(f"PRAGMA max_page_count = {pages}")

        def fill() -> None:
            for _ in range(100_000):
                store.reserve(a_call(reason="x" * 2000), ["cell"], lo_nano=9, hi_nano=9)

        with pytest.raises(StoreUnavailableError, match=r"is full.*Everything recorded before is safe"):
            fill()
        with pytest.raises(StoreUnavailableError, match="is full"):
            store.put_chunks([a_chunk(4 << 20)] if mounted else [a_chunk(60_000)])

        if mounted:  # the spare megabyte is for these
            for call in flying:
                store.finish(settled(call, 5, reason="y" * 2000))
        store.close()
        (path.parent / "store.db.spare").unlink(missing_ok=True)

        again = open_store(path)
        calls = again.read("calls")
        state = dict(zip(calls["id"], calls["state"], strict=True))
        assert all(state[c.id] == "SETTLED" for c in before)
        assert all(state[c.id] == ("SETTLED" if mounted else "RESERVED") for c in flying)
        spent = 20 * 4 + (len(flying) * 5 if mounted else 0)
        assert again.budget("cell").spent_nano == spent
        assert again.budget("cell").held_nano == 9 * list(state.values()).count("RESERVED")
        again.close()

    def test_a_failed_pack_leaves_nothing_behind(self, store: Store, path: Path) -> None:
        body = """
            import resource, sys
            from tests.contract.test_shelf import a_chunk
            from wflo_nb.errors import StoreUnavailableError
            from wflo_nb.store import open_store
            store = open_store(sys.argv[1])
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
            try:
                store.put_chunks([a_chunk(1_500_000), a_chunk(1_500_000)])
            except StoreUnavailableError as error:
                print("told")
        """
        told = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(body), path], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert told == "told\n"
        assert list((path.parent / "store.db.packs").iterdir()) == []
        assert store.stored_bytes() == 0


class TestPacks:
    def test_a_pack_that_is_gone_or_cut_short_is_told(self, store: Store, path: Path) -> None:
        whole, cut = a_chunk(100_000), a_chunk(100_000)
        store.put_chunks([whole, cut])
        (pack,) = (path.parent / "store.db.packs").iterdir()
        with pack.open("r+b") as file:
            file.truncate(150_000)
        with pytest.raises(ChunkCorruptedError, match="1 of 2"):
            store.get_chunks([whole.digest, cut.digest])
        pack.unlink()
        with pytest.raises(ChunkCorruptedError, match="2 of 2"):
            store.get_chunks([whole.digest, cut.digest])

    def test_an_unnamed_pack_goes_when_it_is_old(self, store: Store, path: Path) -> None:
        store.put_chunks([a_chunk(100_000)])
        packs = path.parent / "store.db.packs"
        fresh, old = packs / "fresh.pack", packs / "old.pack"
        for file in (fresh, old):
            file.write_bytes(b"x" * 1000)
        os.utime(old, (0, 0))
        assert store.collect() == 1000
        assert fresh.exists() and not old.exists()


class TestForks:
    def test_no_connection_is_open_while_a_process_forks(self, store: Store) -> None:
        store.open_budget(a_budget())
        db = database(store)
        assert db._all
        pid = os.fork()
        if pid == 0:
            os._exit(0 if not db._all and not db._inherited else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert store.budget("cell").cap_nano == 1000


def test_opening_a_store_that_exists_loads_no_sqlalchemy(store: Store, path: Path) -> None:
    body = """
        import sys
        from tests.contract.conftest import a_budget
        from wflo_nb.store import open_store
        store = open_store(sys.argv[1])
        store.open_budget(a_budget())
        store.close()
        print([m for m in ("sqlalchemy", "pandas", "psycopg") if m in sys.modules])
    """.replace("from tests.contract.conftest import a_budget", "from wflo_nb.model import BudgetState").replace(
        "a_budget()", "BudgetState('b', 'cell', 1)"
    )
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(body), path], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


class _InterruptedAfter:
    """A connection whose caller is interrupted right after one statement."""

    def __init__(self, db: sqlite3.Connection, statement: str) -> None:
        self._db, self._statement = db, statement

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
        done = self._db.execute(sql, *args)
        if sql == self._statement:
            self._statement = ""
            raise KeyboardInterrupt
        return done


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "PRAGMA synchronous=FULL"])
def test_an_interrupt_right_after_a_statement_leaves_a_store_that_works(tmp_path: Path, statement: str) -> None:
    store = SQLite(tmp_path / "ledger.db", "team")
    store.prepare()
    (handle,) = store._idle
    db = handle.db
    handle.db = _InterruptedAfter(db, statement)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        store.transact(lambda cursor: cursor.execute("SELECT 1").fetchone())
    handle.db = db
    assert not db.in_transaction
    assert store.transact(lambda cursor: cursor.execute("SELECT 1").fetchone()) == (1,)
    store.close()


def test_a_transaction_that_an_interrupt_left_open_is_rolled_back_before_the_next(tmp_path: Path) -> None:
    store = SQLite(tmp_path / "ledger.db", "team")
    store.prepare()
    (handle,) = store._idle
    handle.db.execute("BEGIN IMMEDIATE")
    assert store.transact(lambda cursor: cursor.execute("SELECT 1").fetchone()) == (1,)
    store.close()
