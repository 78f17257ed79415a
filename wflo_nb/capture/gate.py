"""The one policy: what may be sent, for how much, and in what words.

A transport shows every request; the gate says «not ours», hands back an `Exchange` that holds the money, or raises.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

from wflo_nb import _context, events
from wflo_nb.budget import endings, loops
from wflo_nb.budget.account import Account
from wflo_nb.budget.line import Turn
from wflo_nb.capture import bounds, formats
from wflo_nb.capture.exchange import Exchange
from wflo_nb.capture.formats.base import Facts, WireFormat
from wflo_nb.capture.quote import Ask, affordable, is_bounded, measure, note_circumstances, set_bounds, tier_of
from wflo_nb.capture.refusal import passing
from wflo_nb.capture.shown import Request, looks_like_a_call, plain, understand
from wflo_nb.capture.turned_away import evident_maker, locate, refuse_call, turn_away
from wflo_nb.errors import UnknownModelError, WfloError
from wflo_nb.model import Call
from wflo_nb.pricing.price import ModelPrice

#: Bytes of a request that take well below a millisecond to read. A longer one does not keep an event loop waiting.
_BRIEF = 16 << 10


def payer() -> Account | None:
    """The account that a call made here and now is charged to."""
    scope = _context.current()
    if not isinstance(scope, Account):
        return None
    return scope.payer() if scope.steps else scope


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
    ask: Ask | None = None
    turn: Turn | None = None
    exchange: Exchange | None = None
    collected = False
    try:
        ask = _understood_at_once(account, request, False)
        if ask is not None:
            exchange = _served_at_once(ask)
            if exchange is not None:
                return exchange
        turn = account.line.turn(account.wait)
        with turn:
            ask = ask or _understood(account, request, False)
            while ask is not None:
                exchange = _served(ask, turn)
                if exchange is not None:
                    return exchange
                if not collected:
                    collected = True
                    gc.collect(1)  # a stream that was just forgotten, never read, holds its money until then: SDKs make cycles
                    if account.ledger.tidy():
                        continue
                turn.wait()
    except BaseException:  # an interrupt when the money was held already
        account.ledger.later(_withdraw, exchange or (ask.exchange if ask else None), turn)
        raise
    return None


async def admit_in_loop(account: Account, request: Request) -> Exchange | None:
    """`admit` for an event loop, which goes on meanwhile: the ledger is asked in its own thread, unless it knows at once."""
    ask: Ask | None = None
    turn: Turn | None = None
    exchange: Exchange | None = None
    try:
        ask = _understood_at_once(account, request, True)
        if ask is not None:
            exchange = _served_at_once(ask)
            if exchange is not None:
                return exchange
        account.ledger.tidy_soon()
        turn = account.line.turn(account.wait, in_loop=True)
        with turn:
            if ask is None:
                ask, exchange = await account.ledger.run(_understood_and_served, lambda both: _withdraw(both[1]), account, request, turn)
            else:
                exchange = await account.ledger.run(_served, _withdraw, ask, turn)
            while ask is not None:
                if exchange is not None:
                    return exchange
                await turn.wait_in_loop()
                if _its_turn(ask, turn):
                    exchange = await account.ledger.run(_served, _withdraw, ask, turn)
    except BaseException:
        account.ledger.later(_withdraw, exchange or (ask.exchange if ask else None), turn)
        raise
    return None


def _understood_and_served(account: Account, request: Request, turn: Turn) -> tuple[Ask | None, Exchange | None]:
    """The first try, in one visit to the ledger's thread."""
    ask = _understood(account, request, True)
    return ask, None if ask is None else _served(ask, turn)


def _withdraw(exchange: Exchange | None, turn: Turn | None = None) -> None:
    """The waiter was cancelled or interrupted before the call was sent. What was never held, or is given back already, stays so."""
    if turn is not None:
        turn.leave()
    if exchange is None:
        return
    line = exchange.account.line
    line.flying.pop(exchange.call.id, None)  # also when it was withdrawn before it knew that it was served
    held = line.held.pop(exchange.call.id, None)
    if held is not None:
        endings.release(exchange.account, exchange.call.changed(reserved_nano=held))


def _its_turn(ask: Ask, turn: Turn) -> bool:
    """Whether the call may ask for its money now. If not, it waits."""
    turn.look()
    if _gathers(ask, turn):
        return False
    if turn.first or turn.over or not ask.hi_nano or ask.exchange.account.figures.stopped is not None:
        return True
    turn.waiting = True
    return False


def _gathers(ask: Ask, turn: Turn) -> bool:
    """Whether the call, which would take what is left because it names no output cap, first lets others join who want a part of it."""
    if ask.longest is None:
        return False
    turn.gathering = turn.gathering or ask.exchange.account.may_run_short(ask.hi_nano)
    return turn.gathering and not turn.settled


def _served(ask: Ask, turn: Turn) -> Exchange | None:
    """One try to hold the money, if it is this call's turn."""
    account = ask.exchange.account
    if turn.gone or not _its_turn(ask, turn):  # gone: cancelled before its try
        return None
    try:
        call = account.reserve(ask.exchange.call, ask.lo_nano, ask.hi_nano, last=turn.over, quote=ask)
    except WfloError as error:
        raise passing(error) from error.__cause__
    if call is None:
        turn.waiting = True
        return None
    return _paid(ask, turn, call)


