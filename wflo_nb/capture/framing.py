"""How a stream is cut into events, by its content type: server-sent events, JSON lines, and the event stream of AWS.

Every frame is handed back as it came, so that what the user reads is what was sent. Definitions: https://github.com/ndjson/ndjson-spec,
https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html (“Event stream encoding”; Bedrock's is the same).
"""

from __future__ import annotations

import base64
import functools
import json
import struct
import zlib
from typing import Protocol

from wflo_nb.capture import sse


class Framing(Protocol):
    """Cuts a byte stream into frames.

    Attributes:
        rest: the beginning of a frame whose end has not come yet.
    """

    rest: bytes

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that are whole now."""
        ...

    def flush(self) -> bytes:
        """What came after the last whole frame."""
        ...

    def passing(self, data: bytes, last_words: tuple[bytes, ...]) -> bytes | None:
        """What the user gets of a piece that surely says nothing about money, nor any of the `last_words`, so that it need not be cut; None
        of any other.
        """
        ...

    def is_plain(self, frame: bytes) -> bool:
        """Whether a frame surely is one JSON object, so that it may pass by unread if it does not matter."""
        ...

    def payload(self, frame: bytes) -> bytes:
        """The JSON in a frame; none if it is a comment or empty.

        Raises:
            ValueError: the frame is damaged.
        """
        ...


def of(content_type: str, *, quick: bool = True) -> Framing | None:
    """The framing of a content type in lower case; None for an answer that is one piece. `quick`: whether events in which plain searches
    find nothing may pass by unread.
    """
    kind = _kind(content_type, quick)
    return None if kind is None else kind()


@functools.lru_cache(256)
def _kind(content_type: str, quick: bool) -> type[Framing] | None:
    if "event-stream" in content_type:
        return sse.Splitter if quick else EverySplitter
    if "vnd.amazon.eventstream" in content_type:
        return AwsEvents
    return Lines if any(name in content_type for name in ("ndjson", "jsonl", "stream+json")) else None


def payloads(framing: Framing, data: bytes) -> list[bytes]:
    """The JSON of all frames in bytes that begin with a frame; damaged ones are left out."""
    fresh = type(framing)()
    found = []
    for frame in (*fresh.feed(data), fresh.flush()):
        try:
            if text := fresh.payload(frame):
                found.append(text)
        except ValueError:
            continue
    return found


class _NonePass:
    """Of formats whose pieces are all cut at once."""

    def passing(self, _data: bytes, _last_words: tuple[bytes, ...]) -> None:
        """Nothing passes."""


class EverySplitter(_NonePass, sse.Splitter):
    """Server-sent events of formats whose usage is found by other words."""


class Lines(_NonePass):
    """One JSON value a line."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, each with its end."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [line + b"\n" for line in lines]

    def flush(self) -> bytes:
        """A last line without an end."""
        rest, self.rest = self.rest, b""
        return rest

    def is_plain(self, frame: bytes) -> bool:
        """Whether a line is one JSON object, as far as plain searches can tell."""
        return frame.startswith(b"{") and frame.rstrip().endswith(b"}") and frame.count(b"{") == frame.count(b"}")

    def payload(self, frame: bytes) -> bytes:
        """The line."""
        return frame.strip()


#: Total length, length of the headers, checksum of these two.
_PRELUDE = struct.Struct(">III")
_LENGTH = struct.Struct(">H")
_SMALLEST, _LARGEST = 16, 24 * 2**20
#: Bytes that a header's value takes, by its type; types 6 and 7 say their length.
_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class AwsEvents(_NonePass):
    """AWS's binary event stream, checksums included. After a damaged prelude nothing can be told apart any more: all that follows is one
    damaged frame.

    The payload of a frame is `{"<event type>": <its JSON>}`, for an exception `{"exception": …}`, and for Bedrock's ``chunk`` the JSON that
    its base64 holds: the vendor's own event.
    """

    def __init__(self) -> None:
        self.rest = b""
        self._lost = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now."""
        if self._lost:
            return [data]
        data = self.rest + data
        frames: list[bytes] = []
        start = 0
        while len(data) - start >= _PRELUDE.size:
            total, _, check = _PRELUDE.unpack_from(data, start)
            if not _SMALLEST <= total <= _LARGEST or zlib.crc32(data[start : start + 8]) != check:
                self._lost, self.rest = True, b""
                return [*frames, data[start:]]
            if len(data) - start < total:
                break
            frames.append(data[start : start + total])
            start += total
        self.rest = data[start:]
        return frames

    def flush(self) -> bytes:
        """A message that was cut off."""
        rest, self.rest = self.rest, b""
        return rest

    def is_plain(self, _frame: bytes) -> bool:
        """Never: only its checksums tell."""
        return False

    def payload(self, frame: bytes) -> bytes:
        """The JSON of a message, under its event type."""
        if not frame:
            return b""
        headers, body = _opened(frame)
        kind = headers.get(":event-type", "")
        if headers.get(":message-type") in ("exception", "error"):
            return b'{"exception":%s}' % (json.dumps(headers.get(":exception-type") or headers.get(":error-code") or "").encode())
        if kind == "chunk":
            inner = json.loads(body)
            packed = inner.get("bytes") if isinstance(inner, dict) else None
            return base64.b64decode(packed, validate=True) if isinstance(packed, str) else b""
        return b"{%s:%s}" % (json.dumps(kind).encode(), body or b"null")


def _opened(frame: bytes) -> tuple[dict[str, str], bytes]:
    """The text headers and the body of one message.

    Raises:
        ValueError: it is cut off, or a checksum is wrong.
    """
    try:
        total, length, check = _PRELUDE.unpack_from(frame)
        (whole,) = struct.unpack_from(">I", frame, total - 4)
        if total != len(frame) or zlib.crc32(frame[:8]) != check or zlib.crc32(frame[:-4]) != whole or length > total - _SMALLEST:
            raise ValueError("a message of the event stream is damaged")
        return _headers(frame[_PRELUDE.size : _PRELUDE.size + length]), frame[_PRELUDE.size + length : -4]
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError("a message of the event stream is damaged") from error


def _headers(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        kind = data[at]
        at += 1
        if kind in (6, 7):
            (length,) = _LENGTH.unpack_from(data, at)
            at += 2
            if kind == 7:
                found[name] = data[at : at + length].decode()
        else:
            length = _SIZES[kind]
        at += length
    return found


def aws_message(headers: dict[str, str], body: bytes) -> bytes:
    """One message of an AWS event stream, for stand-in providers."""
    packed = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + _LENGTH.pack(len(value.encode())) + value.encode() for name, value in headers.items()
    )
    prelude = struct.pack(">II", len(packed) + len(body) + _SMALLEST, len(packed))
    frame = prelude + struct.pack(">I", zlib.crc32(prelude)) + packed + body
    return frame + struct.pack(">I", zlib.crc32(frame))
