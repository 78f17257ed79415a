"""botocore and aiobotocore sign what they send, so their calls are admitted, and caps written, before an attempt is signed. The answer
is read by the transport below, urllib3 or aiohttp.

`Endpoint.create_request` makes one attempt out of what was asked, `_get_response` sends it: of every client of every session, also of
those made before. A session that stands on another transport is left to that, which finds a signed request and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from wflo_nb.budget.account import Account
from wflo_nb.capture import gate
from wflo_nb.capture.shown import WISH, Request, concerns
from wflo_nb.capture.transports import admitted
from wflo_nb.capture.transports.admitted import Admitted
from wflo_nb.capture.transports.notice import as_bytes, payer, quietly, quietly_in_loop
from wflo_nb.capture.transports.patching import replace_all

#: Sessions that send through a transport which asks for what was admitted.
_SESSIONS = frozenset({"URLLib3Session", "AIOHTTPSession"})
#: Headers that were made from the body: with one of them it cannot be written again.
_SEALS = ("x-amz-checksum-", "x-amz-content-sha256", "content-md5")


class NotSentError(Exception):
    """Something in botocore's events answered in the provider's place."""


def patch(lib: ModuleType) -> Callable[[], None]:
    """Watch `botocore.endpoint.Endpoint`. Returns the undo."""
    endpoint = lib.Endpoint
    return replace_all((endpoint, "create_request", _wrap_create), (endpoint, "_get_response", _wrap_get))


def patch_async(lib: ModuleType) -> Callable[[], None]:
    """Watch `aiobotocore.endpoint.AioEndpoint`. Returns the undo."""
    endpoint = lib.AioEndpoint
    return replace_all((endpoint, "create_request", _wrap_create_async), (endpoint, "_get_response", _wrap_get_async))


def _asked(endpoint: Any, params: dict[str, Any]) -> tuple[Account, Request] | None:
    account, parts = payer(), urlsplit(params.get("url") or "")
    host, path = parts.hostname or "", unquote(parts.path)
    if account is None or type(endpoint.http_session).__name__ not in _SESSIONS or not concerns(params.get("method", ""), host, path):
        return None
    headers = {str(name).lower(): str(value) for name, value in dict(params.get("headers") or {}).items()}
    sealed = any(name.startswith(_SEALS) for name in headers)
    wishes = {name: value for name, value in headers.items() if name.startswith(WISH)}
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return account, Request(host, path, as_bytes(params.get("body")), signed=sealed, port=port, wishes=wishes)


def _written(params: dict[str, Any], admission: Admitted) -> dict[str, Any]:
    body = None if admission.exchange is None else admission.exchange.body
    return {**params, "body": body} if body else params


def _over(admission: Admitted, error: BaseException) -> None:
    if admission.exchange is not None and not admission.taken:
        admission.exchange.failed(error, sent=False)


def _wrap_create(creating: Any) -> Any:
    create = quietly(creating)

    def create_request(self: Any, params: dict[str, Any], operation_model: Any = None) -> Any:
        asked = _asked(self, params)
        if asked is None:
            return create(self, params, operation_model)
        admission = Admitted(gate.admit(*asked))
        try:
            request = create(self, _written(params, admission), operation_model)
        except BaseException as error:  # no credentials, say
            _over(admission, error)
            raise
        request._wflo = admission
        return request

    return create_request


def _wrap_get(get: Any) -> Any:
    def _get_response(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        admission = request.__dict__.pop("_wflo", None)
        if admission is None:
            return get(self, request, *args, **kwargs)
        admitted.offer(admission)
        try:
            return get(self, request, *args, **kwargs)
        finally:
            admitted.offer(None)
            _over(admission, NotSentError())

    return _get_response


def _wrap_create_async(creating: Any) -> Any:
    create = quietly_in_loop(creating)

    async def create_request(self: Any, params: dict[str, Any], operation_model: Any = None) -> Any:
        asked = _asked(self, params)
        if asked is None:
            return await create(self, params, operation_model)
        admission = Admitted(await gate.admit_in_loop(*asked))
        try:
            request = await create(self, _written(params, admission), operation_model)
        except BaseException as error:
            _over(admission, error)
            raise
        request._wflo = admission
        return request

    return create_request


def _wrap_get_async(get: Any) -> Any:
    async def _get_response(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        admission = request.__dict__.pop("_wflo", None)
        if admission is None:
            return await get(self, request, *args, **kwargs)
        admitted.offer(admission)
        try:
            return await get(self, request, *args, **kwargs)
        finally:
            admitted.offer(None)
            _over(admission, NotSentError())

    return _get_response
