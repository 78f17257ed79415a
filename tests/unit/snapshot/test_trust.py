"""Nothing is unpickled that this user did not sign, and nothing that is not what was written."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wflo_nb.errors import ChunkCorruptedError, ConfigurationError, SignatureError, SnapshotError
from wflo_nb.model import now
from wflo_nb.snapshot import chunks, signing
from wflo_nb.snapshot.engine import SnapshotEngine
from wflo_nb.snapshot.manifest import Manifest
from wflo_nb.store import Store
from wflo_nb.store.records import Chunk, SnapshotRow

KEY = b"k" * 32


class Dangerous:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("import builtins; builtins.wflo_test_was_run = True",)


@pytest.fixture(autouse=True)
def never_run() -> Any:
    import builtins

    yield
    assert not hasattr(builtins, "wflo_test_was_run")


def put(store: Store, row: SnapshotRow, **changes: Any) -> str:
    changed = replace(row, **{"id": "snap-ffffffffffffffffffff", "step_id": "planted", "created_at": now(), **changes})
    store.put_snapshot(changed)
    return changed.id


def test_a_checkpoint_of_another_author_is_refused_before_it_runs(store: Store, ns: dict[str, Any]) -> None:
    ns["x"] = Dangerous()
    SnapshotEngine(store, ns, key=KEY).take("theirs")
    mine = SnapshotEngine(store, {"y": 1})
    with pytest.raises(SignatureError, match=r"'theirs'.*another key.*none of it was loaded.*WFLO_SNAPSHOT_KEY"):
        mine.restore("theirs")
    for attempt in (mine.plan, mine.diff):
        with pytest.raises(SignatureError):
            attempt("theirs")
    assert [(c.label, c.trusted) for c in mine.list()] == [("theirs", False)]


def test_a_shared_key_makes_it_trusted(store: Store, ns: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFLO_SNAPSHOT_KEY", "a key that a team shares")
    ns["x"] = 1
    SnapshotEngine(store, ns).take("theirs")
    other: dict[str, Any] = {}
    SnapshotEngine(store, other, key=b"a key that a team shares").restore("theirs")
    assert other == {"x": 1}


def test_own_checkpoints_stay_trusted_when_a_shared_key_is_set(store: Store, ns: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ns["x"] = 1
    SnapshotEngine(store, ns).take("mine")
    monkeypatch.setenv("WFLO_SNAPSHOT_KEY", "a key that a team shares")
    ns["x"] = 2
    SnapshotEngine(store, ns).restore("mine")
    assert ns["x"] == 1


@pytest.mark.parametrize("changes", [{"signature": b""}, {"signature": b"\0" * 32}, {"manifest": b"{}"}])
def test_an_unsigned_or_changed_description_is_refused(
    store: Store, ns: dict[str, Any], engine: SnapshotEngine, changes: dict[str, Any]
) -> None:
    ns["x"] = Dangerous()
    row = store.snapshot("default", engine.take("start").id)
    planted = put(store, row, **changes)
    with pytest.raises(SignatureError):
        engine.restore(planted)


@pytest.mark.parametrize("changes", [{}, {"step_id": "start"}, {"id": "snap-eeeeeeeeeeeeeeeeeeee", "scope": "other", "step_id": "start"}])
def test_the_description_of_another_checkpoint_is_refused(
    store: Store, ns: dict[str, Any], engine: SnapshotEngine, changes: dict[str, Any]
) -> None:
    ns["x"] = Dangerous()
    row = store.snapshot("default", engine.take("start").id)
    planted = put(store, row, **changes)
    reader = SnapshotEngine(store, {}, scope=changes.get("scope", "default"))
    with pytest.raises(SignatureError, match="description of another one"):
        reader.restore(planted)


def corrupt(monkeypatch: pytest.MonkeyPatch, store: Store, victim: bytes, change: Callable[[Chunk], Chunk | None]) -> None:
    """A store that gives one chunk back differently."""
    honest = store.get_chunks

    def get(digests: Any) -> dict[bytes, Chunk]:
        found = honest(digests)
        if victim in found:
            changed = change(found.pop(victim))
            if changed is None:
                raise ChunkCorruptedError("1 of 1 stored chunks are missing.")
            found[victim] = changed
        return found

    monkeypatch.setattr(store, "get_chunks", get)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: None,
        lambda c: replace(c, data=c.data[:-1] + bytes([c.data[-1] ^ 1])),
        lambda c: replace(c, data=c.data[: len(c.data) // 2]),
        lambda c: replace(c, data=b""),
        lambda c: replace(c, codec="zstd" if c.codec == "raw" else "raw"),
        lambda c: replace(c, codec="magic"),
    ],
    ids=["missing", "one bit", "cut short", "empty", "wrong codec", "unknown codec"],
)
@pytest.mark.parametrize("value", [list(range(5000)), os.urandom(5000)], ids=["compressed", "raw"])
def test_a_damaged_chunk_names_its_variable_and_what_can_still_be_restored(
    store: Store,
    ns: dict[str, Any],
    engine: SnapshotEngine,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Chunk], Chunk | None],
    value: Any,
) -> None:
    ns.update(bad=value, good=[1], fine=[2])
    ns["alias"] = [ns["bad"]] if isinstance(value, list) else None
    manifest = Manifest.from_bytes(store.snapshot("default", engine.take("start").id).manifest)
    victim = next(c for c in manifest.components if "bad" in c.names)
    ns.update(bad=1, good=1, fine=1, later=1)
    corrupt(monkeypatch, store, victim.stream.digests[0], change)
    with pytest.raises(ChunkCorruptedError, match=r"bad.* of checkpoint 'start'.*Nothing was changed.*without=\[") as caught:
        engine.restore("start")
    assert "good" not in str(caught.value).split("cannot be restored")[0]
    assert f"`%wflo rollback {manifest.id} without=" in str(caught.value)
    assert (ns["bad"], ns["good"], ns["later"]) == (1, 1, 1)
    engine.restore("start", without=["bad"])
    assert (ns["bad"], ns["good"], ns["fine"]) == (1, [1], [2]) and "later" not in ns


def test_real_damage_in_the_store_is_found(tmp_path: Path, ns: dict[str, Any]) -> None:
    from wflo_nb.store import open_store

    store = open_store(tmp_path / "d" / "s.db") if (tmp_path / "d").mkdir() is None else None
    assert store is not None
    engine = SnapshotEngine(store, ns)
    ns["x"] = os.urandom(2_000_000)
    engine.take("start")
    wanted = ns["x"][700_000:700_040]
    hit = [p for p in (tmp_path / "d").rglob("*") if p.is_file() and wanted in p.read_bytes()]
    store.close()
    assert hit
    for path in hit:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(wanted, bytes(40)))
    ns["x"] = None
    with pytest.raises(ChunkCorruptedError, match="x of checkpoint 'start'"):
        SnapshotEngine(tmp_path / "d" / "s.db", ns).restore("start")


def test_a_swapped_chunk_is_not_taken_for_the_other(
    store: Store, ns: dict[str, Any], engine: SnapshotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns.update(a=[1], b=[2])
    manifest = Manifest.from_bytes(store.snapshot("default", engine.take("start").id).manifest)
    one, two = (c.stream.digests[0] for c in manifest.components)
    other = store.get_chunks([two])[two]
    corrupt(monkeypatch, store, one, lambda _: other)
    ns["a"] = 0
    with pytest.raises(ChunkCorruptedError):
        engine.restore("start")


def test_the_key_file_is_the_owners_alone_and_made_once(state_dir: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        keys = {tuple(k) for k in pool.map(lambda _: signing.Signer().keys(), range(16))}
    assert len(keys) == 1
    path = state_dir / signing.KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in state_dir.iterdir()] == [signing.KEY_FILE]
    path.chmod(0o644)
    signing.Signer().keys()
    assert path.stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_agree_on_the_key(state_dir: Path) -> None:
    source = "from wflo_nb.snapshot.signing import Signer; print(Signer().keys()[0].decode())"
    running = [subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) for _ in range(5)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1


def test_bad_keys_are_refused_with_what_to_do(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="at least 16"):
        signing.Signer(b"short")
    monkeypatch.setenv("WFLO_SNAPSHOT_KEY", "short")
    with pytest.raises(ConfigurationError, match="openssl rand"):
        signing.Signer().keys()
    monkeypatch.delenv("WFLO_SNAPSHOT_KEY")
    state_dir.mkdir()
    (state_dir / signing.KEY_FILE).write_text("x")
    with pytest.raises(ConfigurationError, match="damaged"):
        signing.Signer().keys()


def test_the_key_is_not_in_the_store(ns: dict[str, Any], engine: SnapshotEngine, everything_stored: Callable[[], bytes]) -> None:
    ns["x"] = 1
    engine.take("start")
    assert signing.Signer().keys()[0] not in everything_stored()


def test_values_are_not_in_the_description(store: Store, ns: dict[str, Any], engine: SnapshotEngine) -> None:
    ns.update(x="a-very-telling-value", d={"telling-key": 1})
    manifest = store.snapshot("default", engine.take("start").id).manifest
    assert b"telling" not in manifest and b'"previews"' in manifest
    assert Manifest.from_bytes(manifest).to_bytes() == manifest


def test_descriptions_of_a_newer_version_are_refused(ns: dict[str, Any], store: Store, engine: SnapshotEngine) -> None:
    ns["x"] = 1
    manifest = store.snapshot("default", engine.take("start").id).manifest
    with pytest.raises(SnapshotError, match=r"newer version.*Upgrade"):
        Manifest.from_bytes(manifest.replace(b'"format":1', b'"format":99'))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4095, 4096, chunks.CHUNK - 1, chunks.CHUNK, chunks.CHUNK + 1, 3 * chunks.CHUNK])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_bytes_of_any_size_come_back(store: Store, size: int, kind: str) -> None:
    data = bytes(size) if kind == "zeros" else os.urandom(size)
    cut, found = chunks.cut(data)
    writer = chunks.ChunkWriter(store)
    writer.add(found)
    writer.flush()
    assert chunks.read(store, [cut, cut]) == [bytearray(data)] * 2
    assert chunks.Cut.from_json(cut.to_json()) == cut
    assert writer.written < 500 * (1 + size // chunks.CHUNK) if kind == "zeros" else writer.written == len(b"".join(found.values()))


def test_memory_that_changes_between_hash_and_copy_is_noticed(store: Store) -> None:
    data = bytearray(os.urandom(10_000))
    _, found = chunks.cut(data)
    writer = chunks.ChunkWriter(store)
    writer.add(found)
    data[0] ^= 1
    with pytest.raises(chunks.ChangedWhileSavingError):
        writer.flush()
