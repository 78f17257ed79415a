"""Purses of other processes on a file: what they know that is not booked, and what those leave that are no more.

A purse whose process is no more is closed by whoever looks next: its calls are in its journal, the rest goes back to the budgets.
After a restart of the machine the journal may lack its last lines, so the rest counts as spent and unconfirmed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wflo_nb.model import CallState, now_us
from wflo_nb.store import booking, journal, rows
from wflo_nb.store.booking import Batch, Ended, Flight
from wflo_nb.store.notes import ended_from, flight_from
from wflo_nb.store.places import this_boot

if TYPE_CHECKING:
    from wflo_nb.store.sqlite import SQLite

_KILLED = "the process that made this call ended before its answer was recorded; the whole hold counts as spent"
_PURSES = "SELECT key, value FROM wflo_meta WHERE key >= 'purse:' AND key < 'purse;'"
_THERE = "SELECT 1 FROM llm_calls WHERE team_id = ? AND id = ?"


def purses(db: SQLite) -> list[rows.Row]:
    """All purses that are open on a file."""
    return db.look(_PURSES)


def booked(db: SQLite) -> dict[str, int]:
    """The number of the last note that is booked, by the key of its purse."""
    return {str(key): int(json.loads(value)["booked"]) for key, value in purses(db)}


def behind(db: SQLite, mine: set[str]) -> dict[str, int]:
    """The purses of other processes that know of calls that are over and not booked: key, and the number of the last such note."""
    found = {}
    for key, value in purses(db):
        if key in mine:
            continue
        with contextlib.suppress(OSError, ValueError):
            listing = json.loads(value)
            noted = [int(n[1]) for n in journal.notes(db.path.with_name(str(listing["journal"]))) if n and n[0] == "over"]
            if noted and max(noted) > listing["booked"]:
                found[str(key)] = int(max(noted))
    return found


def left_behind(listed: Iterable[rows.Row], dead: Callable[[str], bool]) -> list[tuple[str, dict[str, Any]]]:
    """Of the purses that are `listed`, those that are nobody's any more: id and listing."""
    found = []
    for key, value in listed:
        purse = str(key).removeprefix("purse:")
        if dead(purse):
            with contextlib.suppress(ValueError):
                found.append((purse, json.loads(value)))
    return found


def close(db: SQLite, purse: str, listing: Mapping[str, Any], *, killed: bool = True) -> int:
    """Enter what a purse has noted down that nobody has any more, and give back, or write off, what it had left. What was under way is in
    doubt if its process was `killed`, and still under way if that has only forgotten the purse. Returns how many calls are in doubt.
    """
    path = db.path.with_name(str(listing["journal"]))
    whole = listing.get("boot") == this_boot()

    def work(cursor: sqlite3.Cursor) -> int:
        booked = booking.last_booked(cursor, purse)
        if booked is None:  # somebody was quicker
            return 0
        ended, lost, readable = _read(db, path, booked)
        at = db.clock(now_us())
        rest = booking.outstanding(cursor, db.team, purse)
        entered = {one for one in (*ended, *lost) if cursor.execute(_THERE, (db.team, one.flight.id)).fetchone()}
        for one in entered:
            one.flight.stored = True  # its hold is a row's own: if it was under way, it is found as any other call of a dead process
        lost = [one for one in lost if one not in entered]
        for one in {*ended, *lost} - entered:
            for id in one.flight.chain:
                rest[id] = rest.get(id, 0) - (min(one.cost or 0, one.flight.held) if one in ended else one.flight.held)
        flights = [] if killed else [(one.flight, booking.row_of(one.flight, db)) for one in lost]
        lost = lost if killed else []
        booking.book(cursor, db, purse, Batch(booking.key_of(purse), (*ended, *lost), flights))
        if not (whole and readable) and not db.spool:  # a spool's lease runs out on its server
            booking.write_off(cursor, db.team, purse, rest, at)
        booking.end(cursor, purse)
        return len(lost)

    swept = db.book(work)
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".new").unlink(missing_ok=True)
    return swept


def _read(db: SQLite, path: Path, booked: int) -> tuple[list[Ended], list[Ended], bool]:
    """The calls in a journal that are not booked: over, and still under way; and whether every line could be read."""
    flights: dict[str, Flight] = {}
    ended: dict[str, Ended] = {}
    readable = True
    try:
        lines = list(journal.notes(path))
    except OSError:
        return [], [], False
    for line in lines:
        try:
            if line is None:  # its process was killed while it wrote this, so nothing followed from it
                break
            if line[0] == "held":
                flight = flight_from(line)
                flights[flight.id] = flight
            else:
                one = ended_from(line, flights)
                ended.setdefault(one.flight.id, one)
        except (TypeError, ValueError, KeyError, IndexError):
            readable = False
    lost = [_unconfirmed(flight, db, _KILLED, 2**62) for id, flight in flights.items() if id not in ended]
    return [one for one in ended.values() if one.number > booked], lost, readable


def _unconfirmed(flight: Flight, db: SQLite, reason: str, number: int) -> Ended:
    """A call of which nobody knows how it ended."""
    row = booking.row_of(flight, db)
    cost = None if not flight.held else flight.held  # nothing held means that no price is known
    row.update(state=CallState.UNCONFIRMED.value, reason=reason, settled_at=db.clock(now_us()), cost_nano=cost)
    return Ended(flight, tuple(row.values()), cost, number)
