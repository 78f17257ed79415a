"""Ways to a model that carry no request we could read: websockets, gRPC. Each is noticed where it is opened or called: refused under a
budget and recorded as unmetered without one, if it leads to a known provider.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from wflo_nb.capture.transports import notice
from wflo_nb.capture.transports.patching import replace, replace_all

_WEBSOCKET = "a websocket"
#: gRPC methods of the providers that only look, or take away.
_FREE_METHOD = re.compile(r"/(Get|List|Count|Watch|Check|Cancel|Delete)\w*$")


# -- websockets --------------------------------------------------------------------------------------------------------------


def patch_websockets(lib: ModuleType) -> Callable[[], None]:
    """Watch a client module of `websockets`: ``asyncio.client`` or ``sync.client``. Returns the undo."""
    return replace(lib.ClientConnection, "handshake", _wrap_handshake)


def patch_old_websockets(lib: ModuleType) -> Callable[[], None]:
    """Watch ``websockets.legacy.client``. Returns the undo."""
    return replace(lib.WebSocketClientProtocol, "handshake", _wrap_handshake)


def _where(connection: Any, args: tuple[Any, ...]) -> tuple[str, str]:
    """Host and path of a handshake: of the protocol's own URI, or of the first argument in older versions."""
    protocol = getattr(connection, "protocol", None)
    uri = getattr(protocol, "uri", None) or getattr(protocol, "wsuri", None) or args[0]
    return uri.host, str(uri.resource_name).partition("?")[0]


def _wrap_handshake(shake: Any) -> Any:
    if inspect.iscoroutinefunction(shake):
        shake = notice.quietly_in_loop(shake)

        async def handshake_in_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
            account = notice.payer()
            if account is not None:
                await notice.session_in_loop(account, *_where(self, args), _WEBSOCKET)
            return await shake(self, *args, **kwargs)

        return handshake_in_loop

    shake = notice.quietly(shake)

    def handshake(self: Any, *args: Any, **kwargs: Any) -> Any:
        account = notice.payer()
        if account is not None:
            notice.session(account, *_where(self, args), _WEBSOCKET)
        return shake(self, *args, **kwargs)

    return handshake


def patch_websocket_client(lib: ModuleType) -> Callable[[], None]:
    """Watch `websocket.WebSocket` of the package ``websocket-client``. Returns the undo."""

    def wrap(connect: Any) -> Any:
        connect = notice.quietly(connect)

        def connecting(self: Any, url: str, **options: Any) -> Any:
            account, parts = notice.payer(), urlsplit(url)
            if account is not None:
                notice.session(account, parts.hostname or "", parts.path, _WEBSOCKET)
            return connect(self, url, **options)

        return connecting

    return replace(lib.WebSocket, "connect", wrap)


# -- gRPC --------------------------------------------------------------------------------------------------------------------

_KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


def patch_grpc(lib: ModuleType) -> Callable[[], None]:
    """Watch ``grpc._channel``: every way to call a method of a channel. Returns the undo."""
    classes = [getattr(lib, f"_{kind}MultiCallable") for kind in (*_KINDS, "SingleThreadedUnaryStream")]
    wrap = functools.partial(_wrap_method, lambda call: call._target)
    return replace_all(*((cls, name, wrap) for cls in classes for name in ("__call__", "with_call", "future") if name in cls.__dict__))


def patch_grpc_aio(lib: ModuleType) -> Callable[[], None]:
    """Watch ``grpc.aio._channel``. Returns the undo."""
    classes = [getattr(lib, f"{kind}MultiCallable") for kind in _KINDS]
    wrap = functools.partial(_wrap_method, lambda call: call._channel.target)
    return replace_all(*((cls, "__call__", wrap) for cls in classes))


def _wrap_method(target: Callable[[Any], bytes | str], call: Any) -> Any:
    def calling(self: Any, *args: Any, **kwargs: Any) -> Any:
        account = notice.payer()
        if account is not None:
            method = _text(self._method)
            if not _FREE_METHOD.search(method):
                # A plain function also in grpc.aio, so that the ledger is written here; only for known providers.
                notice.session(account, _host(_text(target(self))), method, "gRPC")
        return call(self, *args, **kwargs)

    return calling


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _host(target: str) -> str:
    """The host in a channel's target, such as ``dns:///example.org:443``.

    https://github.com/grpc/grpc/blob/master/doc/naming.md
    """
    return re.sub(r":\d+$", "", re.sub(r"^(dns|ipv4|ipv6|xds):", "", target).rpartition("/")[2])
