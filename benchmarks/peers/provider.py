"""The provider of the budget benchmark, in a process of its own: it bills by its own counting and is steered over HTTP.

    python benchmarks/peers/provider.py        prints {"url": …, "control": …} and serves until its input closes

`Control` is the other end of the wire. It needs nothing but the standard library, because it also runs in the peers' environments.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Bill:
    """What the provider charged: the requests that arrived, and the nano-USD of each that was billed, in order of arrival."""

    requests: int
    lines: list[int]

    @property
    def nano(self) -> int:
        """The whole bill."""
        return sum(self.lines)

    def after(self, budget_nano: int) -> int:
        """How many billed requests arrived when the bill had reached the budget."""
        total = late = 0
        for line in self.lines:
            late += total >= budget_nano
            total += line
        return late


class Control:
    """Sets how the provider behaves and reads its bill, from any process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _ask(self, path: str, value: Any) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}", json.dumps(value).encode(), timeout=30) as answer:
            return json.load(answer)

    def reset(self, behave: dict[str, Any], rates: dict[str, Any]) -> None:
        """A new bill, and this behaviour from now on."""
        self._ask("reset", {"behave": behave, "rates": rates})

    def behave(self, **changes: Any) -> None:
        """Change the behaviour, keep the bill."""
        self._ask("behave", changes)

    def bill(self) -> Bill:
        """The bill so far."""
        return Bill(**self._ask("bill", None))


def serve() -> None:
    """Run until the input closes."""
    from wflo_nb.testing import Behaviour, FakeProvider

    with FakeProvider() as provider:

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                value = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
                answer: Any = None
                if self.path == "/reset":
                    with provider.lock:
                        provider.bill.clear()
                        provider.bodies.clear()
                        provider.behaviour = Behaviour(**value["behave"])
                        provider.rates = {model: tuple(rates) for model, rates in value["rates"].items()}
                elif self.path == "/behave":
                    provider.behave(**value)
                else:
                    with provider.lock:
                        answer = {"requests": len(provider.bodies), "lines": [line.nano_usd for line in provider.bill]}
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        control = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=control.serve_forever, daemon=True).start()
        print(json.dumps({"url": provider.url, "control": f"http://127.0.0.1:{control.server_port}"}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    serve()
