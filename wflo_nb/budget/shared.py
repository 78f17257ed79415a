"""Budgets with a name of their own, which several notebooks, scripts, people and machines spend together.

    shared_budget(team="research", budget_usd=500, per="month", tz="Europe/Berlin")

The row ``team:research`` defines it: cap, period, time zone. Without a period it counts the money as well. With one, each period
has a row of its own (``team:research@2026-11``), made when a call first needs it; the defining row then counts nothing. A call is
charged to the period in which its money is reserved, whatever period its answer comes in.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

from wflo_nb.budget import periods
from wflo_nb.budget.budget import Budget, Room
from wflo_nb.errors import BudgetUnavailableError, ConfigurationError, StoreError, StoreUnavailableError, format_usd
from wflo_nb.model import BudgetState, nano_from_usd, now, usd
from wflo_nb.store import Store, current, open_store

T = TypeVar("T")

#: Who may share a budget. The order is also that in which their rows are locked.
KINDS = ("team", "user")
_LONGEST_NAME = 100


class _Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._inner = threading.RLock()

    def __enter__(self) -> None:
        self._inner.acquire()

    def __exit__(self, *_: object) -> None:
        self._inner.release()


@dataclass(slots=True)
class _Memo:
    """What this process knows of a shared budget: its defining row, what is left, its present row and the period of that."""

    defined: BudgetState
    room: Room
    present: BudgetState | None = None
    period: periods.Period | None = None
    lock: _Lock = field(default_factory=_Lock)


_known: WeakKeyDictionary[Store, dict[str, _Memo]] = WeakKeyDictionary()


def _renew_locks() -> None:
    for memos in list(_known.values()):
        for memo in memos.values():
            memo.lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Shared(Budget):
    """A budget that is known by a name and not by what spends it. Made by `find` or `define`.

    Attributes:
        kind: ``"team"`` or ``"user"``.
        name: as users write it.
        per: ``"day"``, ``"week"``, ``"month"``, ``"year"``: its cap is for each of them; None: for good.
        zone: the time zone that periods turn over in, None without a period.
    """

    shared = True

    def __init__(self, store: Store, kind: str, name: str, memo: _Memo) -> None:
        defined = memo.defined
        super().__init__(store, defined.id, _title(kind, name), defined.cap_nano)
        self._memo = memo
        self._lock = memo.lock  # all that stand for one budget change together
        self.room = memo.room
        self.kind = kind
        self.name = name
        self.per = defined.period
        self.zone = defined.zone or periods.DEFAULT_ZONE
        self._key = defined.id
        self._opened = True  # whoever made this object has read the row
        self._period: periods.Period | None = None
        with self._lock:
            self._present(memo.present or defined)

    def renew_locks(self) -> None:
        """Its lock is that of all which stand for this budget, and renewed with them."""

    def _present(self, row: BudgetState) -> BudgetState:
        self.id, self.scope, self.cap_nano, self._period = row.id, row.scope, row.cap_nano, self._memo.period
        return row

    @property
    def key(self) -> str:
        """The id of the defining row."""
        return self._key

    @property
    def title(self) -> str:
        """``team "research"``, whatever the period."""
        return _title(self.kind, self.name)

    @property
    def advice(self) -> str:
        """Who can do what when it is used up."""
        words = f"Raise it (`%wflo budget USD {shlex.quote(f'{self.kind}={self.name}')}`), ask for fewer output tokens"
        if self.per is None or self._period is None:
            return f"{words}, or choose a cheaper model."
        return f"{words}, or wait until {periods.local(self._period.ends_at, self.zone)}, when the next {self.per} begins."

    def open(self) -> None:
        """Make sure that there is a row for this moment."""
        self.turn()

    @property
    def turned(self) -> bool:
        """Whether it is the period of the current row: not the next one, nor, when a clock was set back, the one before."""
        return self.per is None or (self._period is not None and now() in self._period)

    def turn(self) -> None:
        """Make the row of the present period the current one; the first that needs it creates it."""
        if self.per is None or self.turned:
            return
        with self._lock:
            memo, at = self._memo, now()
            if memo.present is None or memo.period is None or at not in memo.period:
                period = periods.period_at(at, self.per, self.zone)
                cap = self.store.budget(self._key).cap_nano
                scope = f"{self.title} ({period.label})"
                row = BudgetState(f"{self._key}@{period.key}", scope, cap, name=self.name, period=self.per, zone=self.zone)
                memo.present, memo.period = self.store.open_budget(row), period
                memo.room.told(memo.present)
            self._present(memo.present)

    def refresh(self) -> None:
        """Look what cap somebody else may have given it."""
        with self._lock:
            self.turn()
            self._told(self.store.budget(self.id))

    def _told(self, row: BudgetState) -> BudgetState:
        if self.per is None:
            self._memo.defined = row
        else:
            self._memo.present = row
        self.room.told(row)
        return self._present(row)

    def eased(self, row: str, cap_nano: int | None) -> bool:
        """A new period has begun, or somebody, perhaps on another machine, raised the cap."""
        try:
            self.refresh()
        except StoreError:  # then nothing is sent anyway
            return False
        return self.id != row or super().eased(row, cap_nano)

    def set_cap(self, nano: int | None) -> BudgetState:
        """Change the cap from the present period on, for everybody. What past periods had stays written.

        Raises:
            ConfigurationError: no cap: a shared budget always has one.
        """
        if nano is None:
            raise ConfigurationError(f"The budget of {self.title} needs an amount: it can be raised and lowered, not lifted.")
        with self._lock:
            # The definition first: a row that somebody else makes in between starts with the new cap, or is given it below.
            state = self.store.set_cap(self._key, nano)
            if self.per is not None:
                self.turn()
                state = self.store.set_cap(self.id, nano)
            return self._told(state)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which shared budgets something is charged to, as a user writes it. Make it with `sharing`, which checks it."""

    team: str | None = None
    user: str | None = None
    per: str | None = None
    tz: str | None = None

    def budgets(self, store: Store, cap_nano: int | None) -> tuple[tuple[Budget, ...], list[str]]:
        """The budgets that are meant, and a sentence for the user about each that is not as written here.

        Raises:
            ConfigurationError: there is none of that name and no cap to create it with, or it has another period.
            BudgetUnavailableError: the ledger cannot be reached.
        """
        found: list[Budget] = []
        said: list[str] = []
        for kind, name in self.names:
            one = find(store, kind, name, cap_nano, self.per, self.tz)
            found.append(one)
            if cap_nano is not None and one.cap_nano != cap_nano:
                _trying(one.refresh, one.title, store)  # the user is told how it is now
            if cap_nano is not None and one.cap_nano != cap_nano:
                said.append(
                    f"The budget of {one.title} is {_worth(one.cap_nano, one.per)} already, and that stands: "
                    f"{format_usd(usd(cap_nano))} is the cap of this run inside it. "
                    f"`%wflo budget USD {shlex.quote(f'{kind}={name}')}` changes it."
                )
        return tuple(found), said

    @property
    def names(self) -> list[tuple[str, str]]:
        """Kind and name of each."""
        return [(kind, name) for kind in KINDS if (name := cast("str | None", getattr(self, kind))) is not None]


