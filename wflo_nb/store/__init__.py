"""What is kept and where: executions, calls, budgets, snapshots; SQLite on this machine or PostgreSQL for a team.

    store = open_store()                       # the embedded default, in the user's state directory
    store = open_store("runs/wflo.db")         # a file
    store = open_store("postgresql://…")       # a server that many kernels share

Importing this package loads no SQLAlchemy and no driver but ``sqlite3``; opening an embedded store that exists already
does not either. Tables are created, and reports read, through SQLAlchemy; calls are written by statements of our own,
because they stand in the path of every model call.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wflo_nb import config
from wflo_nb.config import Settings
from wflo_nb.errors import StoreError, StoreUnavailableError, tell
from wflo_nb.store import holder
from wflo_nb.store.database import Database
from wflo_nb.store.places import DEFAULT_NAME, FilePlace, ServerPlace, place
from wflo_nb.store.records import Chunk, Columns, Elsewhere, Shortfall, SnapshotRow
from wflo_nb.store.store import Store

__all__ = [
    "Chunk",
    "Columns",
    "Elsewhere",
    "Shortfall",
    "SnapshotRow",
    "Store",
    "at",
    "current",
    "here",
    "is_there",
    "open_store",
    "opened",
    "use",
    "warm_up",
]

D = TypeVar("D", bound=Database)

_lock = threading.RLock()
_current: Store | None = None
#: Stores that are open beside the one of this process, by address and team.
_beside: dict[tuple[str, str], Store] = {}


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def open_store(where: str | os.PathLike[str] | None = None, *, settings: Settings | None = None) -> Store:
    """Open a store, creating or migrating its tables when needed, and settle what killed processes left open.

    Args:
        where: a file, a folder, a ``postgresql://`` URL; None for ``WFLO_STORE``, else the user's state directory.
        settings: instead of those of the environment.

    Raises:
        ConfigurationError: `where` is neither a path nor a supported URL.
        StoreUnavailableError: missing, read-only, full, unreachable, or not a database.
        SchemaVersionError: written by a newer version of this package.
        MissingDependencyError: PostgreSQL without its driver.
    """
    settings = settings or config.load()
    where = where if where is not None else settings.store
    at = FilePlace(here(settings)) if where is None else place(where)
    if isinstance(at, ServerPlace):
        return _open_server(at.url, settings)
    from wflo_nb.store.sqlite import SQLite

    return _ready(SQLite(at.path, settings.team, purse=True), Store)


def _ready(database: D, make: Callable[[D], Store]) -> Store:
    try:
        database.prepare()
        store = make(database)
        store.sweep(holder.is_dead)
    except BaseException:
        with contextlib.suppress(StoreError):
            database.close()
        raise
    return store


def _open_server(url: str, settings: Settings) -> Store:
    from wflo_nb.store.postgres import Postgres

    server = Postgres(url, settings.team)
    if settings.offline == "refuse":
        return _ready(server, Store)
    from wflo_nb.store.leased import LeasedStore

    folder = _state_folder(settings) / "spools"
    if not LeasedStore.has_spool(folder, url, settings.team):
        return _ready(server, lambda database: LeasedStore(database, folder, url))
    try:
        return _ready(server, lambda database: LeasedStore(database, folder, url))
    except StoreUnavailableError as error:
        # This machine knows the server, so the address is right: work that costs nothing, or is paid from a lease, goes on.
        tell(f"{error} Calls are recorded on this machine until it is back; under a budget only what was leased before can be spent.")
        return LeasedStore(Postgres(url, settings.team), folder, url)


def here(settings: Settings | None = None) -> Path:
    """Where the embedded store of this user on this machine is, whatever ``WFLO_STORE`` names.

    Raises:
        StoreUnavailableError: its folder cannot be made.
    """
    return _state_folder(settings or config.load()) / DEFAULT_NAME


def _state_folder(settings: Settings) -> Path:
    try:
        return config.state_dir(settings)
    except OSError as error:
        raise StoreUnavailableError(
            f"The folder {error.filename} for the store cannot be made ({error.strerror}). Choose another place with WFLO_STATE_DIR or "
            "`%wflo connect PATH`."
        ) from None


def opened() -> Store | None:
    """The store of this process if it is open already."""
    return _current


def is_there(where: str | os.PathLike[str]) -> bool:
    """Whether a file is a store of ours, as far as can be told without opening it for writing. True of any server.

    Raises:
        WfloError: `where` is neither a path nor a URL of a database that is supported.
    """
    if "://" not in os.fspath(where) and not Path(where).expanduser().exists():  # before a folder is made for it
        return False
    spot = place(where)
    if isinstance(spot, ServerPlace):
        return True
    if not spot.path.is_file():
        return False
    import sqlite3

    try:
        with contextlib.closing(sqlite3.connect(f"{spot.path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'wflo_meta'").fetchone() is not None
    except sqlite3.Error:  # opening it says what is wrong
        return True


def at(where: str | os.PathLike[str], *, settings: Settings | None = None) -> Store:
    """The store there, opened once in this process and kept open: who works with it again finds what it has set aside.

    Raises:
        WfloError: as `open_store` does.
    """
    settings = settings or config.load()
    spot = place(where)
    address = str(spot.path) if isinstance(spot, FilePlace) else spot.url
    key = (address, settings.team)
    with _lock:
        there = isinstance(spot, ServerPlace) or spot.path.exists()  # a file that is gone is another store's when it comes again
        for known in (_current, _beside.get(key)):
            if known is not None and (known.address, known.team) == key and there:
                return known
        if (gone := _beside.pop(key, None)) is not None:
            with contextlib.suppress(StoreError):
                gone.close()
        _beside[key] = store = open_store(where, settings=settings)
        return store


def current() -> Store:
    """The store of this process; the default is opened the first time."""
    global _current
    with _lock:
        if _current is None:
            _current = open_store()
        return _current


def use(store: Store | str | os.PathLike[str]) -> Store:
    """Make a store the one of this process. The old one stays usable for calls that are under way, and keeps nothing open."""
    global _current
    fresh = store if isinstance(store, Store) else open_store(store)
    with _lock:
        old, _current = _current, fresh
    if old is not None and old is not fresh:
        with contextlib.suppress(StoreError):
            old.retire()
    return fresh


def warm_up() -> None:
    """Import what the first report and a new store need, in the background."""

    def load() -> None:
        with contextlib.suppress(Exception):  # whoever needs it will meet the same fault, and can say so
            import wflo_nb.store.reading  # noqa: F401

            if (config.load().store or "").startswith("postgres"):
                import psycopg  # noqa: F401

    threading.Thread(target=load, name="wflo_nb-warm-up", daemon=True).start()


@atexit.register
def _close() -> None:
    if _current is not None:
        with contextlib.suppress(StoreError):
            _current.close()
