"""Requests that are not admitted as calls: refused under a budget, recorded or left alone elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from wflo_nb import events
from wflo_nb.budget import endings, refusals
from wflo_nb.budget.account import Account
from wflo_nb.capture import evident, formats
from wflo_nb.capture.formats.base import WireFormat
from wflo_nb.capture.shown import Request, looks_like_a_call, understand
from wflo_nb.errors import UnknownModelError, UnsupportedFormatError, WfloError
from wflo_nb.model import Call, CallState, now_us


def turn_away(account: Account, host: str, path: str, why: str, format: WireFormat | None = None, maker: str | None = None) -> None:
    """A request that cannot be read: nobody's business elsewhere, but at a known provider it may cost money, and so it may
    anywhere at a path where only models are called (`format`), or if it is evidently a call to a model (of `maker`).

    Recorded as unmetered where no budget applies.

    Raises:
        UnsupportedFormatError: under a budget.
    """
    provider = formats.provider_of(host) or (format.provider if format is not None else maker)
    if provider is None or formats.is_free(path, provider):
        return
    words = f"a request to {host}{path}, {why}"
    call = account.new_call(provider, "unmetered", "", False)
    locate(call, host)
    if account.limited:
        refuse_call(
            account,
            call,
            UnsupportedFormatError(f"Refused before it was sent: {words}, so its cost cannot be bounded. Make it outside the budget."),
        )
    endings.record_unmetered(account, replace(call, state=CallState.SETTLED, cost_nano=None, settled_us=now_us(), reason=words))


def turn_away_unread(account: Account, request: Request, why: str) -> None:
    """A request through a library that is not read: as `turn_away`, if it goes to a known provider or is evidently a call to a model.

    What costs nothing, or may cost what it likes by the user's word (``unknown_models="allow"``), is left alone elsewhere.

    Raises:
        UnsupportedFormatError: under a budget.
    """
    if formats.provider_of(request.host) is not None:
        turn_away(account, request.host, request.path, why)
        return
    format, body = understand(request)
    if format is None or not (body is not None or looks_like_a_call(request, format)):
        turn_away(account, request.host, request.path, why, maker=evident_maker(account, request))
        return
    model = format.read(body, None, request.path).model if body else ""
    if not _may_pass(account, model, format.provider if format.local else None):
        turn_away(account, request.host, request.path, why, format)


def evident_maker(account: Account, request: Request) -> str | None:
    """Whose format an unread request seems to be in, if it is evidently a call to a model that costs something."""
    found = evident.model_of(request.path, request.content)
    return found[0] if found is not None and not _may_pass(account, found[1]) else None


def _may_pass(account: Account, model: str, maker: str | None = None) -> bool:
    """Whether a call at a host that nobody knows costs nothing, or may cost what it likes by the user's word. `maker`: of models that
    run on the user's own machines.
    """
    try:
        price = account.price(maker, model)
        # What is billed by the image or the minute has no token price either.
        return price.is_free and (maker is not None or price.source == "declared")
    except UnknownModelError:
        return account.unknown_models == "allow" and not account.refuses_unknown and not any(a.stopped() for a in account.lineage)


def refuse_call(account: Account, call: Call, error: WfloError) -> NoReturn:
    """Record a refusal, and raise it."""
    refusals.recorded(account, call, error)
    raise error


def locate(call: Call, host: str, port: int = 0) -> None:
    """Note where a call goes, for traces and metrics. The ledger can do without."""
    if events.listeners:
        call.meta.update(host=host, port=port)
