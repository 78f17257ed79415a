"""A place for telemetry on loopback: it takes what a tool sends, says that all is well, and counts the calls in it.

    python sink.py        prints its base URL, serves until its input ends

Each tool has the first part of the path to itself. ``POST`` takes OTLP over HTTP (protobuf) and agentkavach's JSON events, packed by gzip
or not; ``GET`` answers how many spans or events a tool has sent. Who has a sink does all its work: it makes spans, encodes and sends them.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Fields on the way to a span: ExportTraceServiceRequest.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans.
SPANS = (1, 2, 2)

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message: number and content."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 2:
            size = varint()
            yield key >> 3, message[at : at + size]
            at += size
        elif key & 7 == 0:
            varint()
        else:
            at += {1: 8, 5: 4}[key & 7]


def spans(message: bytes, path: tuple[int, ...] = SPANS) -> int:
    """How many spans a request to export traces holds."""
    if not path:
        return 1
    return sum(spans(content, path[1:]) for number, content in fields(message) if number == path[0])


def count(path: str, body: bytes) -> int:
    """How many calls a request of a tool speaks of."""
    if path.endswith("/traces"):
        return spans(body)
    try:
        value = json.loads(body)
    except ValueError:
        return 0
    return len(value.get("events", ())) if isinstance(value, dict) else len(value)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        found = count(self.path, body)
        with _lock:
            _counts[self.path.split("/")[1]] += found
        self._answer(b"" if self.path.endswith("/traces") else b"{}")

    def do_GET(self) -> None:
        self._answer(str(_counts[self.path.split("/")[1]]).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf" if not body else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
