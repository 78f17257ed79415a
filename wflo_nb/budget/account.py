"""The money of one execution: what it may spend, has spent and holds.

The invariant is kept by the store, for every budget of the chain and at every instant: ``spent + held <= cap``. The account
adds the latch (after one refusal for lack of money nothing more is sent), the figures that a card shows, and the events.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial

from wflo_nb import _context, events
from wflo_nb.budget import refusals
from wflo_nb.budget.answers import Answers
from wflo_nb.budget.budget import Budget
from wflo_nb.budget.ledger import Ledger, ledger_of, renew_in_children
from wflo_nb.budget.line import WAIT, Line
from wflo_nb.budget.refusals import Quote
from wflo_nb.config import UnknownModels
from wflo_nb.errors import (
    BudgetExceededError,
    BudgetUnavailableError,
    ConfigurationError,
    StoreError,
    UnknownModelError,
    tell,
)
from wflo_nb.events import Figures
from wflo_nb.model import BudgetState, Call, CallState, Execution, new_id, now_us, usd
from wflo_nb.pricing.book import ModelPrice, PriceBook
from wflo_nb.pricing.dearer import dearer
from wflo_nb.store import Elsewhere, Shortfall, Store
from wflo_nb.store.holder import this_holder

_log = logging.getLogger(__name__)

#: Seconds during which a store that failed is not asked again where no cap needs it.
PATIENCE = 10.0


class Account:
    """One execution's account. Thread-safe; entered in the ledger at its first call or by `begin`."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        book: PriceBook,
        *,
        scope: str,
        around: Budget | None = None,
        outer: Account | None = None,
        shared: tuple[Budget, ...] = (),
        unknown_models: UnknownModels = "refuse",
        wait: float = WAIT,
    ) -> None:
        self.store = store
        self.ledger: Ledger = ledger_of(store)
        self.execution = execution
        self.book = book
        self.outer = outer
        self.around = around or (outer.innermost if outer else None)
        self.unknown_models = unknown_models
        self.wait = wait
        self._around: tuple[Account, ...] = outer.lineage if outer else ()
        self.line: Line = outer.line if outer else Line()
        self.answers: Answers = outer.answers if outer else Answers()
        #: Accounts inside this one for the calls of steps that have a budget of their own, by the step's name.
        self.steps: dict[str, Account] = outer.steps if outer else {}
        self.budget: Budget | None = None
        if execution.budget_nano is not None or shared:
            self.budget = Budget(store, execution.id, scope, execution.budget_nano, self.around, shared)
        self.innermost: Budget | None = self.budget or self.around  # what calls are charged to first
        self._chain: tuple[Budget, ...] = self.innermost.chain if self.innermost else ()
        self.begun = self._entered = False
        self.told_of_cap = False
        self._offline_until = 0.0
        self.refusal: BudgetExceededError | None = None
        self._refused_by: tuple[Budget, str, int | None] | None = None
        self._blank = self._form()
        self._figures = Figures(cap_nano=execution.budget_nano)
        self._lock = threading.RLock()  # of the figures: never held while the store is asked
        self._beginning = threading.RLock()
        self.own_cost = 0  # of its calls in this process, without those of executions inside it
        self._elsewhere = Elsewhere()
        renew_in_children(self)

    def renew_locks(self) -> None:
        """In a forked child."""
        self._lock, self._beginning = threading.RLock(), threading.RLock()
        self._blank = self._form()
        self.book.renew_locks()
        for budget in self._chain:
            budget.renew_locks()

    def _form(self) -> Call:
        """What all calls of this process have in common."""
        e = self.execution
        return Call("", e.id, "", "", "", CallState.RESERVED, 0, cell=e.cell, cell_id=e.cell_id, holder=this_holder())

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.execution.id

    @property
    def lineage(self) -> tuple[Account, ...]:
        """The account itself and those of the executions around it, innermost first."""
        return (self, *self._around)

    def payer(self) -> Account:
        """The account for a call that is made here: that of the innermost step which has a budget, if it lies in this account."""
        for name in _context.steps() if self.steps else ():
            inner = self.steps.get(name)
            if inner is not None:
                return inner if self in inner.lineage else self
        return self

    @property
    def limited(self) -> bool:
        """Whether any cap applies to this account's calls."""
        for budget in self._chain:  # noqa: SIM110 - asked for each call: a generator takes three times as long
            if budget.cap_nano is not None or budget.shared:  # of a shared one somebody else may set the cap at any moment
                return True
        return False

    @property
    def offline(self) -> bool:
        """Whether the store failed a moment ago and no cap applies: calls go on, are counted here alone, and recorded when it is back."""
        return self._offline_until > 0 and time.monotonic() < self._offline_until and not self.limited

    @property
    def refuses_unknown(self) -> bool:
        """Whether calls without a known price are refused. What a block inside allows does not bind the caps around it."""
        return any(account.limited and account.unknown_models == "refuse" for account in self.lineage)

    def price(self, provider: str | None, model: str) -> ModelPrice:
        """The price of a model here. Under a cap around this account it is never below what the cap's own book says.

        Raises:
            UnknownModelError: this account's book has none.
        """
        price = self.book.find(provider, model)
        for account in self._around:
            if account.book is not self.book and account.limited:
                with suppress(UnknownModelError):  # then what the user declared inside is all that is known
                    price = dearer(price, account.book.find(provider, model))
        return price

    def price_at_hand(self, provider: str | None, model: str) -> ModelPrice | None:
        """`price` as it was found before, and where no price of an account around this one may be the dearer; else None."""
        for account in self._around:
            if account.book is not self.book:
                return None
        return self.book.at_hand(provider, model)

    @property
    def left_nano(self) -> int | None:
        """What a new call may ask for by the ledger at this moment, in nano-USD; None where no cap applies.

        Raises:
            BudgetUnavailableError: the ledger cannot be reached.
        """
        try:
            tightest = self.tightest()
        except StoreError as error:
            self.unreachable(error)
            return None
        return None if tightest is None else tightest.left_nano

    @property
    def figures(self) -> Figures:
        """Money and counts now."""
        return self._figures

    def begin(self) -> None:
        """Enter the execution and its budgets in the ledger, once.

        Raises:
            BudgetUnavailableError: there is a cap and the ledger cannot be reached: nothing may be sent. Without a cap the user is
                warned and work goes on.
        """
        if self.begun:
            return
        if self.outer is not None:
            self.outer.begin()
        with self._beginning:
            if not self._entered:
                self._enter()
                self._entered = True
                events.emit(events.ExecutionStarted(self.execution, self._figures))
                self.begun = True  # only now: nobody is to hear of a call before

    def _enter(self) -> None:
        try:
            self._write_begin()
        except StoreError as error:
            self.unreachable(error)
            self.ledger.keep(self._write_begin)

    def _write_begin(self) -> None:
        begin = partial(self.store.begin_execution, self.execution, holder=this_holder())
        if self.budget is not None and self.budget.open_by(lambda row: begin(budget=row) or row):
            return
        if self.innermost is not None:
            self.innermost.open()
        begin()

    def unreachable(self, error: StoreError) -> None:
        """The ledger failed. Without a cap work goes on, and the user is told.

        Raises:
            BudgetUnavailableError: there is one.
        """
        if self.limited:
            raise refusals.unreachable(
                BudgetUnavailableError(
                    f"The ledger {self.store.location} cannot be used, so no paid call may be sent under a budget: {error} "
                    f"Repair it, or switch with `%wflo connect`."
                )
            ) from error
        first, self._offline_until = not self._offline_until, time.monotonic() + PATIENCE
        if first:
            tell(f"Calls of {self.execution.workflow} are counted but not recorded until the ledger can be written again: {error}")

    # -- money -----------------------------------------------------------------------------------------------------------

    def new_call(self, provider: str, api: str, model: str, stream: bool, price: ModelPrice | None = None) -> Call:
        """A call of this execution that is about to be made, at `price` if one is known."""
        inner = self.innermost
        id = new_id("call")
        step, labels = _context.announce(id)
        return self._blank.changed(  # filling in a form: making the record anew takes five times as long
            id=id,
            provider=provider,
            api=api,
            model=model,
            created_us=now_us(),
            budget_id=inner.id if inner is not None else None,
            stream=stream,
            price_source=price.source if price is not None else None,
            price_date=price.date if price is not None else None,
            step=step,
            meta=labels,
        )

    def reserve(self, call: Call, lo_nano: int, hi_nano: int, *, last: bool = True, quote: Quote | None = None) -> Call | None:
        """Hold between `lo_nano` and `hi_nano` for a call on every budget of the chain, in one atomic step.

        Returns:
            the call with its `reserved_nano`; None if it does not fit now but may when calls in flight are over, and this was not
            its `last` try.

        Raises:
            BudgetExceededError: not even `lo_nano` fits, or the execution was stopped before.
            BudgetUnavailableError: the ledger cannot be reached.
        """
        self.begin()
        stopped = self.stopped()
        for account in self._around:
            stopped = stopped or account.stopped()
        # Without money, what costs nothing may go on, and not what nobody knows the price of.
        if stopped and (lo_nano > 0 or call.price_source is None or stopped == "user"):
            first = self.refusal.call_id if self.refusal else None
            facts = {"stopped": stopped, "first": first, "requested_nano": lo_nano}
            raise refusals.recorded(self, call, refusals.latched(self, call, lo_nano, stopped), quote, facts)
        amount, short = hi_nano, None
        if not self.offline:
            try:
                self.ledger.catch_up()
                chain = self.innermost.rows() if self.innermost else []
                held = self._hold(call, chain, lo_nano, hi_nano)
                if isinstance(held, Shortfall) and quote is not None and (closer := quote.closer()) is not None:
                    lo_nano, hi_nano = closer
                    held = self._hold(call, chain, lo_nano, hi_nano)
                if isinstance(held, Shortfall):  # asked in here: an interrupt comes after any call
                    short = held
                else:
                    amount = held
            except StoreError as error:
                self.unreachable(error)
            except BaseException:  # an interrupt, perhaps when the hold was already made
                self.ledger.later(self._forget, call)
                raise
        if short is not None:
            # By the rows that were asked: a shared budget may have another one by now, of a new period.
            refuser = dict(zip(chain, self._chain, strict=True)).get(short.budget.id)
            if refuser is not None:
                refuser.room.told(short.budget)
            if not last and short.budget.held_nano and (short.budget.cap_nano or 0) - short.budget.spent_nano >= lo_nano:
                return None
            refusal = refusals.exceeded(self, call, short.budget, lo_nano)
            self._latch(refusal, short.budget, refuser)
            raise refusals.recorded(self, call, refusal, quote, refusals.figures(self.store, chain, short.budget, lo_nano))
        try:
            call = call.changed(reserved_nano=amount)
            self.count(call, amount, held=amount, in_flight=1)
            self.line.held[call.id] = amount
        except BaseException:
            self.ledger.later(self._forget, call)
            raise
        self.ledger.tidy()
        return call

    def reserve_now(self, call: Call, nano: int) -> Call | None:
        """Hold exactly `nano` for a call, if that can be answered in microseconds. None, and nothing is held or refused, if it cannot;
        then `reserve` tells.
        """
        if self.ledger.unwritten or (self._offline_until > 0 and self.offline):
            return None
        for account in (self, *self._around):
            if not account.begun or account._figures.stopped is not None:
                return None
        ids = []
        for budget in self._chain:
            if budget.shared and not budget.turned:
                return None
            ids.append(budget.id)
        try:
            held = self.store.reserve_now(call, ids, lo_nano=nano, hi_nano=nano, share=1)
            if not isinstance(held, int):
                return None
            call = call.changed(reserved_nano=held)
            self.count(call, held, held=held, in_flight=1)
            self.line.held[call.id] = held
        except StoreError:  # `reserve` knows what to do about it
            return None
        except BaseException:  # an interrupt, perhaps when the hold was already made
            self.ledger.later(self._forget, call)
            raise
        return call

    def may_run_short(self, hi_nano: int) -> bool:
        """Whether there may not be so much left for each call in line, as far as is known without asking the ledger."""
        if self.innermost is None or self._figures.stopped is not None:
            return False
        wanted = hi_nano * max(1, len(self.line))
        return any(budget.room.nano is not None and budget.room.nano < wanted for budget in self._chain)

    def stopped(self) -> str | None:
        """Why nothing more is sent, if so. A cap that was raised since it refused lets calls through again, and so does a new period."""
        by = self._refused_by
        if by is not None and self._figures.stopped == "budget" and by[0].eased(by[1], by[2]):
            with self._lock:
                if self._refused_by is by and self._figures.stopped == "budget":
                    self.refusal = self._refused_by = None
                    self._figures = replace(self._figures, stopped=None)
        return self._figures.stopped

    def _latch(self, error: BudgetExceededError, row: BudgetState, refuser: Budget | None) -> None:
        """Send nothing more from here, out to the last execution that the `refuser`, whose row had too little left, belongs to."""
        its = [a for a in self.lineage if refuser and a.budget and refuser.key in {b.key for b in (a.budget, *a.budget.beside)}]
        for account in self.lineage:
            with account._lock:
                account.refusal = account.refusal or error
                account._refused_by = (refuser, row.id, row.cap_nano) if refuser else None
                account._figures = replace(account._figures, stopped=account._figures.stopped or "budget")
            if its and account is its[-1]:
                return

    def budget_of(self, id: str) -> Budget | None:
        """The budget that calls are charged to whose current row has this id."""
        return next((b for b in self._chain if b.id == id), None)

    def _hold(self, call: Call, chain: list[str], lo: int, hi: int) -> int | Shortfall:
        # Holds of calls in flight are out of what is left already: only those who stand in line share it.
        share = max(1, len(self.line)) if lo < hi else 1
        held = self.store.reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
        if isinstance(held, Shortfall) and self.ledger.drain():  # refunds of earlier calls may have been on their way
            held = self.store.reserve(call, chain, lo_nano=lo, hi_nano=hi, share=share)
        return held

    def tightest(self) -> BudgetState | None:
        """The budget that has the least left, as the ledger has it; None without a cap."""
        states = [b.state() for b in self._chain if b.cap_nano is not None]
        return min(states, key=lambda s: s.left_nano if s.left_nano is not None else 2**63, default=None)

    def show_delivered(self, error: BudgetExceededError) -> None:
        """Let the refusal give what calls had delivered before: their answers are paid."""
        error._delivered = self.answers.all()

    def count_end(self, call: Call, held: int) -> None:
        """Put in the figures how a call ended that held so much."""
        cost, usage, sent = call.cost_nano or 0, call.usage, call.state is not CallState.RELEASED
        self.line.held.pop(call.id, None)
        with self._lock:
            self.own_cost += cost
        self.count(
            call,
            cost - held,
            spent=cost,
            held=-held,
            unconfirmed=cost if call.state is CallState.UNCONFIRMED else 0,
            calls=int(sent),
            in_flight=-1,
            unpriced=int(sent and call.cost_nano is None),
            input_tokens=usage.input_tokens if usage is not None else 0,
            output_tokens=usage.output_tokens if usage is not None else 0,
        )

    def _forget(self, call: Call) -> None:
        self.store.finish(call.changed(state=CallState.RELEASED, cost_nano=0, reason="interrupted before it was sent", settled_us=now_us()))

    def count(self, call: Call, taken: int, **more: int) -> None:
        """Add `more` (see `Figures.plus`) to the figures of this account and of those around it, whose budgets the call is charged to as
        well; so much was `taken` out of these.
        """
        for budget in self._chain:
            room = budget.room
            if room.nano is not None:
                room.nano -= taken
        heard = events.listeners
        for account in (self, *self._around):
            with account._lock:
                account._figures = figures = account._figures.plus(**more)
            if heard:
                events.emit(events.CallChanged(call, figures) if account is self else events.BudgetChanged(account.id, figures))
        if self.line.turns:
            self.line.moved()

    # -- the user's hand ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Send nothing more; calls in flight finish and are settled."""
        self._set(stopped="user")

    def set_cap(self, nano: int) -> None:
        """Raise or lower this execution's own cap. Raising it lets calls through again after a refusal.

        Raises:
            ConfigurationError: it was started without a budget, so that what it spent before would not be in the new one.
        """
        if self.budget is None:
            raise ConfigurationError(
                "This run was started without a budget. Give it one at its start: %%wflo budget=… or execution(budget_usd=…)."
            )
        self.budget.set_cap(nano)
        self._set(cap_nano=nano)
        self.stopped()

    def _set(self, **changes: object) -> None:
        with self._lock:
            self._figures = figures = replace(self._figures, **changes)  # type: ignore[arg-type]
        events.emit(events.BudgetChanged(self.id, figures))
        self.line.moved()

    def take_in(self, found: Elsewhere, refused: str | None) -> None:
        """Other processes did this for the execution so far: their money and calls enter the figures, and their refusal for lack of money,
        if one of them was `refused` in these words, becomes ours.
        """
        with self._lock:
            before, self._elsewhere = self._elsewhere, found
            sums = {f.name: getattr(found, f.name) - getattr(before, f.name) for f in fields(found) if f.name != "short_of_money"}
            self._figures = replace(self._figures, **{name: getattr(self._figures, name) + more for name, more in sums.items()})
        if refused is not None and self.refusal is None:
            self.refusal = BudgetExceededError(
                f"In a worker process: {refused}",
                execution_id=self.id,
                cell=self.execution.cell,
                spent_usd=usd(self._figures.spent_nano),
                budget_usd=usd(self._figures.cap_nano or 0),
            )
            self._set(stopped="budget")
        elif any(sums.values()):
            self._set()
