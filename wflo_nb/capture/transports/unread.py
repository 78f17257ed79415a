"""HTTP libraries whose calls are noticed and not read yet: urllib3 (with requests and botocore above it) and aiohttp.

A call to a known provider through one of them is refused under a budget and recorded as unmetered without one. That keeps the
promise until they are read; calls to hosts that nobody knows pass unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from wflo_nb.capture import formats, gate
from wflo_nb.capture.refusal import passing
from wflo_nb.capture.transports.patching import replace
from wflo_nb.errors import WfloError


def patch_urllib3(lib: ModuleType) -> Callable[[], None]:
    """Watch `urllib3.HTTPConnectionPool`. Returns the undo."""

    def wrap(send: Any) -> Any:
        def urlopen(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            path = urlsplit(url).path
            if _costs(method, self.host):
                _check(self.host, path, "urllib3")
            return send(self, method, url, *args, **kwargs)

        return urlopen

    return replace(lib.HTTPConnectionPool, "urlopen", wrap)


def patch_aiohttp(lib: ModuleType) -> Callable[[], None]:
    """Watch `aiohttp.ClientSession`. Returns the undo."""

    def wrap(send: Any) -> Any:
        async def _request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
            url = self._build_url(str_or_url) if hasattr(self, "_build_url") else str_or_url
            parts = urlsplit(str(url))
            account = gate.payer()
            if account is not None and _costs(method, parts.hostname or ""):
                await account.ledger.run(_check, lambda _: None, parts.hostname or "", parts.path, "aiohttp", account)
            return await send(self, method, str_or_url, **kwargs)

        return _request

    return replace(lib.ClientSession, "_request", wrap)


def _costs(method: str, host: str) -> bool:
    return method.upper() == "POST" and formats.provider_of(host) is not None


def _check(host: str, path: str, library: str, account: Any = None) -> None:
    account = account or gate.payer()
    if account is None:
        return
    try:
        gate.turn_away(account, host, path, f"made through {library}, whose calls cannot be read yet")
    except WfloError as error:
        raise passing(error) from error.__cause__
