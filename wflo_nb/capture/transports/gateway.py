"""A door on loopback for a program of its own that calls a model by itself: what it sends is sent on from here, as calls of whoever
started it. Nobody else finds the door: its address has a secret in it, and it is open for as long as the program runs.
"""

from __future__ import annotations

import importlib
import json
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

from wflo_nb import _context
from wflo_nb.errors import WfloError

#: What concerns one connection alone, in both directions.
_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "trailer", "proxy-connection"}
)
#: Seconds that a model may think between two pieces of its answer.
_PATIENCE = 600.0
#: Answers that never have a body, and bytes of a line at most.
_EMPTY, _LINE = frozenset({204, 304}), 2**16


def library() -> ModuleType | None:
    """What can send requests on in a way that is watched; None if neither is installed."""
    for name in ("httpx2", "httpx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


class Gateway:
    """Open from its making until `close`.

    Attributes:
        url: what the program is told to call in place of `upstream`.
    """

    def __init__(self, lib: ModuleType, account: Any, upstream: str) -> None:
        self._lib = lib
        self._account = account
        self._frame = _context.carried()
        self._upstream = upstream.rstrip("/")
        self._secret = f"/{secrets.token_urlsafe(16)}"
        self._client = lib.Client(timeout=lib.Timeout(_PATIENCE, connect=30.0), follow_redirects=False)
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                gateway._pass_on(self)

            do_GET = do_DELETE = do_HEAD = do_POST  # noqa: N815 - as the base class wants them called

            def log_message(self, *_: Any) -> None:
                """Addresses are secret."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        with _context.within(None):  # each request says for itself whom it belongs to
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="wflo-gateway", daemon=True)
            self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}{self._secret}"

    def close(self) -> None:
        """Take no request any more. What is being answered is cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._client.close()
        self._thread.join(5)

    def _pass_on(self, request: BaseHTTPRequestHandler) -> None:
        try:
            body = _body(request)
        except ValueError as error:
            request.close_connection = True
            _answer(request, 400, {"type": "invalid_request_error", "message": str(error)})
            return
        if not request.path.startswith(f"{self._secret}/"):
            _answer(request, 404, {"type": "not_found_error", "message": "There is nothing here."})
            return
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        target = self._upstream + request.path.removeprefix(self._secret)
        try:
            with _context.within(self._account), _context.framed(self._frame):
                sent = self._client.build_request(request.command, target, headers=headers, content=body)
                answer = self._client.send(sent, stream=True)
        except WfloError as error:  # nothing was sent
            _answer(request, 402, {"type": "billing_error", "message": str(error)})
            return
        except self._lib.HTTPError as error:
            _answer(request, 502, {"type": "api_error", "message": f"The provider could not be reached ({type(error).__name__})."})
            return
        try:
            _relay(request, answer)
        except (OSError, self._lib.HTTPError, self._lib.StreamError):  # one of the ends has gone away; the call is settled for what it is
            request.close_connection = True
        finally:
            answer.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, whole.

    Raises:
        ValueError: nobody can tell where it ends, or it broke off.
    """
    coding, length, file = request.headers.get("transfer-encoding"), request.headers.get("content-length") or "0", request.rfile
    if coding is None and length.isdecimal():
        body = file.read(int(length))
        if len(body) == int(length):
            return body
    elif coding is not None and coding.strip().lower() == "chunked":
        pieces: list[bytes] = []
        while (size := int(file.readline(_LINE).partition(b";")[0], 16)) > 0:
            pieces.append(file.read(size))
            if file.readline(_LINE) != b"\r\n":
                raise ValueError("a chunk of the request is not as long as it says")
        while file.readline(_LINE).strip():
            """What may follow the last chunk, and says nothing about it."""
        if size == 0:
            return b"".join(pieces)
    raise ValueError("the end of the request cannot be told")


def _relay(request: BaseHTTPRequestHandler, answer: Any) -> None:
    request.send_response(answer.status_code)
    for name, value in answer.headers.multi_items():
        if name.lower() not in _HOP:
            request.send_header(name, value)
    if request.command == "HEAD" or answer.status_code in _EMPTY:  # one byte of a body would be taken for the next answer
        request.end_headers()
        return
    request.send_header("transfer-encoding", "chunked")
    request.end_headers()
    for piece in _pieces(answer):
        request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        request.wfile.flush()
    request.wfile.write(b"0\r\n\r\n")


def _pieces(answer: Any) -> Iterator[bytes]:
    return (piece for piece in answer.iter_raw() if piece)


def _answer(request: BaseHTTPRequestHandler, status: int, error: dict[str, str]) -> None:
    told = json.dumps({"type": "error", "error": error}).encode()
    request.send_response(status)
    request.send_header("content-type", "application/json")
    request.send_header("content-length", str(len(told)))
    request.send_header("x-should-retry", "false")  # the SDKs of Anthropic and OpenAI obey it
    request.end_headers()
    request.wfile.write(told)
