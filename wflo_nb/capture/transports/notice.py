"""Calls that are noticed and cannot be read: refused under a budget, recorded as unmetered without one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from wflo_nb.budget.account import Account
from wflo_nb.capture import formats, gate
from wflo_nb.capture.refusal import passing
from wflo_nb.capture.shown import Request
from wflo_nb.capture.turned_away import turn_away, turn_away_unread
from wflo_nb.errors import WfloError

_sending: ContextVar[bool] = ContextVar("wflo_nb_sending", default=False)


def payer() -> Account | None:
    """Who pays for what is sent here and now; None also if a transport above has asked already."""
    return None if _sending.get() else gate.payer()


def quietly(send: Callable[..., Any]) -> Callable[..., Any]:
    """`send`, below which nothing is counted again: neither by what it stands on, nor by a wrapper of ours that somebody else's
    wrapper has kept in place. For calls that were counted only: what other requests do on their way may be a call of its own.
    """

    def sent(*args: Any, **kwargs: Any) -> Any:
        token = _sending.set(True)
        try:
            return send(*args, **kwargs)
        finally:
            _sending.reset(token)

    return sent


def quietly_in_loop(send: Callable[..., Any]) -> Callable[..., Any]:
    """`quietly` for what is awaited."""

    async def sent(*args: Any, **kwargs: Any) -> Any:
        token = _sending.set(True)
        try:
            return await send(*args, **kwargs)
        finally:
            _sending.reset(token)

    return sent


def request(account: Account, shown: Request, library: str) -> None:
    """An HTTP request through a library that is not read.

    Raises:
        UnsupportedFormatError: under a budget, if it goes to a known provider or is evidently a call to a model.
    """
    try:
        turn_away_unread(account, shown, f"made through {library}, whose calls cannot be read")
    except WfloError as error:
        raise passing(error) from error.__cause__


async def request_in_loop(account: Account, shown: Request, library: str) -> None:
    """`request` for an event loop: the ledger is written in its own thread."""
    await account.ledger.run(request, lambda _: None, account, shown, library)


def session(account: Account, host: str, path: str, kind: str) -> None:
    """A connection over which calls may follow, none of which can be read: a websocket, a gRPC method, another program.

    Raises:
        UnsupportedFormatError: under a budget, if it goes to a known provider or to a path where only models are called.
    """
    try:
        turn_away(account, host, path, f"made by {kind}, which cannot be read", formats.find(path))
    except WfloError as error:
        raise passing(error) from error.__cause__


async def session_in_loop(account: Account, host: str, path: str, kind: str) -> None:
    """`session` for an event loop."""
    await account.ledger.run(session, lambda _: None, account, host, path, kind)


def as_bytes(body: object) -> bytes:
    """A body as far as it can be seen before it is sent."""
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body) if isinstance(body, bytes | bytearray) else b""
