"""For tests, ours and yours: a provider on loopback that speaks the real wire formats and keeps the true bill.

    with FakeProvider() as provider:
        client = OpenAI(base_url=provider.openai_url, api_key="test")
        ...
        assert provider.spent_nano == ledger_total

It counts tokens and money by itself, with rates of its own, so that a ledger can be compared with an independent judge.
It bills a streamed answer in full when the answer starts, as providers may, even if the client goes away.
"""

from __future__ import annotations

import json
import re
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Literal

from wflo_nb.model import Usage

Rates = Mapping[str, tuple[float, float, float, float, float]]

_TOKEN = re.compile(r"\w+|[^\w\s]")
_MEDIA = frozenset(("image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "document"))
#: Fields of a request that are read as input.
_READ = ("messages", "input", "system", "instructions", "tools", "functions", "response_format", "text")

#: USD per million tokens: input, cached input, cache write, one-hour cache write, output. As published, November 2026.
RATES: dict[str, tuple[float, float, float, float, float]] = {
    "gpt-4o": (2.5, 1.25, 2.5, 2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.075, 0.15, 0.15, 0.6),
    "gpt-5.4": (2.5, 0.25, 2.5, 2.5, 15.0),
    "o1-pro": (150.0, 150.0, 150.0, 150.0, 600.0),
    "claude-sonnet-4-5": (3.0, 0.3, 3.75, 6.0, 15.0),
    "text-embedding-3-small": (0.02, 0.02, 0.02, 0.02, 0.0),
}

#: Models that charge all of a long prompt at other rates: the tokens up to which `RATES` holds, and the rates beyond.
LONG_PROMPTS: dict[str | None, tuple[int, tuple[float, float, float, float, float]]] = {
    "gpt-5.4": (272_000, (5.0, 0.5, 5.0, 5.0, 22.5)),
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the provider answers.

    Attributes:
        tokens: length of the answer, unless the request's cap is lower.
        reasoning: how many of these tokens are reported as reasoning.
        cache_read, cache_write, cache_write_1h: how many input tokens are reported as cached.
        cached, written, written_1h: the shares (0 to 1) of the prompt's own tokens that come from a cache, or are written to one.
        usage: ``"full"``, ``"missing"`` (no field), ``"null"``, ``"garbage"`` (not numbers), ``"doubled"`` (a stream reports it twice).
        media_tokens: what each image, audio or file part is billed as; None counts the words of its data.
        normalised: count every character of the prompt's NFKC form as a token, as a tokenizer may in the worst case.
        status: an HTTP error instead of an answer; `billed` charges for it all the same.
        cut_after: drop the connection after so many stream events (or before any body when not streaming).
        malformed: send bytes that are not what the format promises.
        delay: seconds before the head; `chunk_delay`: seconds before each stream event.
        answered_model: the model that the answer names.
        retry_after_ms: sent as a header with an error.
    """

    tokens: int = 20
    reasoning: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    cached: float = 0.0
    written: float = 0.0
    written_1h: float = 0.0
    usage: Literal["full", "missing", "null", "garbage", "doubled"] = "full"
    media_tokens: int | None = None
    normalised: bool = False
    status: int = 200
    billed: bool = False
    cut_after: int | None = None
    malformed: bool = False
    delay: float = 0.0
    chunk_delay: float = 0.0
    answered_model: str | None = None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Billed:
    """One line of the provider's own bill."""

    model: str
    api: str
    usage: Usage
    nano_usd: int
    stream: bool


def count_tokens(text: str, normalised: bool = False) -> int:
    """The tokenizer of this provider: a word is one token, and so is every other character that is not a space.

    `normalised` counts each character of the NFKC form instead.
    """
    return len(unicodedata.normalize("NFKC", text)) if normalised else len(_TOKEN.findall(text))


def price(model: str, usage: Usage, rates: Rates | None = None) -> int:
    """Nano-USD by `RATES`, or by `rates` for the models that it names, in exact integers, rounded up once."""
    table = {**RATES, **(rates or {})}
    known = next((name for name in sorted(table, key=len, reverse=True) if model.startswith(name)), None)
    base = table[known] if known else (1.0, 1.0, 1.0, 1.0, 1.0)
    if known in LONG_PROMPTS and usage.input_tokens > LONG_PROMPTS[known][0]:
        base = LONG_PROMPTS[known][1]
    rate_in, rate_read, rate_write, rate_write_1h, rate_out = (round(r * 1_000_000) for r in base)
    plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
    pico = (
        plain * rate_in
        + usage.cache_read_tokens * rate_read
        + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * rate_write
        + usage.cache_write_1h_tokens * rate_write_1h
        + usage.output_tokens * rate_out
    )
    return -(-pico // 1000)


def _texts(value: Any, media: list[Any] | None = None) -> Iterator[str]:
    """Every text below a value; parts that are media are put into `media` instead, if that is given."""
    if isinstance(value, str):
        yield value
    elif media is not None and isinstance(value, dict) and value.get("type") in _MEDIA:
        media.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item, media)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, media)


class FakeProvider:
    """An HTTP server on loopback with OpenAI's chat completions, responses and embeddings, and Anthropic's messages.

    `rates` prices further models, or others than `RATES` does (USD per million tokens, in its order).
    """

    def __init__(self, delay: float = 0.0, chunk_delay: float = 0.0, tokens: int = 20, rates: Rates | None = None) -> None:
        self.rates = rates
        self.behaviour = Behaviour(delay=delay, chunk_delay=chunk_delay, tokens=tokens)
        self.bill: list[Billed] = []
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self._queue: deque[Behaviour] = deque()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Base URL for Anthropic's SDK."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def openai_url(self) -> str:
        """Base URL for OpenAI's SDK."""
        return f"{self.url}/v1"

    @property
    def requests(self) -> int:
        """How many requests arrived."""
        return len(self.bodies)

    @property
    def spent_nano(self) -> int:
        """The true bill so far, in nano-USD."""
        with self.lock:
            return sum(line.nano_usd for line in self.bill)

    def behave(self, **changes: Any) -> None:
        """Answer like this from now on (fields of `Behaviour`)."""
        self.behaviour = replace(self.behaviour, **changes)

    def next(self, **changes: Any) -> None:
        """Answer like this once; call it again to queue further answers."""
        self._queue.append(replace(self.behaviour, **changes))

    def take_behaviour(self) -> Behaviour:
        """The behaviour for the request that just arrived."""
        with self.lock:
            return self._queue.popleft() if self._queue else self.behaviour

    def start(self) -> FakeProvider:
        """Serve until `stop`."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> FakeProvider:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # hundreds of gathered calls connect at once
    provider: FakeProvider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is an ordinary event here."""


class _Cut(Exception):
    """Hang up on the client."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    CAPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "chat": ("max_completion_tokens", "max_tokens"),
        "responses": ("max_output_tokens",),
        "messages": ("max_tokens",),
        "embeddings": (),
    }

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._json(404, {"error": {"message": f"nothing at {self.path}"}})

    def do_POST(self) -> None:
        provider = self.server.provider
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(raw) if raw else {}
        with provider.lock:
            provider.bodies.append(body)
        api = next((a for end, a in _PATHS.items() if self.path.split("?")[0].endswith(end)), None)
        if api is None:
            return self._json(404, {"error": {"message": f"nothing at {self.path}"}})
        if not isinstance(body, dict) or "model" not in body:
            return self._json(400, {"error": {"message": "no model was named"}})
        how = provider.take_behaviour()
        usage = self._usage(api, body, how)
        if how.status == 200 or how.billed:
            with provider.lock:
                cost = price(body["model"], usage, provider.rates)
                provider.bill.append(Billed(body["model"], api, usage, cost, bool(body.get("stream"))))
        time.sleep(how.delay)
        try:
            self._answer(api, body, how, usage)
        except (_Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        return None

    def _usage(self, api: str, body: dict[str, Any], how: Behaviour) -> Usage:
        asked = [body[f] for f in self.CAPS[api] if body.get(f)]
        produced = 0 if api == "embeddings" else min([how.tokens, *asked]) * (body.get("n") or 1)
        media: list[Any] | None = None if how.media_tokens is None else []
        own = sum(count_tokens(t, how.normalised) for field in _READ for t in _texts(body.get(field), media))
        own += len(media or ()) * (how.media_tokens or 0)
        read, long = how.cache_read + int(own * how.cached), how.cache_write_1h + int(own * how.written_1h)
        write = how.cache_write + int(own * how.written) + int(own * how.written_1h)
        return Usage(own + how.cache_read + how.cache_write, produced, read, write, long, min(how.reasoning, produced))

    def _answer(self, api: str, body: dict[str, Any], how: Behaviour, usage: Usage) -> None:
        if how.status != 200:
            headers = {"retry-after-ms": str(how.retry_after_ms)} if how.retry_after_ms is not None else {}
            return self._json(
                how.status, {"type": "error", "error": {"type": "test", "message": f"status {how.status} was asked for"}}, headers
            )
        if body.get("stream"):
            return self._stream(_EVENTS[api](body, how, usage), how)
        if how.cut_after is not None:
            raise _Cut
        if how.malformed:
            return self._bytes(200, b'{"id": "x", "choices": [{"mess', "application/json")
        return self._json(200, _BODIES[api](body, how, usage))

    def _stream(self, events: list[str], how: Behaviour) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(events):
            if how.cut_after is not None and number >= how.cut_after:
                raise _Cut
            if how.malformed and number == 2:
                event = 'data: {"broken": \n\n'
            time.sleep(how.chunk_delay)
            data = event.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._bytes(status, json.dumps(value).encode(), "application/json", headers)

    def _bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


_PATHS = {"/chat/completions": "chat", "/responses": "responses", "/embeddings": "embeddings", "/messages": "messages"}


def _words(number: int) -> list[str]:
    return [f"word{i % 10} " for i in range(number)]


def _with_usage(value: dict[str, Any], field: str, usage: dict[str, Any], how: Behaviour) -> dict[str, Any]:
    if how.usage in ("full", "doubled"):
        value[field] = usage
    elif how.usage == "null":
        value[field] = None
    elif how.usage == "garbage":
        value[field] = dict.fromkeys(usage, "many")
    return value


def _chat_usage(u: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": u.input_tokens,
        "completion_tokens": u.output_tokens,
        "total_tokens": u.input_tokens + u.output_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cache_read_tokens, "cache_write_tokens": u.cache_write_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": u.reasoning_tokens, "audio_tokens": 0},
    }


def _chat(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    n = body.get("n") or 1
    capped = any(body.get(f) and body[f] < how.tokens for f in _Handler.CAPS["chat"])
    choice = {
        "message": {"role": "assistant", "content": "".join(_words(u.output_tokens // n))},
        "finish_reason": "length" if capped else "stop",
    }
    value: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": how.answered_model or body["model"]}
    value["choices"] = [{"index": i, **choice} for i in range(n)]
    return _with_usage(value, "usage", _chat_usage(u), how)


def _chat_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    head: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": how.answered_model or body["model"],
    }
    asked = bool((body.get("stream_options") or {}).get("include_usage"))
    extra = {"usage": None} if asked and how.usage != "missing" else {}
    chunks = [
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": w}, "finish_reason": None}], **extra}
        for w in _words(u.output_tokens)
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **extra})
    if asked and how.usage != "missing":
        chunks += [_with_usage({**head, "choices": []}, "usage", _chat_usage(u), how)] * (2 if how.usage == "doubled" else 1)
    return [f"data: {json.dumps(c)}\n\n" for c in chunks] + ["data: [DONE]\n\n"]


def _response(body: dict[str, Any], how: Behaviour, u: Usage, status: str = "completed") -> dict[str, Any]:
    text = {"type": "output_text", "text": "".join(_words(u.output_tokens)), "annotations": []}
    value: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": how.answered_model or body["model"],
    }
    value |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "output": []}
    if status != "completed":
        return value
    value["output"] = [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}]
    usage = {
        "input_tokens": u.input_tokens,
        "output_tokens": u.output_tokens,
        "total_tokens": u.input_tokens + u.output_tokens,
        "input_tokens_details": {"cached_tokens": u.cache_read_tokens, "cache_write_tokens": u.cache_write_tokens},
        "output_tokens_details": {"reasoning_tokens": u.reasoning_tokens},
    }
    return _with_usage(value, "usage", usage, how)


def _response_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    events: list[dict[str, Any]] = [{"type": "response.created", "response": _response(body, how, u, "in_progress")}]
    item: dict[str, Any] = {"type": "message", "id": "msg_1", "role": "assistant", "status": "in_progress", "content": []}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": []}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    # The SDK's `responses.stream` helper insists on the frame around the words.
    events.append({"type": "response.output_item.added", "output_index": 0, "item": item})
    events.append({"type": "response.content_part.added", **where, "part": part})
    events += [{"type": "response.output_text.delta", **where, "delta": w, "logprobs": []} for w in _words(u.output_tokens)]
    text = "".join(_words(u.output_tokens))
    done = {**part, "text": text}
    events.append({"type": "response.output_text.done", **where, "text": text, "logprobs": []})
    events.append({"type": "response.content_part.done", **where, "part": done})
    events.append({"type": "response.output_item.done", "output_index": 0, "item": {**item, "status": "completed", "content": [done]}})
    events.append({"type": "response.completed", "response": _response(body, how, u)})
    return [f"event: {e['type']}\ndata: {json.dumps({**e, 'sequence_number': i})}\n\n" for i, e in enumerate(events)]


def _embeddings(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"object": "embedding", "index": i, "embedding": [0.25, 0.5]} for i, _ in enumerate(inputs)]
    value = {"object": "list", "model": how.answered_model or body["model"], "data": data}
    return _with_usage(value, "usage", {"prompt_tokens": u.input_tokens, "total_tokens": u.input_tokens}, how)


def _anthropic_usage(u: Usage) -> dict[str, Any]:
    return {
        "input_tokens": u.input_tokens - u.cache_read_tokens - u.cache_write_tokens,
        "output_tokens": u.output_tokens,
        "cache_read_input_tokens": u.cache_read_tokens,
        "cache_creation_input_tokens": u.cache_write_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": u.cache_write_tokens - u.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": u.cache_write_1h_tokens,
        },
    }


def _message(body: dict[str, Any], how: Behaviour, u: Usage) -> dict[str, Any]:
    value: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": how.answered_model or body["model"]}
    value |= {"content": [{"type": "text", "text": "".join(_words(u.output_tokens))}], "stop_reason": "end_turn", "stop_sequence": None}
    return _with_usage(value, "usage", _anthropic_usage(u), how)


def _message_events(body: dict[str, Any], how: Behaviour, u: Usage) -> list[str]:
    start = {**_message(body, how, replace(u, output_tokens=1)), "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    events.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    events += [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": w}} for w in _words(u.output_tokens)]
    events.append({"type": "content_block_stop", "index": 0})
    last: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
    events += [_with_usage(last, "usage", {"output_tokens": u.output_tokens}, how)] * (2 if how.usage == "doubled" else 1)
    events.append({"type": "message_stop"})
    return [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events]


_BODIES = {"chat": _chat, "responses": _response, "embeddings": _embeddings, "messages": _message}
_EVENTS = {"chat": _chat_events, "responses": _response_events, "messages": _message_events}