def sharing(*, team: object = None, user: object = None, per: object = None, tz: object = None) -> Sharing | None:
    """What the options ``team``, ``user``, ``per`` and ``tz`` say; None if they name no shared budget.

    Args:
        team: a name.
        user: a name; True is the name that this user logged in with.
        per: ``day``, ``week``, ``month``, ``year``; used when the budget is created, and compared when it is there.
        tz: the IANA time zone in which the period turns over; UTC if not given.

    Raises:
        ConfigurationError: a name that is none, an unknown period or zone, or a period of nothing.
    """
    if team is None and user is None:
        if per is not None or tz is not None:
            word = f"per={per}" if per is not None else f"tz={tz}"
            raise ConfigurationError(f"{word} needs a shared budget to apply to: add team=NAME or user=NAME.")
        return None
    if tz is not None and per is None:
        raise ConfigurationError(f"tz={tz} says where a period turns over, and there is none: add per=day, week, month or year.")
    if user is True:
        user = login()
    return Sharing(
        None if team is None else _name("team", team),
        None if user is None else _name("user", user),
        None if per is None else periods.period(str(per)),
        None if tz is None else periods.zone(str(tz)),
    )


def login() -> str:
    """The name of this user: the hub's where there is one, since everybody has the same login inside its containers.

    Raises:
        ConfigurationError: the system does not tell.
    """
    try:
        return os.environ.get("JUPYTERHUB_USER") or getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise ConfigurationError("The name of this user cannot be found out. Write it: user=NAME.") from None


def find(store: Store, kind: str, name: str, cap_nano: int | None = None, per: str | None = None, zone: str | None = None) -> Shared:
    """A shared budget of the ledger; with `cap_nano` it is created if there is none. One that is there keeps its cap.

    Asks the ledger once per process for each: what was found stays, and its terms with it.

    Raises:
        ConfigurationError: it does not exist and no cap was given, or its period or zone is another than asked for.
        BudgetUnavailableError: the ledger cannot be reached.
    """
    key = _key(kind, name)
    known = _known.setdefault(store, {})
    memo = known.get(key)
    if memo is None:
        defined = _defined(store, kind, name, cap_nano, per, zone)
        memo = known[key] = _Memo(defined, Room(defined.left_nano))
    defined = memo.defined
    if per is not None and (per != defined.period or (zone is not None and zone != defined.zone)):
        raise ConfigurationError(
            f"The budget of {_title(kind, name)} is {_terms(defined.period, defined.zone)} and cannot be made {_terms(per, zone)}: its "
            "sums would mean nothing. Leave per= and tz= out to use it, or choose another name."
        )
    return Shared(store, kind, name, memo)


