"""A provider that does next to nothing, in a process of its own: what is measured is the client.

    python benchmarks/_lean.py        prints its base URL, serves until its input ends

Answers are made once and sent from memory, with the headers, cookies, fields, padding and compression of those of api.openai.com: what
a client does for these is a part of what a call costs it. A request that says ``"user": "terse"`` is answered with two headers, in plain.

A streamed answer has as many chunks as the request's ``max_completion_tokens``; each is a write of its own. A request that says
``"user": "patient"`` gets them `PACE` seconds apart, as tokens come from a model, so that a client reads them one at a time, and the
first after `THINKING` seconds; else they come as fast as the connection takes them, which is the hardest case: then nothing but the
client's own work is measured.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PACE = 0.001
THINKING = 0.05

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_GZIP = re.compile(rb"accept-encoding:[^\r]*gzip", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_MODEL = re.compile(rb'"model": ?"([^"]+)"')


#: What api.openai.com sends beside an answer: names and values are those of answers that were recorded there for the tests of
#: openllmetry and of pydantic-ai (2024 to 2026), ids and cookies as long. The cookies lack their domain: this host is another.
_HEADERS = (
    "Date: Tue, 24 Nov 2026 10:04:43 GMT",
    "Connection: keep-alive",
    "CF-RAY: 9718d3ff7b437f99-MAA",
    "Server: cloudflare",
    f"Set-Cookie: __cf_bm={'qzJ2utvXCn' * 14}; path=/; expires=Sat, 04-Dec-27 12:59:55 GMT; HttpOnly; Secure; SameSite=None",
    f"Set-Cookie: _cfuvid={'dFGA2WPAPG' * 7}-0.0.1.1-604800000; path=/; HttpOnly; Secure; SameSite=None",
    "Strict-Transport-Security: max-age=31536000; includeSubDomains; preload",
    "X-Content-Type-Options: nosniff",
    "access-control-expose-headers: X-Request-ID",
    'alt-svc: h3=":443"; ma=86400',
    "cf-cache-status: DYNAMIC",
    "openai-organization: a-company",
    "openai-processing-ms: 308",
    "openai-project: proj_dKobscVY9YJxeEaDJen54e3d",
    "openai-version: 2020-10-01",
    "x-envoy-upstream-service-time: 313",
    "x-ratelimit-limit-requests: 500",
    "x-ratelimit-limit-tokens: 200000",
    "x-ratelimit-remaining-requests: 499",
    "x-ratelimit-remaining-tokens: 199992",
    "x-ratelimit-reset-requests: 120ms",
    "x-ratelimit-reset-tokens: 2ms",
    "x-request-id: req_fb455d524b7f4775956fba99734cc8d9",
    "Transfer-Encoding: chunked",
)
_COMMON = {
    "id": "chatcmpl-DL2G9KdEY06xq8M0PqZ5rs5Jv13ok", "created": 1773905945, "service_tier": "default", "system_fingerprint": "fp_f986a632b0",
}  # fmt: skip


def _head(*more: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *more, "", ""]).encode()


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _usage(tokens: int) -> dict[str, object]:
    predicted = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    return {
        "prompt_tokens": 20,
        "completion_tokens": tokens,
        "total_tokens": 20 + tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, **predicted},
    }


@functools.cache
def _whole(model: str, tokens: int, terse: bool, gzipped: bool) -> bytes:
    message = {"role": "assistant", "content": "word " * tokens, "refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    value = {"object": "chat.completion", "model": model, "choices": [choice], "usage": _usage(tokens), **_COMMON}
    body = json.dumps(value, indent=None if terse else 2).encode()
    if terse:
        return _head("content-type: application/json", f"content-length: {len(body)}") + body
    encoding = ["Content-Encoding: gzip"] if gzipped else []
    pieces = _piece(gzip.compress(body, 5) if gzipped else body) + b"0\r\n\r\n"
    return _head("Content-Type: application/json", *encoding, *_HEADERS) + pieces


@functools.cache
def _chunks(model: str, tokens: int, with_usage: bool) -> tuple[bytes, ...]:
    head = {"object": "chat.completion.chunk", "model": model, **_COMMON}
    null = {"usage": None} if with_usage else {}

    def chunk(delta: dict[str, str], finish: str | None, padding: int) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "choices": [choice], **null, "obfuscation": "fjE24R0ZOJrQpW8b"[:padding]}

    values = [chunk({"content": f"word{i % 10} "}, None, i % 15) for i in range(tokens)]
    values.append(chunk({}, "stop", 9))
    if with_usage:
        values.append({**head, "choices": [], "usage": _usage(tokens), "obfuscation": "Kpm8omvXB"})
    events = [b"data: " + json.dumps(v, separators=(",", ":")).encode() + b"\n\n" for v in values] + [b"data: [DONE]\n\n"]
    return tuple(map(_piece, events))


_STREAM_HEAD = _head("Content-Type: text/event-stream; charset=utf-8", "Cache-Control: no-cache, must-revalidate", *_HEADERS)


def _answer(connection: socket.socket, body: bytes, gzipped: bool) -> None:
    named, asked = _MODEL.search(body), _TOKENS.search(body)
    model, tokens = (named[1].decode() if named else "m"), (int(asked[1]) if asked else 20)
    patient = b'"patient"' in body
    if patient:
        time.sleep(THINKING)
    if b'"stream":true' not in body and b'"stream": true' not in body:
        connection.sendall(_whole(model, tokens, b'"terse"' in body, gzipped))
        return
    connection.sendall(_STREAM_HEAD)
    for chunk in _chunks(model, min(tokens, 1000), b"include_usage" in body):
        if patient:
            time.sleep(PACE)
        connection.sendall(chunk)
    connection.sendall(b"0\r\n\r\n")


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting = b""
    try:
        while True:
            while (end := waiting.find(b"\r\n\r\n")) < 0:
                more = connection.recv(65536)
                if not more:
                    return
                waiting += more
            length = _LENGTH.search(waiting, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length else 0)
            while len(waiting) < whole:
                waiting += connection.recv(65536)
            asked, body, waiting = waiting[:end], waiting[end + 4 : whole], waiting[whole:]
            _answer(connection, body, _GZIP.search(asked) is not None)
    except OSError:
        pass
    finally:
        connection.close()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    sys.stdin.read()


@contextmanager
def provider() -> Iterator[str]:
    """The base URL of one that runs meanwhile."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    main()
