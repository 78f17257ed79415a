"""A provider that does next to nothing, in a process of its own: what is measured is the client.

    python benchmarks/_lean.py        prints its base URL, serves until its input ends

Answers are made once and sent from memory. A streamed answer has as many chunks as the request's ``max_completion_tokens``; each is
a write of its own. A request that says ``"user": "patient"`` gets them `PACE` seconds apart, as tokens come from a model, so that a
client reads them one at a time, and the first after `THINKING` seconds; else they come as fast as the connection takes them, which is
the hardest case: then nothing but the client's own work is measured.
"""

from __future__ import annotations

import functools
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
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_MODEL = re.compile(rb'"model": ?"([^"]+)"')


def _usage(tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": 20,
        "completion_tokens": tokens,
        "total_tokens": 20 + tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


@functools.cache
def _whole(model: str, tokens: int) -> bytes:
    message = {"role": "assistant", "content": "word " * tokens}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    value = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": _usage(tokens)}
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@functools.cache
def _chunks(model: str, tokens: int, with_usage: bool) -> tuple[bytes, ...]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model, "system_fingerprint": "fp_1"}
    null = {"usage": None} if with_usage else {}
    values: list[dict[str, object]] = [
        {**head, "choices": [{"index": 0, "delta": {"content": f"word{i % 10} "}, "logprobs": None, "finish_reason": None}], **null}
        for i in range(tokens)
    ]
    values.append({**head, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}], **null})
    if with_usage:
        values.append({**head, "choices": [], "usage": _usage(tokens)})
    events = [b"data: " + json.dumps(v, separators=(",", ":")).encode() + b"\n\n" for v in values] + [b"data: [DONE]\n\n"]
    return tuple(b"%x\r\n%b\r\n" % (len(e), e) for e in events)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def _answer(connection: socket.socket, body: bytes) -> None:
    named, asked = _MODEL.search(body), _TOKENS.search(body)
    model, tokens = (named[1].decode() if named else "m"), (int(asked[1]) if asked else 20)
    patient = b'"patient"' in body
    if patient:
        time.sleep(THINKING)
    if b'"stream":true' not in body and b'"stream": true' not in body:
        connection.sendall(_whole(model, tokens))
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
            body, waiting = waiting[end + 4 : whole], waiting[whole:]
            _answer(connection, body)
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
