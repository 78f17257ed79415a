"""What a process has set aside of its budgets, so that a call need not wait for a file: reserves and ends in a few microseconds.

A process that calls again and again draws money for the next calls too (`wflo_nb.store.booking`), and admits them from memory. What
happens to them is noted in a journal that a killed process leaves behind, and booked in the tables every `BEAT`, many calls in one
transaction; whoever reads through a store of this process books first. So:

* At every instant ``spent + held <= cap`` in the tables: what is in a purse is held there.
* A killed process loses no call that had ended and frees no hold: the next one that looks reads its journal.
* A power cut loses no money: what was set aside of budgets that go on is on the disk, and counts as spent then. The rows of the last
  second may be lost, and with them what a run set aside of its own budget, which nobody spends from any more.
* Others see a call that ended up to a `BEAT` later, one that is under way after `AGE`, and what nobody has needed for `IDLE`, or others
  may need, goes back.

Where this cannot be (no room, a call that shares what is left with others, no journal) the tables are asked, as without a purse.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from wflo_nb.errors import StoreError, StoreUnavailableError
from wflo_nb.model import Call, now_us
from wflo_nb.store import apart, booking, holder, notes, purses, rows
from wflo_nb.store.booking import Batch, Ended, Flight
from wflo_nb.store.journal import Journal
from wflo_nb.store.records import LOCAL, Shortfall

if TYPE_CHECKING:
    import sqlite3

    from wflo_nb.store.sqlite import SQLite

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two bookings while calls are made.
BEAT = 0.2
#: Seconds after which what was booked goes to the disk, also if it goes on; with a beat before and after, a second after it happened. What
#: comes to rest is there at once.
SYNC = 0.6
#: Seconds after which a call that is under way is entered in the tables.
AGE = 0.25
#: Seconds without a call after which a room goes back, and within which a chain counts as busy.
IDLE = 0.5
#: How many calls a room is drawn for at most.
_FARTHEST = 64
#: Calls that are in no table yet, beyond which whoever makes another one books them first.
_MOST_WAITING = 256
#: Ids of ended calls that are kept, at least, to answer a question that is asked again.
_REMEMBERED = 1024


@dataclass(eq=False, slots=True)
class _Room:
    """What is left for one chain of budgets.

    Attributes:
        nano: held in the tables, and by no call yet.
        ahead: for how many calls was drawn the last time.
        used: when a call last asked, by the monotonic clock.
        scarce: others may need it: so little is left in a budget.
    """

    nano: int = 0
    ahead: int = 0
    used: float = 0.0
    scarce: bool = False


class Purse:
    """One process's purse on one file. Thread-safe.

    Attributes:
        id: what its leases are held by: the holder of this process, and a number.
        closed: it answers nothing any more.
    """

    def __init__(self, db: SQLite) -> None:
        self._db = db
        self.closed = False
        self._fresh()
        purses.register(self)

    def _fresh(self) -> None:
        """At the start, and in a forked child: nothing is set aside."""
        global _count
        _count += 1
        self.id = f"{holder.this_holder()}|{_count}"
        self._lock = threading.RLock()  # around memory, for microseconds
        self._booking = threading.RLock()  # around transactions; taken first
        self._rooms: dict[tuple[str, ...], _Room] = {}
        self._flights: dict[str, Flight] = {}
        self._ended: list[Ended] = []
        self._over: dict[str, int] = {}
        self._over_before: dict[str, int] = {}
        self._number = 0
        self._returned = False  # rooms were emptied, and the tables do not know it yet
        self._journal: Journal | None = None
        self._broken = False
        self._beyond = False  # a call cost more than was held for it, and the tables do not know it yet
        self._awake = threading.Event()
        self._stirred = False  # whether `_awake` is set: asking it takes longer
        self._thread: threading.Thread | None = None
        self._unsynced: float | None = None  # since when something is booked and may not be on the disk

    # -- calls -------------------------------------------------------------------------------------------------------------

    def hold(self, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> int | None:
        """Hold money from memory; None if that cannot be done."""
        with self._lock:
            journal = self._journal
            if journal is None or self._broken or self._beyond or self.closed:
                return None
            known = self._flights.get(call.id)
            if known is not None:
                return known.held
            if call.id in self._over or call.id in self._over_before:
                return self._over.get(call.id, self._over_before.get(call.id))
            at = time.monotonic()
            if chain:
                room = self._rooms.get(chain)
                if room is None or room.nano < hi or (lo < hi and share > 1):
                    return None
                room.nano -= hi  # first: an interrupt here leaves too much held, never too little
                room.used = at
            return hi if self._take_off(Flight(call.id, call.execution_id, chain, hi, call, 0, at)) else None

    def _take_off(self, flight: Flight) -> bool:
        """Note a hold and follow its call; False if it could not be noted."""
        self._number = flight.number = self._number + 1
        try:
            if self._journal is not None and not flight.stored:
                self._journal.note(notes.held_note(flight))
        except BaseException as fault:
            self._returned = True  # what it would have held is nobody's, and goes back
            self._touch()
            if not isinstance(fault, OSError):
                raise
            self._broken = True
            return False
        self._flights[flight.id] = flight
        if not self._stirred:
            self._touch()
        return True

    def draw(self, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> int | Shortfall | None:
        """Hold money from the tables, and set some aside; None if this is not a matter for a purse.

        Raises:
            StoreError: see `Store.reserve`.
        """
        if self.closed or not self._ready():
            return None
        got = self._draw(call, chain, lo, hi, share)
        if not isinstance(got, Shortfall):
            return got
        purses.settle(self._db)  # what other purses of this process know, and those of dead ones
        until = time.monotonic() + purses.PATIENCE
        while True:
            got = self._draw(call, chain, lo, hi, share)
            if not isinstance(got, Shortfall) or time.monotonic() >= until or not self._may_come(got):
                return got

    def _ready(self) -> bool:
        """Make sure that there is a journal, which the tables name."""
        with self._booking:
            if self._journal is None and not self._broken:
                try:
                    journal = Journal(self._db.path)
                except OSError as error:  # a folder that is full or closed: then every call asks the tables
                    _log.info("calls cannot be noted beside %s: %s", self._db.location, error)
                    self._broken = True
                    return False
                self._db.book(lambda cursor: booking.begin(cursor, self.id, journal.path))
                self._journal = journal
        return not self._broken

    def _draw(self, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> int | Shortfall | None:
        with self._booking:
            if self._beyond:  # what is left is for the tables to say
                self.write_out()
            elif len(self._ended) + sum(not f.stored for f in self._flights.values()) > _MOST_WAITING:
                self.write_out(give=False)
            held = self.hold(call, chain, lo, hi, share)  # another thread may have drawn enough, and an empty chain asks nobody
            if held is not None or not chain:
                return held
            got = self._ask(call, chain, lo, hi, share)
            if isinstance(got, Shortfall) and self._any():
                self.write_out()  # all that lies idle here comes first
                got = self._ask(call, chain, lo, hi, share)
            return got

    def _ask(self, call: Call, chain: tuple[str, ...], lo: int, hi: int, share: int) -> int | Shortfall | None:
        flight = Flight(call.id, call.execution_id, chain, 0, call)
        lone = all(id.startswith(LOCAL) for id in chain)
        with self._lock:
            room = self._rooms.setdefault(chain, _Room())
            had, room.nano = room.nano, 0
            self._returned = True  # should the end of the transaction stay unknown, the next booking finds what is there
            busy = time.monotonic() - room.used < IDLE and not room.scarce
            if busy or not room.used:  # from budgets that others share step by step: it is they who would have to wait for it
                room.ahead = _FARTHEST if lone else min(_FARTHEST, 8 * room.ahead + 8)
            else:
                room.ahead = 0
            ahead = room.ahead * hi
        got = self._db.book(
            lambda cursor: booking.draw(cursor, self._db, self.id, flight, lo, hi, share, had, ahead),
            must_land=False,
            # After a power cut nobody spends from the budgets of a run, and a spool lends nothing.
            durable=not (self._db.spool or lone),
        )
        self._written()
        with self._lock:
            room.used, room.scarce = time.monotonic(), False
            if not isinstance(got, tuple):  # nothing was moved
                room.nano = had
                return got
            amount, room.nano = got
            flight.since = room.used
            noted = self._take_off(flight)
            if not noted:
                self._flights[call.id] = flight
        if not noted:
            self._enter_instead(flight)
        return amount

    def _enter_instead(self, flight: Flight) -> None:
        """A hold that could not be noted is entered in the tables, or given back.

        Raises:
            StoreError: it could not be entered either.
        """
        try:
            self.write_out(give=False)
        except StoreError:
            with self._lock:
                self._flights.pop(flight.id, None)
                self._returned = True
            raise

    def _may_come(self, short: Shortfall) -> bool:
        """Whether what is short is there by now, or lies in other purses; then it is waited for a little."""
        left, theirs = booking.left_and_lent(self._db, self.id, short.budget.id)
        if left is None or left >= short.needed_nano:
            return True
        if left + theirs < short.needed_nano:
            return False
        purses.settle(self._db)
        time.sleep(BEAT / 4)
        return True

    def finish(self, call: Call, *, at_once: bool = False) -> bool:
        """Take down how a call ended; False if it is not one of this purse's, or (`at_once`) if the tables would have to be waited for.

        Raises:
            StoreError: it is not over, or it could neither be noted nor booked; it is kept, and tried again.
        """
        flight = self._flights.get(call.id)
        if flight is None or self.closed or (at_once and (self._journal is None or self._broken)):
            return False
        held = flight.held
        cost = rows.cost_of(call, held)
        if call.settled_us is None:
            call = call.changed(settled_us=now_us())
        row = rows.call_values(call, self._db.team, flight.chain, self._db, held, cost)
        with self._lock:
            if self._flights.get(call.id) is not flight:  # another thread was quicker
                return False
            self._number += 1
            one = Ended(flight, row, cost, self._number)
            flight.call = None
            self._ended.append(one)
            back = held - (cost or 0)
            if back < 0:
                self._beyond, back = True, 0
            self._over[call.id] = held
            del self._flights[call.id]
            if flight.chain and not flight.stored:
                self._rooms.setdefault(flight.chain, _Room()).nano += back
            if len(self._over) > _REMEMBERED:
                self._over_before, self._over = self._over, {}
            try:
                if self._journal is not None and not self._broken:
                    self._journal.note(notes.ended_note(one))
            except OSError:
                self._broken = True
        if self._broken:
            self.write_out(give=False, age=float("inf"))
        if not self._stirred:
            self._touch()
        return True

    # -- booking -----------------------------------------------------------------------------------------------------------

    def write_out(self, *, give: bool = True, age: float = 0.0) -> None:
        """Book everything: calls that are over, those under way for more than `age` seconds, and (`give`) what is set aside.

        Raises:
            StoreError: the tables cannot be written; everything is kept here and in the journal.
        """
        if self._any():
            with self._booking:
                batch = self._batch(give, age)
                if batch.ended or batch.flights or self._returned:
                    self._enter(batch, _nothing, must_land=bool(batch.ended))

    def book_with(self, work: Callable[[sqlite3.Cursor], T], *, durable: bool) -> T:
        """Book everything, and do some `work`: as one transaction, unless something cannot be booked.

        Raises:
            StoreError: see `write_out`; or the work does.
        """
        try:
            if self._any():
                with self._booking:
                    batch = self._batch(True, 0.0)
                    if batch.ended or batch.flights or self._returned:
                        return self._enter(batch, work, durable=durable)
            return self._db.book(work, durable=durable)
        finally:
            if not durable:
                self._written()
                self._touch()

    def _enter(self, batch: Batch, work: Callable[[sqlite3.Cursor], T], *, must_land: bool = True, durable: bool = False) -> T:
        split = False
        try:
            known, result = self._book(batch, work, must_land, durable)
        except StoreUnavailableError:
            with self._lock:
                for flight, _ in batch.flights:  # nothing was entered
                    flight.stored = False
            raise
        except Exception:  # one of them cannot be entered: it must not keep the others back
            known, split = apart.enter(batch, lambda part: self._book(part, _nothing)[0]), True
        with self._lock:
            self._returned = False
            self._beyond = any((one.cost or 0) > one.flight.held for one in self._ended[len(batch.ended) :])
            del self._ended[: len(batch.ended)]
            for flight, _ in batch.flights:
                flight.entered = True
            if not known:
                self._disown()
        self._shorten()
        return self._db.book(work, must_land=must_land, durable=durable) if split else result

    def _book(self, batch: Batch, work: Callable[[sqlite3.Cursor], T], must_land: bool = True, durable: bool = False) -> tuple[bool, T]:
        """As a rule not durably: should a power cut undo it, the money is still set aside."""

        def both(cursor: sqlite3.Cursor) -> tuple[bool, T]:
            return booking.book(cursor, self._db, self.id, batch), work(cursor)

        done = self._db.book(both, must_land=must_land, durable=durable)
        self._written()
        return done

    def _written(self) -> None:
        """Something was, and may not be on the disk yet."""
        if self._unsynced is None:
            self._unsynced = time.monotonic()

    def sync(self) -> None:
        """Have on the disk what is booked."""
        if self._unsynced is None:
            return
        try:
            self._unsynced = None  # first: what is booked meanwhile asks for the next one
            self._db.sync()
        except OSError:
            self._unsynced = time.monotonic()
            _log.warning("%s could not be synchronised with its disk", self._db.location, exc_info=True)

    def _any(self) -> bool:
        if self._ended or self._returned:
            return True
        with self._lock:  # a room that a beat is emptying is either full here, or returned
            return self._returned or any(r.nano for r in self._rooms.values()) or not all(f.entered for f in self._flights.values())

    def _batch(self, give: bool, age: float) -> Batch:
        with self._lock:
            before = time.monotonic() - age
            flights: list[tuple[Flight, dict[str, Any]]] = []
            needed: dict[str, int] = {}
            if give:
                self._return(self._rooms.values())
            for flight in self._flights.values():
                if not flight.stored and flight.since > before:
                    for id in flight.chain:
                        needed[id] = needed.get(id, 0) + flight.held
                elif not flight.entered:
                    flight.stored = True  # from here on what it gives back is the tables' business, not a room's
                    flights.append((flight, booking.row_of(flight, self._db)))
            for chain, room in self._rooms.items():
                for id in chain if room.nano else ():
                    needed[id] = needed.get(id, 0) + room.nano
            ended = list(self._ended)
        return Batch(booking.key_of(self.id), ended, flights, needed, ended[-1].number if ended else 0)

    def _return(self, rooms: Iterable[_Room]) -> None:
        """Stop using rooms; the next booking gives back what they had."""
        for room in rooms:
            self._returned = self._returned or bool(room.nano)
            room.nano = 0

    def _disown(self) -> None:
        """Somebody took this process for dead and closed its purse: what it had is theirs to account for."""
        _log.warning("the purse %s was closed by another process", self.id)
        for room in self._rooms.values():
            room.nano = 0
        for flight in self._flights.values():
            flight.stored = flight.entered = True
        if self._journal is not None:
            self._journal.drop()
            self._journal = None

    def _shorten(self) -> None:
        journal = self._journal
        if journal is None or not (journal.used or self._broken):
            return
        with self._lock:
            flights = [f for f in self._flights.values() if not f.entered]
            if not (self._ended or flights or self._broken):
                journal.restart()
                return
            if not (journal.long or self._broken):
                return
            try:
                journal.renew([*map(notes.held_note, flights), *map(notes.ended_note, self._ended)])
                self._broken = False
            except OSError:
                _log.info("%s could not be shortened", journal.path, exc_info=True)

    # -- the beat ----------------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        self._stir()
        purses.busy.add(self)  # after it: a beat that comes to rest meanwhile takes the purse out, and then looks whether it was stirred
        if self._thread is None:
            thread = threading.Thread(target=_beat, args=(weakref.ref(self), self._awake), name="wflo-purse", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends: its last act is to book what is here
                thread.start()
                self._thread = thread

    def _stir(self) -> None:
        self._stirred = True
        self._awake.set()

    def beat(self) -> None:
        """Book what is over, give back what nobody needs."""
        self._awake.clear()
        self._stirred = False  # last: who still sees it set comes before all that is looked at below, and who stirs now is heard
        self._look_for_scarcity()  # first, so that what others need goes back at once
        with self._lock:
            idle = time.monotonic() - IDLE
            self._return(r for r in self._rooms.values() if r.scarce or r.used < idle)
            for chain in [chain for chain, room in self._rooms.items() if not room.nano and room.used < idle]:
                del self._rooms[chain]  # of a cell that is over, most likely
        self.write_out(give=False, age=AGE)
        resting = not self._any()
        if resting or (self._unsynced is not None and time.monotonic() - self._unsynced > SYNC):
            self.sync()
        if not resting:
            self._stir()
        elif not self._stirred:
            purses.busy.discard(self)
            if self._awake.is_set():
                purses.busy.add(self)

    def _look_for_scarcity(self) -> None:
        with self._lock:
            rooms = {chain: room for chain, room in self._rooms.items() if room.nano}
        if not rooms:
            return
        left = booking.left(self._db, {id for chain in rooms for id in chain})
        for chain, room in rooms.items():
            room.scarce = any(nano is not None and nano < room.nano for nano in map(left.get, chain))

    # -- its end -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Book everything, and answer nothing from now on. If the tables cannot be written, the journal stays for who opens them next."""
        if self.closed:
            return
        with self._booking:
            self.closed = True  # first: what comes from now on asks the tables
            journal, self._journal = self._journal, None
            self._returned = self._returned or journal is not None  # whatever it may have: it is listed no more after this
            try:
                self.write_out()
                if journal is not None:  # its end is durable, and what was booked before with it
                    self._db.book(lambda cursor: booking.end(cursor, self.id))
                    journal.remove()
            except StoreUnavailableError:
                _log.warning("calls that are over are kept beside %s, and entered when it is opened next", self._db.location, exc_info=True)
                if journal is not None:
                    journal.drop()
        self._awake.set()
        purses.busy.discard(self)

    def settle_before_fork(self, seconds: float) -> None:
        """Book everything, if nobody is at it for so long: a child then finds it in the tables."""
        if self._booking.acquire(timeout=seconds):
            try:
                with contextlib.suppress(StoreError):
                    self.write_out()
            finally:
                self._booking.release()

    def forget(self) -> None:
        """After a fork, in the child: all that was here is the parent's."""
        if self._journal is not None:
            self._journal.drop()
        purses.busy.discard(self)
        if not self.closed:
            self._fresh()


def _nothing(_: sqlite3.Cursor) -> None:
    """Besides the booking."""


_count = 0


def _beat(reference: weakref.ref[Purse], awake: threading.Event) -> None:
    pause = BEAT
    while True:
        awake.wait()
        time.sleep(pause)
        purse = reference()
        if purse is None or purse.closed or purse._awake is not awake:
            return
        try:
            purse.beat()
            pause = BEAT
        except Exception:
            if pause == BEAT:
                words = "calls that are over could not be entered in %s yet; they are kept beside it"
                _log.warning(words, purse._db.location, exc_info=True)
            pause = min(2 * pause, 10.0)
            purse._stir()
        del purse
