"""What one call may cost, before it is sent: its bound, a closer one where money is short, and how it came about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

from wflo_nb.budget import refusals
from wflo_nb.capture import bounds, exact
from wflo_nb.capture.bounds import FoundBy, Reckoning
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.formats.base import Facts
from wflo_nb.config import Variable
from wflo_nb.errors import BudgetExceededError, UnboundedCallError, WfloError
from wflo_nb.pricing.price import ModelPrice, tiers_counted

#: An output shorter than this is not worth a call: less money than it costs is refused.
LEAST_OUTPUT = 256
#: The cap for models whose largest output is not known.
ASSUMED_OUTPUT = 8192
#: What a ledger can hold in one number.
_MOST_NANO = 2**62
#: ``default`` says that the user's account and projects do not run requests at priority by themselves.
_TIER_SETTING = Variable("WFLO_SERVICE_TIER")


@dataclass(eq=False, slots=True)
class Ask:
    """A call that is understood and may be sent as soon as its money is held.

    Attributes:
        tokens: the most input tokens of one round; `found`: how that was found.
        regional: whether a regional surcharge may apply.
        tier: the service tier that bounds it.
        fixed_nano: what the uses of tools may cost, which is held whatever the length of the answer.
        lo_nano, hi_nano: the least that makes sense, and the most that it can cost.
        longest: the output cap to write if `hi_nano` is held, None if the caller stated one or nothing is generated.
        signed: whether no cap can be written into the request.
    """

    exchange: Exchange
    body: dict[str, Any]
    host: str
    tokens: int
    found: FoundBy = "bytes"
    regional: bool = True
    tier: str | None = None
    fixed_nano: int = 0
    lo_nano: int = 0
    hi_nano: int = 0
    longest: int | None = None
    counted: bool = False
    signed: bool = False

    def bound(self, output: int) -> int:
        """The most that the call can cost with so many output tokens per choice, in nano-USD."""
        facts, price = self.exchange.facts, self.exchange.price
        if price is None:
            return 0
        tokens, written = self.tokens, output
        if facts.rounds > 1 or facts.choices > 1 or facts.extra_output or not facts.produces:
            tokens, written = tokens * facts.rounds, _output(facts, output)
        nano = price.upper_bound(tokens, written, service_tier=self.tier, media=facts.media, regional=self.regional)
        return min(nano + self.fixed_nano, _MOST_NANO)

    def closer(self) -> tuple[int, int] | None:
        """Closer bounds by the model's own tokenizer, once; None where it is not at hand or is of no help."""
        if self.counted or self.found == "window" or not self.hi_nano:
            return None
        self.counted = True
        exchange = self.exchange
        tokens = exact.input_tokens(exchange.format, exchange.facts, exchange.seller, self.body)
        if tokens is None or tokens >= self.tokens:
            return None
        self.tokens, self.found = tokens, "tokenizer"
        set_bounds(self)
        return self.lo_nano, self.hi_nano

    def explain(self, error: WfloError) -> dict[str, Any]:
        """Put the arithmetic of `lo_nano`, which did not fit, on the refusal; as plain values for the record of the call."""
        reckoning = _reckoned(self)
        if reckoning is None:
            return {}
        if isinstance(error, BudgetExceededError | UnboundedCallError):
            error.bound = reckoning
        return reckoning.plain()


def _output(facts: Facts, each: int) -> int:
    return (each * facts.choices + facts.extra_output) * facts.rounds if facts.produces else 0


def _unbounded(ask: Ask, why: str, advice: str = "") -> NoReturn:
    account, call = ask.exchange.account, ask.exchange.call
    words = f"Call to {call.model} refused before it was sent: {why}, so no upper bound can be given.{advice}"
    raise refusals.recorded(account, call, UnboundedCallError(words), ask)


def measure(ask: Ask, raw: bytes) -> None:
    """Find the most input tokens of a round, and the most that tools cost.

    Raises:
        UnboundedCallError: under a budget, there is no bound.
    """
    exchange = ask.exchange
    facts, price, strict = exchange.facts, exchange.price, exchange.account.limited
    if price is None:
        return
    ask.tokens = bounds.input_tokens(raw, ask.body) - facts.inline + facts.extra_input
    if facts.images:
        ask.found = "image formula"
    if price.unit is not None and price.unit not in facts.uses and strict:
        _unbounded(ask, f"{facts.model} is billed by the {price.unit}, and such a request does not state how many")
    if facts.unbounded:
        if strict:
            _unbounded(ask, facts.unbounded)
        # Sent, since no budget forbids it; whoever reads its cost is told that it may not be all.
        exchange.call = replace(exchange.call, meta={**exchange.call.meta, "uncounted": facts.unbounded})
    if strict and facts.audio and not price.knows_media:
        _unbounded(ask, "no rate for audio is known", f" Declare its dearest rate with `%wflo price {facts.model} input=…`.")
    if facts.uses:
        fixed = bounds.uses_nano(facts, price)
        if fixed is None and strict:
            _unbounded(ask, f"no price is known for the use of {', '.join(facts.uses)}")
        ask.fixed_nano = fixed or 0
    if facts.window is None:
        return
    ask.found = "window"
    if price.max_input_tokens is None:
        if strict:
            why = f"it has {facts.window}, and the context window of {facts.model} is not known"
            _unbounded(ask, why, " Declare it with `%wflo price … max_input=…`.")
        return
    ask.tokens = max(ask.tokens, price.max_input_tokens)


