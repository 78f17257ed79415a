"""Who counts beside the ledger: the stand-in provider by its own bill, and what the small model's server said, read on its way.

Neither has a line in common with what it judges: no format, no price table of the product is asked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from benchmarks.capture.cells import LOCAL_RATES, TOOLS, Row
from wflo_nb.testing import FakeProvider

if TYPE_CHECKING:
    from wflo_nb.demo import LocalModel


@dataclass(frozen=True, order=True)
class Counted:
    """One call, as it was counted. Input tokens include those read from a cache or written to one."""

    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int
    nano: int


class Counter(Protocol):
    """Somebody who sees calls arrive.

    Attributes:
        url: where calls are sent; `local`: the model's name if it is the small one; `cap`: how long answers may be.
        requests: how many requests arrived, whatever became of them.
    """

    url: str
    local: str | None
    cap: int

    @property
    def requests(self) -> int: ...

    def prepare(self, row: Row, form: str) -> None:
        """Answer as this form of a row needs it."""

    def calls(self) -> list[Counted]:
        """All calls of this form so far, in the order in which they came."""

    def doubt(self) -> str | None:
        """What a second count of the same calls says, if it says something else."""


# -- the stand-in provider -----------------------------------------------------------------------------------------------------


class StandIn:
    """The provider of `wflo_nb.testing`, with its own tokenizer, rates and bill."""

    local = None
    cap = 60

    def __init__(self, provider: FakeProvider, row: Row) -> None:
        self._provider = provider
        self._plain = provider.behaviour
        self.url = provider.url
        provider.rates = {model: (given, given, given, given, made) for model, (given, made) in row.rates.items()}

    @property
    def requests(self) -> int:
        return self._provider.requests

    def prepare(self, row: Row, form: str) -> None:
        self._provider.behaviour = self._plain
        self._provider.behave(**{"tokens": 30, **row.behave}, tools=row.tools if form == TOOLS else ())

    def calls(self) -> list[Counted]:
        with self._provider.lock:
            bill = list(self._provider.bill)
        return [
            Counted(u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens, u.reasoning_tokens, line.nano_usd)
            for line in bill
            for u in [line.usage]
        ]

    def doubt(self) -> str | None:
        return None


@contextlib.contextmanager
def stand_in(row: Row) -> Iterator[Counter]:
    """A provider for one row."""
    with FakeProvider() as provider:
        yield StandIn(provider, row)


# -- the small model -----------------------------------------------------------------------------------------------------------


def usage_in(path: str, body: bytes) -> dict[str, Any]:
    """The usage in an answer of the model's server, whole or streamed; streamed parts of one are put together.

    A stream whose usage nobody asked for (that of the bare form) tells the same in its timings.
    """
    text = body.decode()
    pieces = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")] or [json.loads(text)]
    found: dict[str, Any] = {}
    for piece in pieces:
        holders = (piece, piece.get("response"), piece.get("message"))
        for holder in holders:
            if isinstance(holder, dict) and holder.get("usage"):
                found |= holder["usage"]
    timings = next((piece["timings"] for piece in pieces if "timings" in piece), None)
    if not found and timings is not None:
        cached = {"cached_tokens": timings["cache_n"]}
        return {
            "prompt_tokens": timings["prompt_n"] + timings["cache_n"],
            "completion_tokens": timings["predicted_n"],
            "prompt_tokens_details": cached,
        }
    if not found:
        raise ValueError(f"no usage in the answer of {path}: {' '.join(text.split())[-120:]}")
    return found


def counted(path: str, body: bytes) -> Counted:
    """What that is in tokens and, at the declared price, in money."""
    usage = usage_in(path, body)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    read = details.get("cached_tokens", usage.get("cache_read_input_tokens", 0))
    given = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    if path.endswith("/messages"):  # Anthropic tells what came from the cache beside the input, not within
        given += read
    made = usage.get("completion_tokens", usage.get("output_tokens", 0))
    rates = {kind: round(rate * 1_000_000) for kind, rate in LOCAL_RATES.items()}
    pico = (given - read) * rates["input"] + read * rates["cache_read"] + made * rates["output"]
    return Counted(given, made, read, 0, 0, -(-pico // 1000))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is an ordinary event here."""


class Passing:
    """A server between a client and the small model's: it passes everything on, and reads the usage of each answer.

    The model's engine counts too, by itself: what the answers said must be what it worked through.
    """

    cap = 10

    def __init__(self, model: LocalModel) -> None:
        self.local: str | None = model.name
        self._model = model
        self._served = model.tokens_served
        self._calls: list[Counted] = []
        self._faults: list[str] = []
        self._lock = threading.Lock()
        self._requests = 0
        self._server = _Server(("127.0.0.1", 0), self._handler(urlsplit(model.address).netloc))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def requests(self) -> int:
        return self._requests

    def prepare(self, row: Row, form: str) -> None:  # noqa: ARG002 - it does not depend on them
        """The model answers as it likes; counts begin anew."""
        self._served = self._model.tokens_served
        with self._lock:
            self._calls.clear()
            self._faults.clear()

    def calls(self) -> list[Counted]:
        with self._lock:
            return list(self._calls)

    def doubt(self) -> str | None:
        if self._faults:
            return "; ".join(self._faults)
        now, calls = self._model.tokens_served, self.calls()
        engine = (now.input_tokens - self._served.input_tokens, now.output_tokens - self._served.output_tokens)
        said = (sum(call.input for call in calls), sum(call.output for call in calls))
        return None if engine == said else f"the model's engine worked through {engine} tokens in and out, its answers say {said}"

    def close(self) -> None:
        """Serve nobody any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _read(self, path: str, body: bytes) -> None:
        with self._lock:
            try:
                self._calls.append(counted(path, body))
            except ValueError as error:
                self._faults.append(str(error))

    def _handler(passing, goal: str) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers.get("content-length") or 0))
                with passing._lock:
                    passing._requests += 1
                server = http.client.HTTPConnection(goal, timeout=120)
                try:
                    path = self.path.removeprefix("/openai")  # where Groq has OpenAI's interface
                    server.request("POST", path, asked, {"content-type": "application/json"})
                    with server.getresponse() as answer:
                        self._pass_on(answer)
                finally:
                    server.close()

            def _pass_on(self, answer: http.client.HTTPResponse) -> None:
                """An answer as it comes, a piece at a time. It is counted before its last byte is passed on: then nobody is too early."""
                self.send_response(answer.status)
                self.send_header("content-type", answer.headers["content-type"] or "application/json")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                body = b""
                while piece := answer.read1(65536):
                    body += piece
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if answer.status == 200:
                    passing._read(urlsplit(self.path).path, body)
                self.wfile.write(b"0\r\n\r\n")

        return Handler


@contextlib.contextmanager
def small_model(model: LocalModel) -> Iterator[Counter]:
    """A way to the small model for one row."""
    passing = Passing(model)
    try:
        yield passing
    finally:
        passing.close()
