"""Between a machine's spool and its server: leases asked for, prolonged and given back, rows sent in now and then."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from wflo_nb.errors import StoreError, StoreUnavailableError, format_usd, tell
from wflo_nb.model import MAX_NANO, now, usd
from wflo_nb.store import doors, holder
from wflo_nb.store.leasing import Lessor, Want
from wflo_nb.store.postgres import Postgres
from wflo_nb.store.records import Shortfall
from wflo_nb.store.sending import Sender
from wflo_nb.store.spool import Spool

_log = logging.getLogger(__name__)

#: Seconds that a lease lasts without a sign of life from its machine.
TTL = 60.0
#: Seconds between two batches.
BEAT = 0.5
#: Seconds between two looks when nothing goes on here: another process of the machine may have left something.
REST = 5.0
#: Seconds during which nobody needed a part of what is leased, after which it is given back.
IDLE = 2.0
#: Seconds during which a server that did not answer is not asked again.
PATIENCE = 2.0
#: Seconds after which the budget of an execution that is over is forgotten here.
UNUSED = 60.0
#: How far a lease looks ahead at most, in calls of the size of the one that asks.
_FARTHEST = 64


class Courier:
    """One process's way between a spool and its server. Thread-safe.

    Attributes:
        spool: what this machine has.
        sender: sends it in.
        asking: held by who moves money of a lease, so that nobody else does.
        closed: nothing is sent in by itself any more.
    """

    def __init__(self, server: Postgres, spool: Spool) -> None:
        self.spool = spool
        self._server = server
        self._lessor = Lessor(server, spool.id, TTL)
        self.sender = Sender(server, spool, self._lessor)
        self._down_until = 0.0
        self._fault: StoreUnavailableError | None = None
        self._ahead = 0
        self._last_lease = self._last_use = self._last_renewal = self._last_tidy = 0.0
        self._valid_until = 0.0
        self._looks: list[dict[str, int]] = []
        self.closed = False
        self._overdrafts = self._told = 0
        self._fresh()
        _couriers.add(self)

    def _fresh(self) -> None:
        """Locks and threads: at the start, and in a forked child."""
        self.asking = threading.RLock()
        self.sender.renew_locks()
        self._starting = threading.Lock()
        self._counting = threading.Lock()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    # -- the server --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reach(self) -> Iterator[None]:
        """Around everything that asks the server: one that does not answer is left alone for a moment."""
        if time.monotonic() < self._down_until and self._fault is not None:
            raise self._fault.with_traceback(None)
        try:
            yield
        except StoreUnavailableError as fault:
            if not fault.unreachable:
                raise
            first, self._fault = self._fault is None, fault
            self._down_until = time.monotonic() + PATIENCE
            if first and not self.closed:
                tell(f"{fault} Until it is back, calls are recorded on this machine; {self._still()}")
            raise
        self._fault = None

    def _still(self) -> str:
        """What can be spent without the server, in words. A call needs room in each of its budgets."""
        seconds = self.spool.valid_until() - time.monotonic()
        rooms = {b: room for b, room in self.spool.rooms().items() if room > 0} if seconds > 0 else {}
        if not rooms:
            return "under a budget none can be made, because nothing is leased to it."
        titles = {b.id: b.scope for b in self.spool.budgets(set())}
        listed = [f"{format_usd(usd(room))} of {titles[b]}" for b, room in sorted(rooms.items(), key=lambda item: -item[1])]
        more = f" and of {len(listed) - 3} more budgets" if len(listed) > 3 else ""
        return f"under a budget they go on for {seconds:.0f} s within what is leased to it: {', '.join(listed[:3])}{more}."

    # -- leases ------------------------------------------------------------------------------------------------------------

    def lease(self, chain: Sequence[str], lo: int, hi: int, share: int) -> int | Shortfall:
        """Ask the server for more; returns what the call may hold now, or what is short."""
        asked = time.monotonic()
        # Who asks again and again is given more at a time; a lone call takes what it needs.
        ahead = min(_FARTHEST, 8 * self._ahead + 8) if asked - self._last_lease < 1.0 else 0
        if self.spool.owed():
            self.give_back({})
        with self.reach(), self.sender.operation() as op:
            self.sender.announce()
            self.spool.intend(op, "lease")
            caps = self.spool.caps(chain)
            got = self._lessor.lease(op, Want(self.spool.rooms(chain), lo, hi, share, ahead * max(1, share) * hi))
            if isinstance(got, Shortfall):
                self.spool.done(op)
                return got
            lent, amount = got
            self.spool.done(op, lent, until=asked + TTL)
            if self.spool.caps(chain) != caps:  # another process of this machine has changed one meanwhile
                self._owe(list(lent))
        self._ahead, self._last_lease = ahead, asked
        return amount

    def overdrew(self) -> None:
        """More was spent than had been held."""
        with self._counting:
            self._overdrafts += 1

    @property
    def overdrawn(self) -> bool:
        """Whether the server may not know yet of all that was spent beyond what had been held."""
        return self._overdrafts != self._told

    @property
    def sure(self) -> bool:
        """Whether money of a lease may be spent without a look at the spool or the server."""
        return time.monotonic() < self._valid_until and not self.overdrawn

    def keep_valid(self, chain: Sequence[str]) -> None:
        """Before money of a lease is spent: make sure that it has not run out, and that the server knows of what was spent beyond.

        Raises:
            StoreUnavailableError: one of them, and the server cannot be asked.
        """
        if self.sure:
            return
        if not self.spool.rooms(chain):  # no money of a lease is wanted
            return
        if self.overdrawn:
            self.give_back()
        if time.monotonic() >= self._valid_until:
            self._valid_until = self.spool.valid_until()
        if time.monotonic() >= self._valid_until:
            self.renew()

    def renew(self) -> None:
        """Prolong the leases. What was written off meanwhile, because this machine was silent for too long, is given back as far as
        nothing was spent of it.
        """
        with self.reach():
            asked = self._last_renewal = time.monotonic()
            lost = self._lessor.renew()
            self._lessor.expire()
            if lost:
                self.give_back(dict.fromkeys(lost, MAX_NANO))
            self._learn_caps()
        self._valid_until = asked + TTL
        self.spool.prolong(self._valid_until)

    def _learn_caps(self) -> None:
        """Another machine may have given a budget its cap, or another one; without one, nobody here would ask the server."""
        here = {b.id: b.cap_nano for b in self.spool.budgets(set())}
        for id, state in self._lessor.levels(list(here)).items() if here else ():
            if state.cap_nano != here[id]:
                self.set_cap(id, state.cap_nano)

    def give_back(self, most: Mapping[str, int] | None = None) -> None:
        """Give back what is owed, and what no call holds (of some budgets, and at most so much of each; all of it after more was spent
        than had been held: what is left then is for the server to say).
        """
        overdrafts = self._overdrafts
        if overdrafts != self._told:
            self.ship()
            most = None
        with self.reach(), self.asking, self.sender.operation() as op:
            idle = self.spool.take_idle(op, most)
            if idle:
                self._lessor.give(op, idle)
                self.spool.done(op)
            self._owe(self.spool.owed())
            self._told = max(self._told, overdrafts)

    def _owe(self, budgets: Collection[str]) -> None:
        """Where more is spent and held than a cap, that was lowered meanwhile, what calls of this machine hold is the server's again as
        soon as they are over.
        """
        for id, state in self._lessor.levels(list(budgets)).items() if budgets else ():
            over = 0 if state.cap_nano is None else max(0, state.spent_nano + state.held_nano - state.cap_nano)
            self.spool.owe(id, over)

    def set_cap(self, budget: str, cap: int | None) -> None:
        """The server's cap has changed: so does the spool's, and what was leased under the old one is given back."""
        with self.reach(), self.sender.turn(), self.sender.operation() as op:
            self.sender.send()  # from here on the calls that are not sent in are those that the spool still has
            held = self.spool.set_cap(op, budget, cap)
            if held:
                self._lessor.cover(op, held)
                self.spool.done(op)
        self.give_back({budget: MAX_NANO})
        with self.reach(), self.asking:
            self._owe([budget])

    # -- sending in --------------------------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Send in everything that is over.

        Raises:
            StoreUnavailableError: the server cannot be reached; nothing is lost.
        """
        with self.reach(), self.sender.turn():
            self.sender.send()

    def adopt(self, old: Path) -> bool:
        """Send in what a spool of an earlier run of the machine still has; False if it belongs to a machine that runs. Its leases are
        not given back: a power cut may have taken its last holds with it, so they run out and count as spent.
        """
        with doors.left_behind(old) as left:
            if not left or not old.exists():
                return left
            spool = Spool(old, self._server.team, used=False)
            courier = Courier(self._server, spool)
            courier.closed = True  # has no beat
            spool.store.sweep(lambda one: one != holder.this_holder() and holder.is_dead(one))
            courier.ship()
            if spool.empty:
                spool.remove()
            else:
                spool.close()
            return True

    # -- the beat ----------------------------------------------------------------------------------------------------------

    def touch(self, used: bool = False) -> None:
        """Something happened that is to be sent in soon; `used`: a call asked for money."""
        if self.closed:
            return
        if used:
            self._last_use = time.monotonic()
        if not self._awake.is_set():
            self._awake.set()
        if self._thread is None:
            with self._starting, contextlib.suppress(RuntimeError):  # the interpreter ends: its last act is to send in what is here
                if self._thread is None:
                    thread = threading.Thread(target=_beat, args=(weakref.ref(self),), name="wflo-courier", daemon=True)
                    thread.start()
                    self._thread = thread

    def wait(self) -> None:
        """Until the next round."""
        if self._awake.is_set():
            time.sleep(BEAT)
        else:
            self._awake.wait(REST)

    def round(self) -> None:
        """Send in, give back what nobody uses, prolong the rest."""
        if self.closed:
            return
        self.ship()
        if self.spool.owed():
            self.give_back({})
        self._give_spare()
        if not self.spool.leased() and time.monotonic() - self._last_use >= IDLE:
            self._looks.clear()
            self._awake.clear()
        elif time.monotonic() - self._last_renewal > TTL / 3:
            self.renew()

    def _give_spare(self) -> None:
        """Give back what nobody needed lately: the least that was left at any of the last looks, less what was used between them."""
        self._looks.append(self.spool.rooms())
        if len(self._looks) > max(1, round(IDLE / BEAT)):
            lately, self._looks = self._looks, []
            spare = {b: _spare([look.get(b, 0) for look in lately]) for b in lately[-1]}
            if any(room > 0 for room in spare.values()):
                self.give_back(spare)
            self._tidy()

    def _tidy(self) -> None:
        """Forget what is over for good: cells come by the thousand."""
        if time.monotonic() - self._last_tidy < UNUSED:
            return
        with self.reach():
            self.sender.announce()  # who needs one of them again finds it there
            self.spool.forget_budgets(unused_since=now() - timedelta(seconds=UNUSED))
            self._lessor.tidy([op for op, *_ in self.spool.pending()])
        self._last_tidy = time.monotonic()

    def close(self) -> None:
        """Send in, give back, and stop. What cannot be sent in stays in the spool."""
        if self.closed:
            return
        self.closed = True
        self._awake.set()
        try:
            self.ship()
            self.give_back()
        except StoreError as error:
            waiting = len(self.spool.outbox.finals(10_000))
            if waiting:
                tell(f"{waiting} finished calls are kept on this machine and sent in when the store is opened next: {error}")
            _log.info("a spool could not be emptied: %s", error)


def _spare(rooms: Sequence[int]) -> int:
    """What is not needed of a budget, from what was left of it at one look after the other: as much may be used again by the next."""
    used = sum(max(0, before - after) for before, after in itertools.pairwise(rooms))
    return max(0, min(rooms) - used)


def _beat(reference: weakref.ref[Courier]) -> None:
    while (courier := reference()) is not None and not courier.closed:
        courier.wait()
        try:
            courier.round()
        except StoreUnavailableError:
            time.sleep(BEAT)
        except Exception:
            _log.exception("rows could not be sent in; they stay on this machine")
            time.sleep(REST)
        del courier


_couriers: weakref.WeakSet[Courier] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for courier in list(_couriers):
        courier._fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