def _served_at_once(ask: Ask) -> Exchange | None:
    """The same where nobody waits in line, and the ledger knows at once that all which the call may cost is there."""
    account = ask.exchange.account
    if (account.line.turns and account.line.waits) or (ask.longest is not None and account.may_run_short(ask.hi_nano)):
        return None
    call = account.reserve_now(ask.exchange.call, ask.hi_nano)
    return None if call is None else _paid(ask, None, call)


def _paid(ask: Ask, turn: Turn | None, call: Call) -> Exchange:
    """The exchange of a call whose money is held."""
    exchange = ask.exchange
    try:  # before anything else: an interrupt comes between any two calls
        if turn is None:
            exchange.account.line.flying[call.id] = loops.here() if exchange.in_loop else None
        else:
            turn.served(call.id)
        exchange.call = call
        if ask.longest is not None or exchange.facts.stream:
            _rewrite(ask)
            exchange.announce(ask.longest)
    except BaseException:  # an interrupt, or a body that cannot be written again: then nothing is sent
        exchange.account.ledger.later(endings.release, exchange.account, call)
        raise
    return exchange


def _understood(account: Account, request: Request, in_loop: bool) -> Ask | None:
    """What a request asks for; None if it is no call to a model. Spends and holds nothing."""
    try:
        return _read(account, request, in_loop)
    except WfloError as error:
        raise passing(error) from error.__cause__


def _understood_at_once(account: Account, request: Request, in_loop: bool) -> Ask | None:
    """The same in microseconds; None where it may take longer, or be refused, which is recorded."""
    if request.encoding or request.signed or len(request.content) > _BRIEF:
        return None
    format, body = understand(request)
    if format is None or body is None or format.unmetered is not None:
        return None
    try:
        seller = _seller(request, format)
        facts = format.read(body, seller, request.path)
        if facts.media or facts.uses or facts.unbounded is not None or facts.window is not None:
            return None
        price = account.price_at_hand(seller, facts.model)
        if price is None or price.unit is not None:
            return None
        return _asked(account, request, format, body, seller, facts, in_loop, price)
    except WfloError as error:
        raise passing(error) from error.__cause__
    except Exception:  # whatever it is, it is said where it may be recorded
        return None


def _read(account: Account, request: Request, in_loop: bool) -> Ask | None:
    request = plain(request)
    format, body = understand(request)
    if format is None or body is None:
        suspect = format if format is not None and body is None and looks_like_a_call(request, format) else None
        turn_away(account, request.host, request.path, "which no wire format reads", suspect, evident_maker(account, request))
        return None
    if format.unmetered is not None:
        turn_away(account, request.host, request.path, f"which {format.unmetered}", format)
        return None
    try:
        seller = _seller(request, format)
        facts = format.read(body, seller, request.path)
        price = _price(account, format, seller, facts)
        return _asked(account, request, format, body, seller, facts, in_loop, price)
    except WfloError:
        raise
    except RecursionError:
        turn_away(account, request.host, request.path, "which is nested too deeply to be read", format)
    except Exception as error:  # a body of shapes that nobody documents, or a format of another package that is wrong
        turn_away(account, request.host, request.path, f"which could not be read ({type(error).__name__})", format)
    return None


def _seller(request: Request, format: WireFormat) -> str | None:
    """Who answers: the provider that owns the host; for a format of models on one's own machine, its maker."""
    return formats.provider_of(request.host) or (format.provider if format.local else None)


def _asked(
    account: Account,
    request: Request,
    format: WireFormat,
    body: dict[str, Any],
    seller: str | None,
    facts: Facts,
    in_loop: bool,
    price: ModelPrice | None,
) -> Ask:
    region = formats.region_of(request.host)
    call = account.new_call(seller or format.provider, format.api, facts.model, facts.stream, price)
    locate(call, request.host, request.port)
    exchange = Exchange(account, format, facts, price, call, in_loop, seller, region.costs_extra)
    if events.readers:
        exchange.asked = body
    ask = Ask(exchange, body, request.host, 0, "bytes", region.may_cost_extra, tier_of(facts), signed=request.signed)
    if price is not None and not price.is_free and not is_bounded(ask, request.content):
        measure(ask, request.content)
        set_bounds(ask)
        note_circumstances(ask)
    return ask


def _price(account: Account, format: WireFormat, seller: str | None, facts: Facts) -> ModelPrice | None:
    try:
        return account.price(seller, facts.model)
    except UnknownModelError as error:
        if account.refuses_unknown:
            refuse_call(account, account.new_call(seller or format.provider, format.api, facts.model, facts.stream), error)
        return None


def _rewrite(ask: Ask) -> None:
    """Write our output cap and our wish for usage into the request, where they are needed."""
    exchange, body = ask.exchange, ask.body
    plain: bytes | None = None
    if ask.longest is not None:
        cap = affordable(ask, ask.longest)
        exchange.call = replace(exchange.call, cap_written=cap)
        exchange.format.write_cap(body, cap, ask.host)
        plain = bounds.encoded(body)
    if exchange.facts.stream and not ask.signed and exchange.format.ask_usage(body, exchange.seller):
        # Without a cap of ours the caller's own bytes are the plain form.
        exchange.plain = plain if plain is not None else b""
        exchange.body = bounds.encoded(body)
    else:
        exchange.body = plain