def is_bounded(ask: Ask, raw: bytes) -> bool:
    """Bound a usual call at once, in what `measure` and `set_bounds` come to for it. False if it is another one."""
    exchange, facts, price = ask.exchange, ask.exchange.facts, ask.exchange.price
    if not facts.usual or exchange.regional or price is None or price.unit is not None or (facts.cap is None and exchange.account.limited):
        return False
    ask.tokens = tokens = bounds.input_tokens(raw, ask.body)
    output = facts.cap or price.max_output_tokens or 0
    ask.lo_nano = ask.hi_nano = min(price.upper_bound(tokens, output, service_tier=ask.tier, regional=ask.regional), _MOST_NANO)
    return True


def tier_of(facts: Facts) -> str | None:
    """The service tier that bounds a call.

    A request that names none runs at the default of the account or project, which may be priority, at up to twice the price: that
    counts, unless the user says that it is not so (``WFLO_SERVICE_TIER=default``).
    """
    tier = facts.service_tier
    return _TIER_SETTING.get() or tier if tier is None or tier == "auto" else tier


#: What a request says to run at the ordinary price, or at what its account has set.
_ORDINARY = frozenset({None, "", "auto", "default", "standard", "standard_only"})


def note_circumstances(ask: Ask) -> None:
    """Note on the call what besides its tokens decides what it costs, for whoever has to price it from its record
    (`wflo_nb.budget.reconcile`). Nothing for ordinary calls.
    """
    exchange = ask.exchange
    found: dict[str, Any] = {}
    if exchange.facts.service_tier not in _ORDINARY:
        found["tier"] = exchange.facts.service_tier
    if exchange.facts.media:
        found["media"] = True
    if exchange.regional or ("inference_geo" in ask.body and ask.body["inference_geo"] not in (None, "global")):
        found["regional"] = True
    if ask.fixed_nano:
        found["uses_nano"] = ask.fixed_nano
    if found:
        exchange.call = exchange.call.changed(meta={**exchange.call.meta, "asked": found})


def set_bounds(ask: Ask) -> None:
    """The bounds of a call: with an output cap of the caller's they are one, without it we may write a lower cap to make it fit."""
    facts, price = ask.exchange.facts, ask.exchange.price
    if price is None:
        return
    if not facts.produces or facts.cap is not None or not ask.exchange.account.limited:
        ask.lo_nano = ask.hi_nano = ask.bound(facts.cap or price.max_output_tokens or 0)
        return
    if ask.signed:  # no lower cap can be written into it: then all that the model may write is held
        if price.max_output_tokens is None:
            why = (
                f"it names no output limit, none can be written into a signed request, and the longest answer of {facts.model} is not known"
            )
            _unbounded(ask, why, " State a limit in the request.")
        ask.lo_nano = ask.hi_nano = ask.bound(price.max_output_tokens)
        return
    ask.longest = longest = _longest(price, ask.tokens)
    ask.lo_nano, ask.hi_nano = ask.bound(min(LEAST_OUTPUT, longest)), ask.bound(longest)


def _longest(price: ModelPrice, tokens: int) -> int:
    """The longest output to ask for. A provider refuses a cap that does not fit into the context window beside the input."""
    longest, window = price.max_output_tokens or ASSUMED_OUTPUT, price.max_input_tokens
    if window is None or longest < window:
        return longest
    return max(1, window - tokens, window // 4)  # an input is bounded several times too high, so a quarter hardly ever is too much


def affordable(ask: Ask, longest: int) -> int:
    """The output cap that the money held can pay."""
    facts, price = ask.exchange.facts, ask.exchange.price
    if price is None:
        return longest
    held = ask.exchange.call.reserved_nano - ask.fixed_nano
    tokens, choices = ask.tokens * facts.rounds, facts.choices * facts.rounds
    output = price.affordable_output(held, tokens, choices, service_tier=ask.tier, media=facts.media, regional=ask.regional)
    return max(1, min(longest, output - -(-facts.extra_output // facts.choices)))


def _reckoned(ask: Ask) -> Reckoning | None:
    facts, price = ask.exchange.facts, ask.exchange.price
    if price is None:
        return None
    if not facts.produces:
        output, by = 0, "nothing is written"
    elif facts.cap is not None:
        output, by = facts.cap, "the cap in the request"
    elif ask.signed:
        output, by = price.max_output_tokens or 0, "the longest answer of the model"
    else:
        output, by = min(LEAST_OUTPUT, _longest(price, ask.tokens)), "the least worth a call"
    tokens = ask.tokens * facts.rounds
    rate_in, rate_out, call, surcharge = price.dearest(tokens, service_tier=ask.tier, media=facts.media, regional=ask.regional)
    return Reckoning(
        model=facts.model,
        input_tokens=tokens,
        input_by=ask.found,
        output_tokens=_output(facts, output),
        output_by=by,
        input_rate_pico=rate_in,
        output_rate_pico=rate_out,
        price_source=price.source,
        price_date=price.date,
        total_nano=ask.bound(output),
        input_why=facts.window or "",
        image_tokens=facts.images,
        rounds=facts.rounds,
        choices=facts.choices,
        call_pico=call,
        surcharge_mille=surcharge,
        tiers=tiers_counted(ask.tier),
        tools=", ".join(facts.uses),
        uses=facts.most_uses,
        use_nano=ask.fixed_nano // facts.most_uses if facts.most_uses else 0,
    )
