"""``wflo_nb.join()``: a worker process charges the cell or block that it works for."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any

from wflo_nb import _context, config, telemetry
from wflo_nb import store as stores
from wflo_nb.budget.account import Account
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.shared import find
from wflo_nb.errors import BudgetExceededError, ConfigurationError, StoreError, StoreUnavailableError
from wflo_nb.events import Figures
from wflo_nb.model import Execution, ExecutionStatus, now, usd
from wflo_nb.pricing.book import PriceBook
from wflo_nb.store import Store
from wflo_nb.workflow import handover
from wflo_nb.workflow.runtime import runtime

#: So many executions are remembered by a worker that serves one after the other.
_REMEMBERED = 50
#: Seconds to wait on another machine for what the run wrote when it began.
_PATIENCE = 10.0

_joined: dict[str, Account] = {}


class Joined:
    """A worker's place in a run of another process. As a context manager it leaves at the end of the block.

    Attributes:
        account: what calls are charged to; None if there was nothing to join (`join` with ``required=False``).
    """

    def __init__(self, account: Account | None, leave: Callable[[], None]) -> None:
        self.account = account
        self._leave = leave
        self._refused = account.figures.refused if account else 0

    def __bool__(self) -> bool:
        return self.account is not None

    @property
    def execution_id(self) -> str | None:
        """``exec-…`` of the run that was joined."""
        return self.account.id if self.account else None

    @property
    def spent_usd(self) -> Decimal:
        """What this process spent of it so far, settled and unconfirmed, in USD."""
        return usd(self.figures().spent_nano)

    @property
    def remaining_usd(self) -> Decimal | None:
        """What a new call may ask for by the ledger at this moment, whoever spends; None where no cap applies."""
        innermost = self.account.innermost if self.account else None
        left = [b.left_usd for b in innermost.chain if b.cap_nano is not None] if innermost else []
        return min((amount for amount in left if amount is not None), default=None)

    def figures(self) -> Figures:
        """Money and counts of this process."""
        return self.account.figures if self.account else Figures()

    def leave(self) -> None:
        """Charge what was charged before. May be called more than once."""
        self._leave()

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()
        account = self.account
        if account is None or account.refusal is None or account.figures.refused == self._refused:
            return
        if isinstance(error, Exception | None) and not isinstance(error, BudgetExceededError):
            raise account.refusal from error  # something in the block swallowed it


def _join(ticket: str | None = None, *, required: bool = True) -> Joined:
    """Charge every LLM call that this worker process makes from here on to the cell or block that started it.

        subprocess.run([sys.executable, "worker.py"])              # worker.py begins with: import wflo_nb; wflo_nb.join()
        ProcessPoolExecutor(initializer=wflo_nb.join)              # multiprocessing.Pool takes an initializer, too

    Workers that outlive a cell (a pool that is reused, joblib's loky, ray, dask) know the run that was on when they were started. Hand the
    present one over with the work instead, from a block's `ticket` or, in a cell, from the environment:

        def work(page, ticket):
            with wflo_nb.join(ticket):
                return ask(page)

        Parallel(n_jobs=4)(delayed(work)(page, os.environ["WFLO_JOIN"]) for page in pages)

    Forked workers charge the run anyway; joining does no harm there, nor does joining twice. All processes share the run's budget, in
    the ledger. A refusal in one of them also ends the run that started it, at its edge, where the card takes in what the workers spent.
    Prices that were declared when the run began are handed over. The card's Stop button stops the process of the cell alone.

    On another machine, set ``WFLO_STORE`` there to the PostgreSQL ledger that the run uses; an embedded ledger cannot be reached.

    Args:
        ticket: what to join; None for the environment's ``WFLO_JOIN``.
        required: False makes it no error that there is nothing to join; calls are then not charged to anything, and the result is false.

    Raises:
        ConfigurationError: there is nothing to join, or its ledger cannot be found from here.
        StoreError, BudgetUnavailableError: the ledger cannot be opened: nothing may be spent.
    """
    text = ticket if ticket is not None else os.environ.get(handover.VARIABLE, "")
    if not text:
        if required:
            raise ConfigurationError(
                "There is nothing to join: this process was not started by a cell or block that wflo_nb tracks, or without its environment "
                f"({handover.VARIABLE}). Start it inside one, pass run.ticket along, or use join(required=False) if it may also run alone."
            )
        return Joined(None, lambda: None)
    facts = _read(text)
    account = _account_here(facts["id"])
    if account is None:
        account = _joined.get(facts["id"]) or _account(facts)
        while len(_joined) >= _REMEMBERED:
            del _joined[next(iter(_joined))]
        _joined[account.id] = account
    return Joined(account, _entered(account, text))


class Join:
    """What `join` is: a function that takes the present run along when it is sent to another process.

    An initializer is sent to each new worker; what a worker finds in its environment may be older: that of a fork server is as
    old as the server. It may also name another block, which runs beside the one that starts the worker, and never names a step.
    A ticket that it is called with counts before the one that it brought.
    """

    def __init__(self, brought: str = "") -> None:
        self._brought = brought
        functools.update_wrapper(self, _join)
        self.__name__ = self.__qualname__ = "join"

    def __call__(self, ticket: str | None = None, *, required: bool = True) -> Joined:
        return _join(self._brought or None if ticket is None else ticket, required=required)

    def __reduce__(self) -> tuple[Any, ...]:
        return Join, (_present() or self._brought,)

    def __repr__(self) -> str:
        return "<function wflo_nb.join>"


join = Join()


def _present() -> str:
    """A ticket for what the calls of this code are charged to; the environment's where that is not known for sure."""
    scope = _context.told()
    if not isinstance(scope, Account):
        return os.environ.get(handover.VARIABLE, "")
    payer = scope.payer()
    if payer is not scope:
        payer.begin()  # so that its budget is in the ledger where the worker looks for it
    return handover.offered(payer) or handover.ticket(payer)


def _entered(account: Account, text: str) -> Callable[[], None]:
    if _context.current() is account:
        return lambda: None
    if account in _context.running():  # an entered scope is not counted twice
        outside = contextlib.ExitStack()
        outside.enter_context(_context.within(account))
        return outside.close
    leave, take_back = _context.enter(account), handover.put(account, text)

    def left() -> None:
        leave()
        take_back()

    return left


def _account_here(id: str) -> Account | None:
    """The account itself, in the process of the run and in its forked children."""
    scopes = [_context.current(), *_context.running()]
    return next((scope for scope in scopes if isinstance(scope, Account) and scope.id == id), None)


def _read(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text)
        version, _ = facts["v"], facts["id"]
    except (ValueError, TypeError, KeyError):
        raise ConfigurationError(
            f"{str(text)[:80]!r} is no ticket to join with. Use run.ticket or os.environ[{handover.VARIABLE!r}]."
        ) from None
    if version != handover.VERSION:
        raise ConfigurationError(
            f"The run that is to be joined has another version of wflo_nb (ticket {version}). Install the same in both."
        )
    return dict(facts)


def _cap(store: Store, id: str, told: int | None) -> int | None:
    """The cap of a budget now: it may have changed since the ticket was written."""
    try:
        return store.budget(id).cap_nano
    except StoreError:  # nobody has spent of it yet, or it cannot be asked
        return told


def _account(facts: dict[str, Any]) -> Account:
    private = _private(facts)
    store = _store(facts, private)
    _known(store, facts)
    facts["chain"] = [(id, scope, _cap(store, id, cap)) for id, scope, cap in facts["chain"]]
    own = facts["chain"].pop() if facts["own"] else None
    shared: tuple[Budget, ...] = tuple(find(store, kind, name) for kind, name in facts["shared"])
    around: Budget | None = None
    for id, scope, cap in facts["chain"]:
        around = Budget(store, id, scope, cap, around, () if own or around else shared)
    at = datetime.fromisoformat(facts["at"])
    execution = Execution(
        facts["id"],
        facts["name"],
        ExecutionStatus.RUNNING,
        at,
        now(),
        budget_nano=own[2] if own else None,
        parent_id=facts["parent"],
        notebook_id=facts["notebook"],
        kernel_id=facts["kernel"],
        cell=facts["cell"],
        cell_id=facts["cell_id"],
    )
    account = Account(
        store,
        execution,
        _book(private.get("prices") or facts.get("prices") or []),
        scope=own[1] if own else "execution",
        around=around,
        shared=shared if own else (),
        unknown_models=facts["unknown"],
        wait=facts["wait"],
    )
    _begin(account, facts)
    runtime().install()
    return account


def _begin(account: Account, facts: dict[str, Any]) -> None:
    if not facts["begun"]:  # a plain cell that made no call itself is not in the ledger, and will not say how it ended
        account.begin()
        with contextlib.suppress(StoreError):
            account.store.end_execution(account.id, ExecutionStatus.COMPLETED)
        return
    if account.innermost:
        account.innermost.open()
    account.begun = True
    if facts.get("trace"):
        telemetry.adopt(account.id, facts["trace"])
    if facts["host"] == handover.host():
        handover.mark(facts.get("marks") or [])


def _book(prices: list[dict[str, Any]]) -> PriceBook:
    book = PriceBook(runtime().book)
    for price in prices:
        book.declare(price.pop("model"), **price, allow_absurd=True)
    return book


# -- the ledger --------------------------------------------------------------------------------------------------------------


def _private(facts: dict[str, Any]) -> dict[str, Any]:
    """What the run put into a file for us, if it could be read."""
    if "ticket" not in facts or facts["host"] != handover.host():
        return {}
    try:
        return dict(json.loads(Path(facts["ticket"]).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"The run {facts['name']!r} cannot be joined any more: the process that it belonged to has ended, and took along the way to "
            "its ledger."
        ) from None


def _store(facts: dict[str, Any], private: dict[str, Any]) -> Store:
    where: str | None = private.get("store") or facts.get("store")
    here = facts["host"] == handover.host()
    if not here and (config.load().store or not (where or "").startswith("postgres")):
        where = config.load().store
        if where is None:
            raise ConfigurationError(
                f"The run {facts['name']!r} is on another machine ({facts['host'].partition('#')[0]}), and its ledger cannot be reached "
                "from here. Keep it in PostgreSQL, and set WFLO_STORE to its address on this machine."
            )
    if where is None:  # the run had not opened its store yet: it will be the one that the environment names
        return stores.current()
    settings = replace(config.load(), team=facts.get("team") or config.load().team)
    store = stores.at(where, settings=settings)
    if stores.opened() is None:
        stores.use(store)
    return store


def _known(store: Store, facts: dict[str, Any]) -> None:
    """Make sure that this is the ledger of the run: in another one its budget would begin anew, with all its money.

    Raises:
        ConfigurationError: it is not.
    """
    until = time.monotonic() + (0 if facts["host"] == handover.host() else _PATIENCE)
    while True:
        try:
            if facts["begun"]:
                store.execution(facts["id"])
            for id, _, cap in facts["chain"] if not facts["begun"] else ():
                if cap is not None:
                    store.budget(id)
        except StoreError as error:
            if isinstance(error, StoreUnavailableError):
                raise
            if time.monotonic() >= until:
                raise ConfigurationError(
                    f"The ledger {store.location} does not know the run {facts['name']!r} ({facts['id']}), so its budget cannot be kept "
                    "from here. Set WFLO_STORE to the ledger that the run uses."
                ) from None
            time.sleep(0.2)
        else:
            return
