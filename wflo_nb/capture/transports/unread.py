"""HTTP libraries whose calls are noticed and not read: Python's own http.client (urllib.request stands on it), and versions of
urllib3 and aiohttp that are too old to be read.

A call to a known provider through one of them is refused under a budget and recorded as unmetered without one, and so is what is
evidently a call to a model at any other host.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from wflo_nb.capture.shown import Request, concerns, target
from wflo_nb.capture.transports import notice
from wflo_nb.capture.transports.patching import replace, replace_all


def patch_http_client(lib: ModuleType) -> Callable[[], None]:
    """Watch `http.client.HTTPConnection`: whole requests, and those that are put together piece by piece. Returns the undo."""

    def noticed(self: Any, method: str, url: str, body: Any) -> bool:
        account = notice.payer()
        if account is None:
            return False
        parts = target(url)
        host, path = parts.hostname or getattr(self, "_tunnel_host", None) or self.host, unquote(parts.path)
        if not concerns(method.upper(), host, path):
            return False
        notice.request(account, Request(host, path, notice.as_bytes(body)), "http.client")
        return True

    def wrap(send: Any) -> Any:
        once = notice.quietly(send)

        def request(self: Any, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> Any:
            return (once if noticed(self, method, url, body) else send)(self, method, url, body, *args, **kwargs)

        return request

    def wrap_pieces(begin: Any) -> Any:
        def putrequest(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            noticed(self, method, url, None)  # its body comes later
            return begin(self, method, url, *args, **kwargs)

        return putrequest

    return replace_all((lib.HTTPConnection, "request", wrap), (lib.HTTPConnection, "putrequest", wrap_pieces))


def patch_urllib3(lib: ModuleType) -> Callable[[], None]:
    """Watch `urllib3.HTTPConnectionPool` of a version that is not read. Returns the undo."""

    def wrap(send: Any) -> Any:
        once = notice.quietly(send)

        def urlopen(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            parts = target(url)
            host, path = parts.hostname or self.host, unquote(parts.path)
            account = notice.payer()
            if account is not None and concerns(method.upper(), host, path):
                body = args[0] if args else kwargs.get("body")
                notice.request(account, Request(host, path, notice.as_bytes(body)), "this version of urllib3")
                return once(self, method, url, *args, **kwargs)
            return send(self, method, url, *args, **kwargs)

        return urlopen

    return replace(lib.HTTPConnectionPool, "urlopen", wrap)


def wrap_aiohttp(send: Any) -> Any:
    """In the place of `ClientSession._request`, of a version that is not read."""
    once = notice.quietly_in_loop(send)

    async def _request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
        url = self._build_url(str_or_url) if hasattr(self, "_build_url") else str_or_url
        parts = urlsplit(str(url))
        account, host, path = notice.payer(), parts.hostname or "", unquote(parts.path)
        if account is not None and concerns(method.upper(), host, path):
            body = kwargs.get("data") if kwargs.get("json") is None else json.dumps(kwargs["json"], default=str)
            shown = Request(host, path, notice.as_bytes(body))
            await notice.request_in_loop(account, shown, "this version of aiohttp")
            return await once(self, method, str_or_url, **kwargs)
        return await send(self, method, str_or_url, **kwargs)

    return _request
