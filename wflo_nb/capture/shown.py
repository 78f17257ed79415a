"""What a transport shows of a request, and in which wire format it is understood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from wflo_nb.capture import evident, formats, sse
from wflo_nb.capture.formats import bedrock
from wflo_nb.capture.formats.base import Facts, WireFormat, from_json

#: How all headers begin that Bedrock reads.
WISH = "x-amzn-bedrock-"


@dataclass(slots=True)  # not frozen: made for every call
class Request:
    """What a transport tells about a request. Nobody changes it.

    `signed`: its bytes cannot be changed any more, or the provider would not accept them (AWS SigV4). `port`: 0 where it is not known.
    `wishes`: the headers by which Amazon Bedrock is asked for what costs extra, their names in lower case.
    """

    host: str
    path: str
    content: bytes
    encoding: str = ""
    signed: bool = False
    port: int = 0
    wishes: Mapping[str, str] | None = None


def concerns(method: str, host: str, path: str) -> bool:
    """A quick look, before any body is read: might this be a call to a model? An upload that costs nothing goes as it is made."""
    if method != "POST":
        return False
    if formats.find(path) is not None or evident.may_be(path):
        return True
    provider = formats.provider_of(host)
    return provider is not None and not formats.is_free(path, provider)


def target(line: str) -> SplitResult:
    """The parts of what stands on a request's first line: an address where it goes to a proxy, else a path, be it with two slashes."""
    return urlsplit(f"//{line}" if line.startswith("/") else line)


def is_seen_at(url: str, location: str) -> bool:
    """Whether a call that a redirect sends from a URL to a `location` is seen there."""
    try:
        parts = urlsplit(urljoin(url, location))
        return concerns("POST", parts.hostname or "", unquote(parts.path))
    except ValueError:
        return False


def plain(request: Request) -> Request:
    """The request with its body decoded: bytes that are packed bound nothing."""
    if not request.encoding:
        return request
    try:
        decoder = sse.decoder(request.encoding)
        return request if decoder is None else replace(request, content=decoder.decompress(request.content), encoding="")
    except Exception:  # LookupError, zlib.error, ZstdError: then it cannot be read
        return request


def understand(request: Request) -> tuple[WireFormat | None, dict[str, Any] | None]:
    """The format of a request and its body; without a body if it could not be read, without a format if none is spoken there."""
    spoken = formats.all_at(request.path)
    if not spoken:
        return None, None
    format = spoken[0]
    try:
        body = from_json(request.content) if format.parse is None else format.parse(request.content)
    except (ValueError, RecursionError):
        return format, None
    if isinstance(body, dict):
        for one in spoken:
            if _recognises(one, body):
                return _heeding(one, request.wishes) if request.wishes else one, body
    return format, None


def _heeding(format: WireFormat, wishes: Mapping[str, str]) -> WireFormat:
    """The format for one request, whose headers ask for something beside its body."""

    def read(body: dict[str, Any], seller: str | None = None, path: str = "") -> Facts:
        facts = format.read(body, seller, path)
        bedrock.heed(facts, wishes)
        return facts

    return replace(format, read=read)


def _recognises(format: WireFormat, body: dict[str, Any]) -> bool:
    try:
        return format.recognises(body)
    except Exception:  # then it does not
        return False


def looks_like_a_call(request: Request, format: WireFormat) -> bool:
    """Whether a request at a path of ours, which could not be read, may be a call to a model all the same.

    Other services share these paths, and send forms or JSON of their own there: those are none of our business.
    """
    if request.encoding.strip().lower() not in ("", "identity"):
        return True  # packed in a way that we cannot undo
    try:
        body = json.loads(request.content)
    except RecursionError:
        return True
    except ValueError:
        return format.api == "chat" or request.content.lstrip()[:1] in (b"{", b"")
    return isinstance(body, dict) and format.api == "chat"
