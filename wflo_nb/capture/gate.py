"""The one policy: what may be sent, for how much, and in what words.

A transport shows every request; the gate says «not ours», hands back an `Exchange` that holds the money, or raises.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from wflo_nb import _context
from wflo_nb.budget.account import Account
from wflo_nb.capture import bounds, formats
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


def admit(account: Account, request: Request, in_loop: bool = False) -> Exchange | None:
    """Reserve the money for a call.

    Returns:
        the exchange to follow it, or None if this is no call to a model.

    Raises:
        BudgetExceededError: it does not fit.
        UnboundedCallError, UnknownModelError, UnsupportedFormatError: under a budget, its cost cannot be bounded.
        BudgetUnavailableError: the ledger cannot be reached.

    All of these are also the root errors of the SDKs that are loaded, so that no SDK retries or wraps them.
    """
    try:
        return _admit(account, request, in_loop)
    except WfloError as error:
        raise passing(error) from error.__cause__


def _admit(account: Account, request: Request, in_loop: bool) -> Exchange | None:
    format, body = _understand(request)
    if format is None or body is None:
        _unreadable(account, request)
        return None
    facts = format.read(body)
    seller = formats.provider_of(request.host)
    call = account.new_call(seller or format.provider, format.api, facts.model, facts.stream)
    price = _price(account, call, seller)
    tokens = _input_bound(account, call, facts, price, request.content, body)
    exchange = Exchange(account, format, facts, price, call, in_loop=in_loop, seller=seller, regional=_costs_extra(request.host))
    _reserve(exchange, tokens, _may_cost_extra(request.host))
    _rewrite(exchange, body, request.host)
    return exchange


def _understand(request: Request) -> tuple[WireFormat | None, dict[str, Any] | None]:
    format = formats.find(request.path)
    if format is None:
        return None, None
    try:
        content = gzip.decompress(request.content) if request.encoding == "gzip" else request.content
        body = json.loads(content)
    except (ValueError, OSError, EOFError):
        return format, None
    return (format, body) if isinstance(body, dict) and format.recognises(body) else (format, None)


def _unreadable(account: Account, request: Request) -> None:
    """A request that no format reads: nobody's business elsewhere, but at a known provider it may cost money."""
    provider = formats.provider_of(request.host)
    if provider is None or formats.is_free(request.path):
        return
    words = f"a request to {request.host}{request.path}, which no wire format reads"
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


def _reserve(exchange: Exchange, tokens: int, regional: bool) -> None:
    """Hold the upper bound of a call whose input is at most `tokens`; without an output cap, as much as is there and useful."""
    account, facts, price, call = exchange.account, exchange.facts, exchange.price, exchange.call
    if price is None or price.is_free:
        exchange.call = account.reserve(call, 0, 0)
        return

    def bound(output: int) -> int:
        total = output * facts.choices + facts.extra_output
        return price.upper_bound(tokens, total, service_tier=facts.service_tier, media=facts.media, regional=regional)

    if not facts.produces:
        exchange.call = account.reserve(call, bound(0), bound(0))
    elif facts.cap is not None or not account.limited:
        most = bound(facts.cap or price.max_output_tokens or 0)
        exchange.call = account.reserve(call, most, most)
    else:
        longest = price.max_output_tokens or ASSUMED_OUTPUT
        call = account.reserve(call, bound(min(LEAST_OUTPUT, longest)), bound(longest))
        output = price.affordable_output(
            call.reserved_nano, tokens, facts.choices, service_tier=facts.service_tier, media=facts.media, regional=regional
        )
        spare = output - -(-facts.extra_output // facts.choices)
        exchange.call = replace(call, cap_written=max(1, min(longest, spare)))


def _rewrite(exchange: Exchange, body: dict[str, Any], host: str) -> None:
    capped = exchange.call.cap_written is not None
    if exchange.call.cap_written is not None:
        exchange.format.write_cap(body, exchange.call.cap_written, host)
    plain = _encode(body) if capped else None
    if exchange.facts.stream and exchange.format.ask_usage(body):
        # Without a cap of ours the caller's own bytes are the plain form.
        exchange.plain = plain if plain is not None else b""
        exchange.body = _encode(body)
    else:
        exchange.body = plain


def _encode(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
