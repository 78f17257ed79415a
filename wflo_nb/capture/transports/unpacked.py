"""An answer that came packed, whole and in one piece, is unpacked once: by us, who read it first; httpx takes over what we found.

The decoder of a response is no public part of httpx. A release that keeps it elsewhere unpacks such an answer a second time, and nothing
else changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wflo_nb.capture.exchange import Exchange

#: How gzip begins. We unpack what is none all the same; httpx calls that an error.
_MAGIC = b"\x1f\x8b"


def hand_over(lib: ModuleType) -> Callable[[Any, Exchange], None]:
    """What gives a response of `lib` that is packed with gzip a decoder which asks the exchange first."""
    gzip = getattr(getattr(lib, "_decoders", None), "GZipDecoder", None)
    if gzip is None or not hasattr(lib.Response, "_get_content_decoder"):
        return lambda _response, _exchange: None
    by_piece = inspect.isgeneratorfunction(gzip.decode)  # of a large body httpx2 unpacks one piece after the other, httpx all of it

    class Unpacked(gzip):  # type: ignore[misc, valid-type]
        """gzip, and nothing to do where the exchange has done it."""

        def __init__(self, exchange: Exchange) -> None:
            self._exchange: Exchange | None = exchange
            self._over = False

        def decode(self, data: bytes) -> Any:
            if self._over:  # what follows a packed body is no part of it
                return b""
            if self._exchange is not None:
                plain = self._exchange.unpacked(data) if data.startswith(_MAGIC) else None
                self._exchange = None
                if plain is not None:
                    self._over = True
                    return (plain,) if by_piece else plain
                super().__init__()
            return super().decode(data)

        def flush(self) -> Any:
            return b"" if self._over or self._exchange is not None else super().flush()

    def give(response: Any, exchange: Exchange) -> None:
        response._decoder = Unpacked(exchange)

    return give
