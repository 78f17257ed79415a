"""Server-sent events, read while they pass by.

Events are split wherever the network cut them; bytes that the user should see are handed back in the same order, and what was
sent only because we asked for it is taken out. Definition: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable
from typing import Protocol

from wflo_nb.capture.alike import Mold, mold

_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
#: An answer to `include_usage` that every chunk carries beside the last. In JSON text a quote is escaped, so this is never content.
_USAGE_NULL = re.compile(rb',\s*"usage"\s*:\s*null')
#: The same as most servers write it.
_NO_USAGE = b',"usage":null'
#: How often a stream is asked what its events have in common.
_LESSONS = 3
_BEGINNINGS = (b"data: {", b"event: ", b"data:{")


class Splitter:
    """Cuts a byte stream into events, each with the blank line that ends it.

    Attributes:
        rest: the beginning of an event whose end has not come yet.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._mold: Mold | None = None
        self._lessons = _LESSONS

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are whole now."""
        looked = max(0, len(self.rest) - 3)  # what came before has no blank line, but for the beginning of one
        self.rest += data
        events: list[bytes] = []
        start = 0
        for end in _BLANK_LINE.finditer(self.rest, looked):
            # A \r at the very end may be the first half of \r\n: wait for the next bytes.
            events.append(self.rest[start : end.end()])
            start = end.end()
        self.rest = self.rest[start:]
        return events

    def flush(self) -> bytes:
        """What came after the last blank line."""
        rest, self.rest = self.rest, b""
        return rest

    def passing(self, data: bytes, last_words: tuple[bytes, ...]) -> bytes | None:
        """What the user gets of a piece that begins with an event, ends with one, and says nothing about money and no last word: it need
        not be cut. None of any other, and of some that only seem to: of texts with a brace, say. It runs for every token.
        """
        if self._mold is not None and (bare := self._mold.passing(data)) is not None:
            return bare
        bare = _searched(data, last_words)
        if bare is None or not _is_quiet(bare):
            return None
        if self._lessons and data.count(b"\n\n") == 1:
            self._lessons -= 1
            self._mold = mold(data, bare, _NO_USAGE if bare != data else b"")
        return bare

    def is_plain(self, event: bytes) -> bool:
        """Whether an event is one JSON object, as far as plain searches tell."""
        return _is_whole(event)

    def payload(self, event: bytes) -> bytes:
        """The data of an event, none if it is a comment.

        Raises:
            ValueError: it is made of neither fields nor comments.
        """
        data = payload(event)
        if not data and _is_garbage(event):
            raise ValueError("an event of the stream is none")
        return data


_FIELDS = (b":", b"data:", b"event:", b"id:", b"retry:")


def _is_garbage(event: bytes) -> bool:
    return any(line and not line.startswith(_FIELDS) for line in event.splitlines())


def payload(event: bytes) -> bytes:
    """The data of an event, lines joined."""
    if event.startswith(b"data:") and event.count(b"\n") <= 2 and b"\r" not in event:
        return event[5:].strip()
    return b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))


def _is_whole(data: bytes) -> bool:
    """Whether what begins with an event ends with one, and each is one JSON object, as far as plain searches tell."""
    return (
        data.endswith(b"}\n\n")
        and data.count(b"{") == data.count(b"}")
        and data.count(b"\n\n") == data.count(b"}\n\n")
        and data.startswith(_BEGINNINGS)
    )


def _searched(data: bytes, last_words: tuple[bytes, ...]) -> bytes | None:
    if not data.endswith(b"}\n\n") or data.count(b"\n\n") != data.count(b"}\n\n"):
        return None
    bare = data.replace(_NO_USAGE, b"")  # in a text, a quote is escaped
    return None if any(word in bare for word in last_words) else bare


def _is_quiet(data: bytes) -> bool:
    """Whether events are JSON objects, as far as plain searches tell, none of which says anything about money."""
    balanced = data.count(b"{") == data.count(b"}")
    # An answer's end is among the last words where it has a word of its own.
    return balanced and b'usage"' not in data and data.startswith(_BEGINNINGS) and not _ends_a_choice(data)


_USAGE = re.compile(rb'usage"\s*:(?!\s*null)')


def _ends_a_choice(data: bytes) -> bool:
    return b'finish_reason":"' in data or b'finish_reason": "' in data or b'"max_tokens"' in data  # not null


def says_something(data: bytes) -> bool:
    """Whether an event, or several, may say something about money beside a usage: the end of a choice or of the answer."""
    return (
        _ends_a_choice(data)
        or b'"message_stop"' in data
        or (b'"response.' in data and (b'"response.completed"' in data or b'"response.incomplete"' in data or b'"response.failed"' in data))
    )


def matters(data: bytes) -> bool:
    """Whether an event may say anything about money; all else only passes by."""
    # `"usage": null` stands in every chunk once it was asked for.
    return (b'usage"' in data and _USAGE.search(data) is not None) or says_something(data)


def without_null_usage(event: bytes) -> bytes:
    """The event, or several, as it would have been had nobody asked for usage."""
    if b'"usage"' not in event:
        return event
    bare = event.replace(_NO_USAGE, b"")  # as most servers write it: a plain search is ten times faster
    return _USAGE_NULL.sub(b"", bare) if b'"usage"' in bare and b"null" in bare else bare


class Decoder(Protocol):
    """Undoes a content encoding, piece by piece."""

    @property
    def eof(self) -> bool:
        """Whether the last piece was there."""
        ...

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


_zlib = functools.partial(zlib.decompressobj, wbits=47)  # gzip and zlib, whichever comes
_DECODERS: dict[str, Callable[[], Decoder | None]] = {
    "": lambda: None,
    "identity": lambda: None,
    "gzip": _zlib,
    "x-gzip": _zlib,
    "deflate": _zlib,
    "zstd": _zstd,
}
#: What may be offered to a provider so that its answer can be read.
ACCEPTED = "gzip, deflate"


def readable(accept_encoding: str) -> bool:
    """Whether everything that an ``accept-encoding`` header offers can be undone here."""
    return all(offer.split(";")[0].strip().lower() in _DECODERS for offer in accept_encoding.split(","))
