"""The one policy: what may be sent, for how much, and in what words.

A transport shows every request; the gate says «not ours», hands back an `Exchange` that holds the money, or raises.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from wflo_nb import _context
from wflo_nb.budget.account import Account
from wflo_nb.budget.line import Turn
from wflo_nb.capture import bounds, formats, sse
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.formats.base import Facts, WireFormat
from wflo_nb.capture.refusal import passing
from wflo_nb.errors import UnboundedCallError, UnknownModelError, UnsupportedFormatError, WfloError
from wflo_nb.model import Call, CallState, now
from wflo_nb.pricing.book import ModelPrice

#: An output shorter than this is not worth a call: less money than it costs is refused.
LEAST_OUTPUT = 256
#: The cap for models whose largest output is not known.
ASSUMED_OUTPUT = 8192


@dataclass(frozen=True, slots=True)
class Request:
    """What a transport tells about a request."""

    host: str
    path: str
    content: bytes
    encoding: str = ""


def concerns(method: str, host: str, path: str) -> bool:
    """A quick look, before any body is read: might this be a call to a model?"""
    return method == "POST" and (formats.find(path) is not None or formats.provider_of(host) is not None)


def payer() -> Account | None:
    """The account that a call made here and now is charged to."""
    scope = _context.current()
    return scope if isinstance(scope, Account) else None


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that is understood and may be sent as soon as its money is held.

    Attributes:
        lo_nano, hi_nano: the least that makes sense, and the most that it can cost.
        longest: the output cap to write if `hi_nano` is held, None if the caller stated one or nothing is generated.
    """

    exchange: Exchange
    body: dict[str, Any]
    host: str
    tokens: int
    lo_nano: int = 0
    hi_nano: int = 0
    longest: int | None = None


def admit(account: Account, request: Request) -> Exchange | None:
    """Reserve the money for a call, waiting a while if calls in flight may give some back.

    Returns:
        the exchange to follow it, or None if this is no call to a model.

    Raises:
        BudgetExceededError: it does not fit.
        UnboundedCallError, UnknownModelError, UnsupportedFormatError: under a budget, its cost cannot be bounded.
        BudgetUnavailableError: the ledger cannot be reached.

    All of these are also the root errors of the SDKs that are loaded, so that no SDK retries or wraps them.
    """
    with account.line.turn(account.wait) as turn:
        ask = _understood(account, request, False)
        while ask is not None:
            exchange = _served(ask, turn)
            if exchange is not None:
                exchange.announce(ask.longest)
                return exchange
            turn.wait()
    return None


async def admit_in_loop(account: Account, request: Request) -> Exchange | None:
    """`admit` for an event loop, which goes on meanwhile: the ledger is asked in its own thread."""
    with account.line.turn(account.wait, in_loop=True) as turn:
        ask = await account.ledger.run(_understood, lambda _: None, account, request, True)
        while ask is not None:
            if not turn.waiting or _may_ask(ask, turn):
                exchange = await account.ledger.run(_served, _withdraw, ask, turn)
                if exchange is not None:
                    exchange.announce(ask.longest)
                    return exchange
            await turn.wait_in_loop()
    return None


def _withdraw(exchange: Exchange | None) -> None:
    """The waiter was cancelled before the call was sent."""
    if exchange is not None:
        exchange.account.release(exchange.call)


def _may_ask(ask: Ask, turn: Turn) -> bool:
    return turn.first or turn.over or not ask.hi_nano or ask.exchange.account.figures.stopped is not None


def _served(ask: Ask, turn: Turn) -> Exchange | None:
    """One try to hold the money, if it is this call's turn."""
    account = ask.exchange.account
    if turn.gone:  # cancelled before its try
        return None
    if not _may_ask(ask, turn):
        turn.waiting = True
        return None
    try:
        call = account.reserve(ask.exchange.call, ask.lo_nano, ask.hi_nano, last=turn.over)
    except WfloError as error:
        raise passing(error) from error.__cause__
    if call is None:
        turn.waiting = True
        return None
    turn.served(call.id)
    ask.exchange.call = call
    _rewrite(ask)
    return ask.exchange


def _understood(account: Account, request: Request, in_loop: bool) -> Ask | None:
    """What a request asks for; None if it is no call to a model. Spends and holds nothing."""
    try:
        return _read(account, request, in_loop)
    except WfloError as error:
        raise passing(error) from error.__cause__


def _read(account: Account, request: Request, in_loop: bool) -> Ask | None:
    request = _plain(request)
    format, body = _understand(request)
    if format is None or body is None:
        turn_away(account, request.host, request.path, "which no wire format reads")
        return None
    facts = format.read(body)
    seller = formats.provider_of(request.host)
    call = account.new_call(seller or format.provider, format.api, facts.model, facts.stream)
    price = _price(account, call, seller)
    tokens = _input_bound(account, call, facts, price, request.content, body)
    exchange = Exchange(account, format, facts, price, call, in_loop=in_loop, seller=seller, regional=_costs_extra(request.host))
    return _bounded(Ask(exchange, body, request.host, tokens))


def _plain(request: Request) -> Request:
    """The request with its body decoded: bytes that are packed bound nothing."""
    try:
        decoder = sse.decoder(request.encoding)
        return request if decoder is None else replace(request, content=decoder.decompress(request.content), encoding="")
    except Exception:  # LookupError, zlib.error, ZstdError: then it cannot be read
        return request