def _defined(store: Store, kind: str, name: str, cap_nano: int | None, per: str | None, zone: str | None) -> BudgetState:
    """The defining row, made if there is none and `cap_nano` is given."""
    title, key = _title(kind, name), _key(kind, name)
    made_in = zone or (periods.DEFAULT_ZONE if per else None)

    def ask() -> BudgetState | None:
        if cap_nano is None:
            return _there(store, key)
        return store.open_budget(BudgetState(key, title, cap_nano, name=name, period=per, zone=made_in))

    defined = _trying(ask, title, store)
    if defined is None:
        option = shlex.quote(f"{kind}={name}")
        raise ConfigurationError(
            f"There is no budget of {title} in {store.location}. Create it with `%wflo budget 500 {option} per=month tz=UTC`, with "
            f'wflo_nb.shared_budget({kind}="{name}", budget_usd=500), or give this run a budget, which then is the shared one too.'
        )
    return defined


def define(store: Store, kind: str, name: str, cap_nano: int, per: str | None = None, zone: str | None = None) -> BudgetState:
    """Create a shared budget, or change the cap of one: what ``%wflo budget 500 team=research per=month tz=Europe/Berlin`` does.

    `per` and `zone` as `sharing` gives them. Returns the budget's present row (that of this month, if it has months).

    Raises:
        ConfigurationError: it exists with another period or zone.
        BudgetUnavailableError: the ledger cannot be reached.
    """
    one = find(store, kind, name, cap_nano, per, zone)

    def change() -> BudgetState:
        one.refresh()
        return one.state() if one.cap_nano == cap_nano else one.set_cap(cap_nano)

    return _trying(change, one.title, store)


def shared_budget(
    *,
    team: str | None = None,
    user: str | bool | None = None,
    budget_usd: object = None,
    per: str | None = None,
    tz: str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
) -> Budget:
    """A budget that many notebooks, scripts and machines spend together, by its name.

        shared_budget(team="research", budget_usd=500, per="month", tz="Europe/Berlin")   # create it, or change its cap
        shared_budget(team="research").left_usd                                           # read it

    Runs are charged to it by ``execution(team="research")`` and ``%%wflo budget=2 team=research``.

    Args:
        team: its name, if a team shares it.
        user: its name, if one person does; True is the name that this user logged in with.
        budget_usd: its cap in USD, in each period if it has one; None leaves it as it is.
        per: ``"day"``, ``"week"`` (from Monday), ``"month"`` or ``"year"``; fixed once it exists.
        tz: the IANA time zone in which periods turn over; UTC if not given; fixed once it exists.
        store: where it is kept: a `Store`, a path, a ``postgresql://`` URL; None for the current one.

    Raises:
        ConfigurationError: a bad argument, a budget that does not exist, or one with another period.
        BudgetUnavailableError: the ledger cannot be reached.
    """
    asked = sharing(team=team, user=user, per=per, tz=tz)
    if asked is None or len(asked.names) != 1:
        raise ConfigurationError('shared_budget needs one name: shared_budget(team="research") or shared_budget(user="ann").')
    place = store if isinstance(store, Store) else current() if store is None else open_store(store)
    cap = None if budget_usd is None else nano_from_usd(budget_usd, "budget_usd")
    kind, name = asked.names[0]
    if cap is not None:
        define(place, kind, name, cap, asked.per, asked.tz)
    found = find(place, kind, name, None, asked.per, asked.tz)
    _trying(found.refresh, found.title, place)
    return found


def _trying(work: Callable[[], T], title: str, store: Store) -> T:
    try:
        return work()
    except StoreError as error:
        raise BudgetUnavailableError(
            f"The budget of {title} is kept in {store.location}, which cannot be used, so nothing may be spent of it: {error}"
        ) from error


def _there(store: Store, key: str) -> BudgetState | None:
    try:
        return store.budget(key)
    except StoreUnavailableError:
        raise
    except StoreError:  # there is no such row
        return None


def _name(kind: str, value: object) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not name or len(name) > _LONGEST_NAME or re.search(r"[\x00-\x1f\x7f\"]", name):
        raise ConfigurationError(
            f"{kind}={value!s} is no name. Use one word or a few, at most {_LONGEST_NAME} characters, for example {kind}=research."
        )
    return name


def _key(kind: str, name: str) -> str:
    # The @ sets the period apart, and e-mail addresses are names too.
    return f"{kind}:{name.replace('%', '%25').replace('@', '%40')}"


def _title(kind: str, name: str) -> str:
    return f'{kind} "{name}"'


def _terms(per: str | None, zone: str | None) -> str:
    if per is None:
        return "for good (without a period)"
    return f"per {per} in {zone}" if zone else f"per {per}"


def _worth(cap_nano: int | None, per: str | None) -> str:
    amount = format_usd(None if cap_nano is None else usd(cap_nano))
    return f"{amount} per {per}" if per else amount
