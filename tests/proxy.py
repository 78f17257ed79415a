"""A way to a server that can be made long and can be cut: for tests and benchmarks of what distance and faults do.

    python tests/proxy.py HOST PORT [SECONDS]     prints the port it listens on, delays every byte each way, serves until its input ends

In a process of its own it costs the measured one nothing; as an object (`Proxy`) its owner says when and how a connection is cut.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

#: Where a connection is cut: the next message of the client does not arrive, or it does and its answer is swallowed.
Cut = Literal["question", "answer"]


class Proxy:
    """Passes bytes between clients on loopback and one server, each way `delay` seconds late. Thread-safe."""

    def __init__(self, host: str, port: int, delay: float = 0.0) -> None:
        self._server = (host, port)
        self._delay = delay
        self._plan: tuple[Cut, int] | None = None
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        #: Connections that were cut on purpose.
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, where: Cut, after: int = 0) -> None:
        """Cut a connection, once: at the client's next message, or at the one `after` so many more."""
        with self._lock:
            self._plan = (where, after)

    def heal(self) -> None:
        """Forget a cut that has not happened."""
        with self._lock:
            self._plan = None

    def hang_up(self) -> None:
        """Cut every connection now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.close()

    def close(self) -> None:
        """Serve nobody any more."""
        self._listener.close()
        self.hang_up()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.add(pair)
            pair.start(self._delay)

    def _cut_here(self) -> Cut | None:
        """Whether the message that just came from a client is the one to be cut."""
        with self._lock:
            if self._plan is None:
                return None
            where, after = self._plan
            self._plan = (where, after - 1) if after else None
            if after:
                return None
            self.cuts += 1
            return where

    def _gone(self, pair: _Pair) -> None:
        with self._lock:
            self._pairs.discard(pair)


class _Pair:
    """One client's connection and the one made for it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._swallow = False
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self, delay: float) -> None:
        for source, goal, asks in ((self._client, self._server, True), (self._server, self._client, False)):
            pass_on = _Late(self, goal, delay).put if delay else self._now(goal)
            threading.Thread(target=self._read, args=(source, pass_on, asks), daemon=True).start()

    def _read(self, source: socket.socket, pass_on: Callable[[bytes], None], asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                where = self._proxy._cut_here() if asks else None
                self._swallow = self._swallow or where == "answer"
                if where == "question" or (self._swallow and not asks):  # in the latter case the server has done it, and nobody is told
                    self.close()
                    return
                pass_on(data)
        with contextlib.suppress(OSError):
            pass_on(b"")

    def _now(self, goal: socket.socket) -> Callable[[bytes], None]:
        return lambda data: goal.sendall(data) if data else self.close()

    def close(self) -> None:
        self._proxy._gone(self)
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class _Late:
    """One way of a connection on which everything, its end too, arrives `delay` seconds late."""

    def __init__(self, pair: _Pair, goal: socket.socket, delay: float) -> None:
        self._pair, self._goal, self._delay = pair, goal, delay
        self._way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
        threading.Thread(target=self._deliver, daemon=True).start()

    def put(self, data: bytes) -> None:
        self._way.put((time.monotonic() + self._delay, data))

    def _deliver(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = self._way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    break
                self._goal.sendall(data)
        self._pair.close()


@contextlib.contextmanager
def distant(url: str, delay: float) -> Iterator[str]:
    """The URL of the same server behind a proxy in a process of its own, `delay` seconds further away each way."""
    parts = urlsplit(url)
    command = [sys.executable, __file__, parts.hostname or "127.0.0.1", str(parts.port or 5432), str(delay)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield moved(url, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(10)


def moved(url: str, port: int) -> str:
    """The same database behind another port of loopback."""
    parts = urlsplit(url)
    who = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{who}127.0.0.1:{port}"))


if __name__ == "__main__":
    host, port, *delay = sys.argv[1:]
    print(Proxy(host, int(port), float(delay[0]) if delay else 0.0).port, flush=True)
    sys.stdin.read()
