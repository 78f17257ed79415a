"""The processes of the tools whose cost is compared, each in its own environment, and where they run (see ``blocks.py``)."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blocks import WARM
from environments import environment, python
from rows import BARE, CALL, LAST, STEP, STREAM, WITH, Kind, Row

PEERS = Path(__file__).parent
#: No way to any host but this one.
SHUT = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "all")}
SHUT |= {name.upper(): value for name, value in SHUT.items()} | {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}


class Worker:
    """A process that makes blocks of calls in a tool's environment.

    Raises:
        RuntimeError: from all methods, when the process ended; with the last line of what it said.
    """

    def __init__(self, row: Row, folder: str, url: str, sink: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
        ours = {"PYTHONPATH": str(PEERS.parents[1])} if row.group == "ours" else {}
        self._process = subprocess.Popen(
            [python(row.environment), str(PEERS / "blocks.py"), row.adapter, folder, url, sink],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**environment(row.environment), **SHUT, **ours},
        )
        said = self._answer()
        self.leaves, self.raw = said["leaves"], said["raw"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError((self._log.read().strip().splitlines() or ["ended without a word"])[-1])
        return json.loads(line)

    def ask(self, **what: Any) -> Any:
        """Its answer."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def die(self, chunks: int) -> None:
        """Let it make calls with the tool and be killed at the end of the last."""
        with contextlib.suppress(RuntimeError):
            self.ask(die=LAST, chunks=chunks)
        code = self._process.wait(30)
        if code != -9:
            self._log.seek(0)
            raise RuntimeError((self._log.read().strip().splitlines() or [f"ended with {code}"])[-1])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Place:
    """Where the tools run: the provider, the sink, and a folder of their own."""

    def __init__(self, url: str, sink: str, folder: str) -> None:
        self.url, self.folder, self._sink = url, Path(folder), sink

    def new(self) -> str:
        """An empty folder."""
        return tempfile.mkdtemp(dir=self.folder)

    def sink(self, name: str) -> str:
        """A sink of that name."""
        return f"{self._sink}/{name}"

    def arrived(self, name: str) -> int:
        """How many calls that sink heard of."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.sink(name), timeout=10) as answer:
            return int(answer.read())


class Team:
    """The one or two processes of a tool."""

    def __init__(self, row: Row, place: Place) -> None:
        self._row = row
        self._folder = place.new()
        first = Worker(row, self._folder, place.url, place.sink(row.key))
        row.apart = first.leaves
        second = Worker(row, place.new(), place.url, place.sink(row.key)) if first.leaves else first
        self.workers = {BARE: second, WITH: first}

    def can(self, kind: Kind) -> bool:
        """Whether the tool makes such calls: not all pass on what else a request may hold."""
        return kind is not STEP or self.workers[WITH].raw

    def block(self, way: str, kind: Kind, calls: int) -> float:
        """CPU seconds of a call."""
        if way == WITH:
            self._row.calls += calls + WARM
        ask = STEP.name if kind is STEP else CALL.name
        return float(self.workers[way].ask(way=way, ask=ask, chunks=kind.chunks, calls=calls))

    def close(self) -> None:
        """End them."""
        for worker in set(self.workers.values()):
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def outlive(row: Row, place: Place) -> dict[Kind, str]:
    """Make calls in processes that are killed, in a folder for each kind."""
    folders = {}
    for kind in (CALL, STREAM):
        folders[kind] = place.new()
        Worker(row, folders[kind], place.url, place.sink(f"{row.key}-{kind.name}")).die(kind.chunks)
    return folders


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The sink's address, while it runs."""
    process = subprocess.Popen([sys.executable, str(PEERS / "sink.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


def sdk(row: Row) -> str:
    """The version of the SDK in its environment."""
    program = "import importlib.metadata as m; print(m.version('openai'))"
    return subprocess.run([python(row.environment), "-c", program], capture_output=True, text=True, check=True).stdout.strip()
