"""Blocks of calls in a tool's own environment, without it and with it: one line of JSON in, one line out.

    python blocks.py ADAPTER FOLDER PROVIDER_URL SINK_URL

Asked ``{"way": "bare" | "with", "ask": "call" | "step", "chunks": N, "calls": N}`` it makes that many calls and answers the CPU seconds of
one of them, by the clock of the whole process, all threads; the block ends when what was recorded is where it is meant to be. ``ask`` is
one of the functions of `asked`, ``chunks`` the length of a streamed answer, 0 for a whole one. A session, with its client, is opened for
each block and warmed by a few calls outside of what is measured; where a tool cannot be taken out of a process again the parent asks one
process for the bare SDK and another for the tool, and each keeps its session. Asked ``{"die": N, "chunks": N}`` it makes that many calls
with the tool and kills itself at once, as SIGKILL does; asked ``{"recorded": FOLDER}`` a later process answers how many calls the record in
that folder holds, or null if nothing keeps one there.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import asked
from base import Enforcer, Given, Session

#: Calls of each block before its measured ones.
WARM = 2
#: Nothing is refused for want of money: enough for those who hold or count absurd prices.
BUDGET_USD = 1_000_000

_numbers = itertools.count()


def call(session: Session, chunks: int, ask: str = "call") -> None:
    """One call; no two prompts are alike, for some tools take a repetition for a loop."""
    request: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": chunks or 20, **getattr(asked, ask)(next(_numbers))}
    if chunks:
        for _ in session.stream(**request):
            pass
    else:
        session.chat(**request)


class Bench:
    """The two ways of making calls in this environment."""

    def __init__(self, tool: Enforcer, folder: Path, url: str, sink: str) -> None:
        self._tools = {"bare": Enforcer(), "with": tool}
        self._given = {"budget_usd": BUDGET_USD, "url": url, "sink": sink, "client": {"max_retries": 0}}
        self._folder = folder
        self._kept: dict[str, Session] = {}
        self._end = ExitStack()

    @contextmanager
    def session(self, way: str, folder: Path | None = None) -> Iterator[Session]:
        """A session of one block; the same again where it cannot be closed."""
        tool = self._tools[way]
        if self._tools["with"].leaves:
            if way not in self._kept:
                self._kept[way] = self._end.enter_context(tool.session(Given(folder=folder or self._folder, **self._given)))
            yield self._kept[way]
            return
        fresh = tempfile.mkdtemp(dir=self._folder) if tool.grows and folder is None else None
        with tool.session(Given(folder=folder or Path(fresh or self._folder), **self._given)) as session:
            yield session
        if fresh:
            shutil.rmtree(fresh)

    def block(self, way: str, ask: str, chunks: int, calls: int) -> float:
        """CPU seconds of one call."""
        with self.session(way) as session:
            for _ in range(WARM):
                call(session, chunks, ask)
            session.flush()
            gc.collect()  # what other blocks left is not this one's
            started = process_time()
            for _ in range(calls):
                call(session, chunks, ask)
            session.flush()
            return (process_time() - started) / calls

    def die(self, calls: int, chunks: int) -> None:
        """Make calls, and be killed as soon as the last is answered."""
        with self.session("with", self._folder) as session:
            for _ in range(calls):
                call(session, chunks)
            os.kill(os.getpid(), signal.SIGKILL)

    def recorded(self, folder: str) -> int | None:
        """How many calls the record in a folder holds."""
        return self._tools["with"].recorded(Given(folder=Path(folder), **self._given))


def main() -> None:
    adapter, folder, url, sink = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print is no answer
    warnings.simplefilter("ignore")
    os.chdir(folder)  # some keep their file where they are started
    tool: Enforcer = importlib.import_module(f"{adapter}_peer").Enforcer()
    bench = Bench(tool, Path(folder), url, sink)
    print(json.dumps({"leaves": tool.leaves, "raw": "raw" in tool.can}), file=answers, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "die" in wanted:
            bench.die(wanted["die"], wanted["chunks"])
        answer = bench.recorded(wanted["recorded"]) if "recorded" in wanted else bench.block(**wanted)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # some tools wait for their backend when they end


if __name__ == "__main__":
    main()
