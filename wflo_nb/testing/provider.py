"""The server of the stand-in provider."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from wflo_nb.model import Usage
from wflo_nb.testing import anthropic, bedrock, cohere, gemini, ollama, openai
from wflo_nb.testing.billing import UNIT_RATES, Behaviour, Billed, Rates, count_tokens, price, texts
from wflo_nb.testing.wire import Dialect

DIALECTS: tuple[Dialect, ...] = (
    *openai.DIALECTS,
    *anthropic.DIALECTS,
    *gemini.DIALECTS,
    *cohere.DIALECTS,
    *ollama.DIALECTS,
    *bedrock.DIALECTS,
)


class FakeProvider:
    """An HTTP server on loopback that speaks the formats of OpenAI, Anthropic, Google, Mistral, Cohere, Ollama and Bedrock.

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
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

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

    def charge(self, dialect: Dialect, model: str, body: dict[str, Any], how: Behaviour, usage: Usage, stream: bool) -> None:
        """Put a call on the bill."""
        units = dialect.units(body, how)
        nano = price(model, usage, self.rates) if dialect.tokens else 0
        nano += sum(round(UNIT_RATES[name] * 1_000_000_000) * number for name, number in units)
        with self.lock:
            self.bill.append(Billed(model, dialect.api, usage, nano, stream, sum(number for _, number in units)))

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

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._json(404, {"error": {"message": f"nothing at {self.path}"}})

    def do_POST(self) -> None:
        provider = self.server.provider
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = unquote(self.path.split("?")[0])
        dialect = next((d for d in DIALECTS if d.path.search(path)), None)
        body = (dialect.parse if dialect else json.loads)(raw) if raw else {}
        with provider.lock:
            provider.bodies.append(body)
        if dialect is None:
            return self._json(404, {"error": {"message": f"nothing at {self.path}"}})
        model = dialect.model(path, body) if isinstance(body, dict) else None
        if not model:
            return self._json(400, {"error": {"message": "no model was named"}})
        stream = dialect.streams(path, body)
        how = provider.take_behaviour()
        if how.usage_in == "last" and "stream_options" in body:
            return self._json(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"]}]})
        usage = _usage(dialect, body, how)
        if how.status == 200 or how.billed:
            provider.charge(dialect, model, body, how, usage, stream)
        time.sleep(how.delay)
        try:
            self._answer(dialect, {**body, "model": model}, how, usage, stream)
        except (_Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        return None

    def _answer(self, dialect: Dialect, body: dict[str, Any], how: Behaviour, usage: Usage, stream: bool) -> None:
        if how.status != 200:
            headers = {"retry-after-ms": str(how.retry_after_ms)} if how.retry_after_ms is not None else {}
            return self._json(
                how.status, {"type": "error", "error": {"type": "test", "message": f"status {how.status} was asked for"}}, headers
            )
        if how.raw is not None:
            return self._bytes(200, how.raw, dialect.plain_kind, dict(how.headers))
        if stream and dialect.events is not None:
            return self._stream(dialect.events(body, how, usage), how, self._kind(dialect))
        if how.cut_after is not None:
            raise _Cut
        if how.malformed:
            return self._bytes(200, b'{"id": "x", "choices": [{"mess', "application/json")
        answer = dialect.answer(body, how, usage)
        return self._bytes(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), dialect.plain_kind, dict(how.headers))

    def _kind(self, dialect: Dialect) -> str:
        """Content type of a stream. Google sends one array where nobody asks for events."""
        return "application/json" if dialect.api == "generateContent" and "alt=sse" not in self.path else dialect.kind

    def _stream(self, events: Sequence[str | bytes], how: Behaviour, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if kind == "application/json":
            texts = [str(event).removeprefix("data: ").strip() for event in events]
            events = [("[" if number == 0 else ",\n") + text for number, text in enumerate(texts)] + ["]"]
        for number, event in enumerate(events):
            if how.cut_after is not None and number >= how.cut_after:
                raise _Cut
            if how.malformed and number == 2:
                event = 'data: {"broken": \n\n'
            time.sleep(how.chunk_delay)
            data = event.encode() if isinstance(event, str) else event
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


def _usage(dialect: Dialect, body: dict[str, Any], how: Behaviour) -> Usage:
    asked = [cap for cap in dialect.caps(body) if cap]
    produced = min([how.tokens, *asked]) * dialect.choices(body) if dialect.writes else 0
    media: list[Any] | None = None if how.media_tokens is None else []
    own = sum(count_tokens(t, how.normalised) for field in dialect.read for t in texts(body.get(field), media))
    own += len(media or ()) * (how.media_tokens or 0)
    read, long = how.cache_read + int(own * how.cached), how.cache_write_1h + int(own * how.written_1h)
    write = how.cache_write + int(own * how.written) + int(own * how.written_1h)
    return Usage(own + how.cache_read + how.cache_write, produced, read, write, long, min(how.reasoning, produced))
