"""The purses of this process, and what is due before somebody reads or writes a file: what they know is booked, and those that killed
processes left are closed.
"""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from typing import TYPE_CHECKING

from wflo_nb.errors import StoreUnavailableError
from wflo_nb.store import booking, holder, others

if TYPE_CHECKING:
    from wflo_nb.store.purse import Purse
    from wflo_nb.store.sqlite import SQLite

_log = logging.getLogger(__name__)

#: Seconds that somebody waits, at most, for what lies in other purses.
PATIENCE = 2.0
#: Seconds between two looks meanwhile.
_LOOK = 0.05

_purses: weakref.WeakSet[Purse] = weakref.WeakSet()
#: Those that have something to book: kept alive until it is booked.
busy: set[Purse] = set()


def register(purse: Purse) -> None:
    """A purse was made."""
    _purses.add(purse)


def settle(db: SQLite) -> None:
    """Before somebody reads `db`: book what purses of this process have for that file, and close those that killed processes left."""
    write_out(db)
    mine = {booking.key_of(purse.id) for purse in _mine(db)}
    listed = [row for row in others.purses(db) if row[0] not in mine]
    for id, listing in others.left_behind(listed, _is_dead) if listed else ():
        others.close(db, id, listing, killed=not _is_ours(id))


def catch_up(db: SQLite) -> None:
    """Before somebody asks what other processes did: wait, for `PATIENCE` at most, until what they knew by now is booked."""
    mine = {booking.key_of(purse.id) for purse in _mine(db)}
    settle(db)
    wanted = others.behind(db, mine)
    until = time.monotonic() + PATIENCE
    while wanted and time.monotonic() < until:
        time.sleep(_LOOK)
        settle(db)  # one that was killed meanwhile
        booked = others.booked(db)
        wanted = {key: number for key, number in wanted.items() if booked.get(key, number) < number}


def write_out(db: SQLite, but: Purse | None = None) -> None:
    """Book what purses of this process have for the file of `db`, `but` for one. If that cannot be, they keep it, and whoever asked will
    see why.
    """
    for purse in _mine(db):
        try:
            if purse is not but:
                purse.write_out()
        except StoreUnavailableError:
            _log.info("calls that are over could not be entered in %s yet", db.location, exc_info=True)


def _is_ours(id: str) -> bool:
    return id.rpartition("|")[0] == holder.this_holder()


def _is_dead(id: str) -> bool:
    """Whether a purse is nobody's any more: its process is over, or has forgotten it."""
    if _is_ours(id):
        return id not in {p.id for p in list(_purses) if not p.closed}
    return holder.is_dead(id.rpartition("|")[0])


def _mine(db: SQLite) -> list[Purse]:
    return [p for p in list(_purses) if p._db.location == db.location and not p.closed]


@atexit.register
def _close_all() -> None:
    for purse in list(_purses):
        purse.close()