def _understand(request: Request) -> tuple[WireFormat | None, dict[str, Any] | None]:
    format = formats.find(request.path)
    if format is None:
        return None, None
    try:
        body = json.loads(request.content)
    except ValueError:
        return format, None
    return (format, body) if isinstance(body, dict) and format.recognises(body) else (format, None)


def turn_away(account: Account, host: str, path: str, why: str) -> None:
    """A request that cannot be read: nobody's business elsewhere, but at a known provider it may cost money.

    Recorded as unmetered where no budget applies.

    Raises:
        UnsupportedFormatError: under a budget.
    """
    provider = formats.provider_of(host)
    if provider is None or formats.is_free(path):
        return
    words = f"a request to {host}{path}, {why}"
    call = account.new_call(provider, "unmetered", "", False)
    if account.limited:
        _refuse(
            account,
            call,
            UnsupportedFormatError(f"Refused before it was sent: {words}, so its cost cannot be bounded. Make it outside the budget."),
        )
    account.record_unmetered(replace(call, state=CallState.SETTLED, cost_nano=None, settled_at=now(), reason=words))


def _refuse(account: Account, call: Call, error: WfloError) -> NoReturn:
    account.refuse(call, error)
    raise error


def _price(account: Account, call: Call, seller: str | None) -> ModelPrice | None:
    try:
        return account.book.find(seller, call.model)
    except UnknownModelError as error:
        if account.limited and account.unknown_models == "refuse":
            _refuse(account, call, error)
        return None


def _input_bound(account: Account, call: Call, facts: Facts, price: ModelPrice | None, raw: bytes, body: dict[str, Any]) -> int:
    strict = account.limited and price is not None and not price.is_free
    if facts.unbounded and strict:
        _refuse(
            account,
            call,
            UnboundedCallError(f"Call to {call.model} refused before it was sent: {facts.unbounded}, so no upper bound can be given."),
        )
    tokens = bounds.input_tokens(raw, body) + facts.extra_input
    if facts.window is None or price is None:
        return tokens
    if price.max_input_tokens is None and strict:
        why = f"it has {facts.window}, and the context window of {call.model} is not known"
        _refuse(
            account,
            call,
            UnboundedCallError(f"Call to {call.model} refused before it was sent: {why}. Declare it with `%wflo price … max_input=…`."),
        )
    return max(tokens, price.max_input_tokens or 0)


def _costs_extra(host: str) -> bool:
    """OpenAI's regional hosts (``eu.api.openai.com``) have a surcharge."""
    return host.endswith(".api.openai.com")


def _may_cost_extra(host: str) -> bool:
    """Elsewhere the region, and its surcharge, may be set in the account and not in the request."""
    return host != "api.openai.com"


def _bounded(ask: Ask) -> Ask:
    """The bounds of a call: with an output cap of the caller's they are one, without it we may write a lower cap to make it fit."""
    account, facts, price = ask.exchange.account, ask.exchange.facts, ask.exchange.price
    if price is None or price.is_free:
        return ask

    def bound(output: int) -> int:
        total = output * facts.choices + facts.extra_output
        regional = _may_cost_extra(ask.host)
        return price.upper_bound(ask.tokens, total, service_tier=facts.service_tier, media=facts.media, regional=regional)

    if not facts.produces:
        return replace(ask, lo_nano=bound(0), hi_nano=bound(0))
    if facts.cap is not None or not account.limited:
        most = bound(facts.cap or price.max_output_tokens or 0)
        return replace(ask, lo_nano=most, hi_nano=most)
    longest = _longest(price, ask.tokens)
    return replace(ask, lo_nano=bound(min(LEAST_OUTPUT, longest)), hi_nano=bound(longest), longest=longest)


def _longest(price: ModelPrice, tokens: int) -> int:
    """The longest output to ask for. A provider refuses a cap that does not fit into the context window beside the input."""
    longest, window = price.max_output_tokens or ASSUMED_OUTPUT, price.max_input_tokens
    if window is None or longest < window:
        return longest
    return max(1, window - tokens, window // 4)  # an input is bounded several times too high, so a quarter hardly ever is too much


def _affordable(ask: Ask, longest: int) -> int:
    """The output cap that the money held can pay."""
    facts, price = ask.exchange.facts, ask.exchange.price
    if price is None:
        return longest
    held, regional = ask.exchange.call.reserved_nano, _may_cost_extra(ask.host)
    output = price.affordable_output(held, ask.tokens, facts.choices, service_tier=facts.service_tier, media=facts.media, regional=regional)
    return max(1, min(longest, output - -(-facts.extra_output // facts.choices)))


def _rewrite(ask: Ask) -> None:
    """Write our output cap and our wish for usage into the request, where they are needed."""
    exchange, body = ask.exchange, ask.body
    plain: bytes | None = None
    if ask.longest is not None:
        cap = _affordable(ask, ask.longest)
        exchange.call = replace(exchange.call, cap_written=cap)
        exchange.format.write_cap(body, cap, ask.host)
        plain = _encode(body)
    if exchange.facts.stream and exchange.format.ask_usage(body):
        # Without a cap of ours the caller's own bytes are the plain form.
        exchange.plain = plain if plain is not None else b""
        exchange.body = _encode(body)
    else:
        exchange.body = plain


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
