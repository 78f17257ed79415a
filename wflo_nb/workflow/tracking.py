"""``@wflo_nb.track_llm_call``: a name for the calls that a function makes, and a meter for those that no transport sees."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from wflo_nb import _context
from wflo_nb.budget import endings, refusals
from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.refusal import passing
from wflo_nb.errors import ConfigurationError, UnknownModelError, WfloError, format_usd, tell
from wflo_nb.model import Call, CallState, now_us, usd
from wflo_nb.pricing.price import ModelPrice
from wflo_nb.workflow.usage import Reading, adds_up, read
from wflo_nb.workflow.wrapping import Before, How, Watch, wrap


def track_llm_call(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    model: str | None = None,
    provider: str | None = None,
    usage: Callable[[Any], Any] | None = None,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    name: str | None = None,
) -> Any:
    """Name the model calls of a function, and meter it where nothing else does.

        @wflo_nb.track_llm_call                # or with parentheses
        def ask(question): ...

        @wflo_nb.track_llm_call(model="my-model", provider="mine", max_input_tokens=4000, max_output_tokens=500)
        async def generate(prompt): ...

    A call that is seen on its way out gets the function's name as its step, where it has no other, and is counted once. A function
    that makes no such call (a local library, gRPC, a program of its own) is metered by what it returns: the answer of any SDK as an
    object or a dict, or a stream of them; or what `usage` makes of it.

    Under a budget the function is not called when nothing is left. With `max_output_tokens` (and `max_input_tokens`, else the model's
    context window) its dearest cost is held beforehand, as for any other call; without them it is only known afterwards, so that the
    last such call may go beyond the budget.

    Args:
        fn: the function, where the decorator has no parentheses.
        model: what is priced where the answer names no model.
        provider: who sells it, by its OpenTelemetry name.
        usage: makes a `wflo_nb.Usage`, or an object or dict with a usage in it, of what the function returned.
        max_input_tokens: no more than this is ever read.
        max_output_tokens: no more than this is ever generated.
        name: instead of the function's own.

    Raises:
        BudgetExceededError: it does not fit, or an earlier call did not.
        UnknownModelError: under a budget, `model` has no price.
    """
    for what, number in (("max_input_tokens", max_input_tokens), ("max_output_tokens", max_output_tokens)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            raise ConfigurationError(f"{what}={number!r} is not a whole number of tokens.")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        label: str = name or getattr(function, "__name__", None) or type(function).__name__
        declared = _Declared(label, model, provider, usage, max_input_tokens, max_output_tokens)
        return wrap(function, lambda *_: _Tracked(declared))

    return decorate if fn is None else decorate(fn)


class _Declared:
    """What is known of a function before it is called.

    Attributes:
        crossed: its calls were seen below it at least once, so that it is not metered beforehand any more.
    """

    def __init__(
        self,
        name: str,
        model: str | None,
        provider: str | None,
        usage: Callable[[Any], Any] | None,
        max_input: int | None,
        max_output: int | None,
    ) -> None:
        self.name = name
        self.model = model
        self.provider = provider
        self.usage = usage
        self.max_input = max_input
        self.max_output = max_output
        self.crossed = False

    def bound(self, price: ModelPrice | None) -> int | None:
        """The most that it can cost, in nano-USD; None where too little is declared."""
        longest = self.max_input if self.max_input is not None or price is None else price.max_input_tokens
        if price is None or self.max_output is None or longest is None:
            return None
        return price.upper_bound(longest, self.max_output)


class _Tracked(Watch):
    """One call of a function that is tracked."""

    def __init__(self, declared: _Declared) -> None:
        self._declared = declared
        self._account: Account | None = None
        self._call: Call | None = None
        self._price: ModelPrice | None = None
        self._held = False
        self._seen = False
        self._reading = Reading()
        self._started = time.perf_counter()

    # -- around the function -----------------------------------------------------------------------------------------------

    def begin(self) -> Before | None:
        account = self._account = gate.payer()
        if account is None:
            return None
        call = account.new_call(self._declared.provider or "", "tracked", self._declared.model or "", False)
        step = next(iter(_context.steps()), self._declared.name)
        self._call = call = call.changed(step=step, meta={**call.meta, "function": self._declared.name})
        if not self._declared.crossed:
            try:
                self._hold(account, call)
            except WfloError as error:
                raise passing(error) from error.__cause__
        return None

    def _hold(self, account: Account, call: Call) -> None:
        if self._declared.model is not None:
            try:
                self._price = account.book.find(self._declared.provider, self._declared.model)
            except UnknownModelError as error:
                if account.limited and account.unknown_models == "refuse":
                    raise refusals.recorded(account, call, error) from None
            else:
                self._call = call = call.changed(provider=call.provider or self._price.provider)
        if not account.limited or (self._price is not None and self._price.is_free):
            return
        bound = self._declared.bound(self._price)
        if bound is not None:
            with account.line.turn(account.wait) as turn:
                held = None
                while held is None:
                    held = account.reserve(call, bound, bound, last=turn.over)
                    if held is None:
                        turn.waiting = True
                        turn.wait()
                turn.served(held.id)
            self._call, self._held = held, True
        elif any(a.stopped() for a in account.lineage) or not account.left_nano:
            refused = account.reserve(call, 1, 1)  # refused, recorded and latched there
            if refused is not None:
                endings.release(account, refused)  # something came back in this very moment

    def within(self) -> AbstractContextManager[object]:
        frame = _context.Frame(self._declared.name, _context.frame(), weak=True, notice=self._notice)
        return _context.framed(frame)

    def _notice(self, call_id: str) -> None:  # noqa: ARG002 - that there is one says enough
        """A call of the function is about to be metered by itself: ours would be the second row for the same money."""
        self._seen = self._declared.crossed = True
        self._give_back()

    def _give_back(self) -> None:
        if self._held and self._account is not None and self._call is not None:
            self._held = False
            metered = "its calls are metered by themselves"
            endings.finish(self._account, self._call.changed(state=CallState.RELEASED, cost_nano=0, reason=metered, settled_us=now_us()))

    # -- what came back ----------------------------------------------------------------------------------------------------

    def item(self, value: Any) -> None:
        if self._account is not None and not self._seen:
            self._reading = self._reading.plus(self._read(value), added=adds_up(value))

    def _read(self, answer: Any) -> Reading:
        if self._declared.usage is None:
            return read(answer)
        try:
            found = read(self._declared.usage(answer))
        except Exception as error:  # the answer is paid, and the user's
            tell(f"The usage= of {self._declared.name} failed on what it returned ({type(error).__name__}: {error}).")
            return Reading()
        return found if found.model else Reading(found.usage, read(answer).model)

    def done(self, value: Any, how: How) -> None:  # noqa: ARG002 - it is the value that tells
        if self._account is None or self._seen:
            return
        last = self._read(value) if value is not None else Reading()
        reading = last if last.usage is not None else self._reading.plus(last, added=False)
        self._settle(reading)

    def failed(self, error: BaseException) -> None:
        if self._account is None or self._seen:
            return
        if self._reading.usage is not None:
            self._settle(self._reading)
        else:
            self._unknown(f"it ended with {type(error).__name__} before its usage was known")

    def _settle(self, reading: Reading) -> None:
        usage = reading.usage
        if usage is None:
            self._unknown("what it returned has no usage")
            tell(
                f"{self._declared.name} is tracked as a model call, but what it returned has no usage, so its cost is not known. "
                "Return the SDK's answer, or give track_llm_call a usage=…"
            )
            return
        assert self._account is not None
        assert self._call is not None
        model = reading.model or self._declared.model
        price = self._priced(model)
        cost = None if price is None else price.cost(usage)
        reason = None if cost is not None else f"no price is known for {model or 'a model that nobody named'}"
        if cost is None:
            tell(f"{self._declared.name} was metered, but {reason}. Declare one with `%wflo price` or prices={{…}}.")
        elif self._held and cost.nano_usd > self._call.reserved_nano:
            reason = f"broken bound: at most {format_usd(usd(self._call.reserved_nano))} were declared"
            tell(f"{self._declared.name} cost {format_usd(cost.usd)}: {reason}.")
        self._end(
            CallState.SETTLED,
            reason,
            model=self._call.model or model or "",
            provider=self._call.provider or (price.provider if price is not None else ""),
            answered_model=reading.model,
            usage=usage,
            cost_nano=None if cost is None else cost.nano_usd,
            price_source=None if cost is None else cost.price_source,
            price_date=None if cost is None else cost.price_date,
        )

    def _priced(self, model: str | None) -> ModelPrice | None:
        """By the model that the answer names; a price that the user declared for the one that was named before stands."""
        assert self._account is not None
        if self._price is not None and (model in (None, self._declared.model) or self._price.source == "declared"):
            return self._price
        for name in dict.fromkeys(name for name in (model, self._declared.model) if name):
            try:
                return self._account.book.find(self._declared.provider, name)
            except UnknownModelError:
                continue
        return self._price

    def _unknown(self, reason: str) -> None:
        """Paid or not, nobody knows: what was held counts as spent, and where nothing was held no number would be true."""
        assert self._call is not None
        self._end(CallState.UNCONFIRMED, reason, cost_nano=self._call.reserved_nano if self._held else None)

    def _end(self, state: CallState, reason: str | None, **facts: Any) -> None:
        assert self._account is not None
        assert self._call is not None
        latency = round((time.perf_counter() - self._started) * 1000, 3)
        call = self._call.changed(state=state, reason=reason, settled_us=now_us(), latency_ms=latency, **facts)
        record = endings.finish if self._held else endings.record_spent
        record(self._account, call)
        self._held, self._account = False, None
