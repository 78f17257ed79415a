"""Server-sent events, read while they pass by.

Events are split wherever the network cut them; bytes that the user should see are handed back in the same order, and what was
sent only because we asked for it is taken out. Definition: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Protocol

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
#: An answer to `include_usage` that every chunk carries beside the last. In JSON text a quote is escaped, so this is never content.
_USAGE_NULL = re.compile(rb',\s*"usage"\s*:\s*null')


class Splitter:
    """Cuts a byte stream into events, each with the blank line that ends it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now."""
        if not self._rest and data.endswith(b"\n\n") and data.count(b"\n\n") == 1 and b"\r" not in data:
            return [data]  # the usual case: one event at a time
        self._rest += data
        events: list[bytes] = []
        start = 0
        for end in _BLANK_LINE.finditer(self._rest):
            # A \r at the very end may be the first half of \r\n: wait for the next bytes.
            events.append(self._rest[start : end.end()])
            start = end.end()
        self._rest = self._rest[start:]
        return events

    def flush(self) -> bytes:
        """What came after the last blank line."""
        rest, self._rest = self._rest, b""
        return rest


def payload(event: bytes) -> bytes:
    """The data of an event, lines joined."""
    if event.startswith(b"data:") and event.count(b"\n") <= 2 and b"\r" not in event:
        return event[5:].strip()
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))


def without_null_usage(event: bytes) -> bytes:
    """The event as it would have been had nobody asked for usage."""
    return _USAGE_NULL.sub(b"", event) if b'"usage"' in event and b"null" in event else event


class Decoder(Protocol):
    """Undoes a content encoding, piece by piece."""

    def decompress(self, data: bytes, /) -> bytes: ...


def decoder(encoding: str) -> Decoder | None:
    """A decoder for a ``content-encoding`` value; None if the bytes are plain.

    Raises:
        LookupError: an encoding that cannot be undone here.
    """
    return _DECODERS[encoding.strip().lower()]()


def _zstd() -> Decoder:
    import zstandard  # at first use: rare among providers

    return zstandard.ZstdDecompressor().decompressobj()


_DECODERS: dict[str, Callable[[], Decoder | None]] = {
    "": lambda: None,
    "identity": lambda: None,
    "gzip": lambda: zlib.decompressobj(wbits=47),
    "x-gzip": lambda: zlib.decompressobj(wbits=47),
    "deflate": lambda: zlib.decompressobj(wbits=47),
    "zstd": _zstd,
}
#: What may be offered to a provider so that its answer can be read.
ACCEPTED = "gzip, deflate"


def readable(accept_encoding: str) -> bool:
    """Whether everything that an ``accept-encoding`` header offers can be undone here."""
    return all(offer.split(";")[0].strip().lower() in _DECODERS for offer in accept_encoding.split(","))
