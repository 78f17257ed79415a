"""HTTP libraries whose calls are noticed and not read yet: urllib3 (with requests and botocore above it) and aiohttp.

A call to a known provider through one of them is refused under a budget and recorded as unmetered without one, and so is what is
evidently a call to a model at any other host. That keeps the promise until they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.refusal import passing
from wflo_nb.capture.transports.patching import replace
from wflo_nb.errors import WfloError


def patch_urllib3(lib: ModuleType) -> Callable[[], None]:
    """Watch `urllib3.HTTPConnectionPool`. Returns the undo."""

    def wrap(send: Any) -> Any:
        def urlopen(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            path = urlsplit(url).path
            account = gate.payer()
            if account is not None and gate.concerns(method.upper(), self.host, path):
                body = args[0] if args else kwargs.get("body")
                _check(account, gate.Request(self.host, path, _bytes(body)), "urllib3")
            return send(self, method, url, *args, **kwargs)

        return urlopen

    return replace(lib.HTTPConnectionPool, "urlopen", wrap)


def patch_aiohttp(lib: ModuleType) -> Callable[[], None]:
    """Watch `aiohttp.ClientSession`. Returns the undo."""

    def wrap(send: Any) -> Any:
        async def _request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
            url = self._build_url(str_or_url) if hasattr(self, "_build_url") else str_or_url
            parts = urlsplit(str(url))
            account, host = gate.payer(), parts.hostname or ""
            if account is not None and gate.concerns(method.upper(), host, parts.path):
                body = kwargs.get("data") if kwargs.get("json") is None else json.dumps(kwargs["json"], default=str)
                request = gate.Request(host, parts.path, _bytes(body))
                await account.ledger.run(_check, lambda _: None, account, request, "aiohttp")
            return await send(self, method, str_or_url, **kwargs)

        return _request

    return replace(lib.ClientSession, "_request", wrap)


def _bytes(body: Any) -> bytes:
    """A body as far as it can be seen before it is sent."""
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body) if isinstance(body, bytes | bytearray) else b""


def _check(account: Account, request: gate.Request, library: str) -> None:
    try:
        gate.turn_away_unread(account, request, f"made through {library}, whose calls cannot be read yet")
    except WfloError as error:
        raise passing(error) from error.__cause__
