"""Connections to a server that give up on one which keeps silent.

A server that was stopped, or a network that swallows packets, gives no error: the driver would wait for ever. The time is counted
here and not by the server, whose time-outs do not run while it is stopped, and need a session that a pooler does not give.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Generator
from types import ModuleType
from typing import Any

#: Seconds of silence after which a statement of the ledger is given up. More than the ledger's rows are waited for in a crowd.
SILENCE = 20.0
#: The same for what may take long: reports, tables, the sweep of chunks.
LONG_SILENCE = 300.0


class _Waiting(threading.local):
    """Since when (on the monotonic clock) somebody has been waiting for what this thread does; None: since it began to."""

    since: float | None = None


waiting = _Waiting()


@functools.cache
def patient(psycopg: ModuleType) -> Any:
    """The driver's connection class, with `silence`, and the error that a silent server raises."""

    class Silent(psycopg.OperationalError):  # type: ignore[misc, name-defined]
        """Nothing came from the server for too long. Whether it did what it was asked is not known."""

    class Connection(psycopg.Connection):  # type: ignore[misc, name-defined]
        """Closes itself when the server keeps silent for more than `silence` seconds."""

        silence = SILENCE

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return super().wait(self._watched(gen), *args, **kwargs)

        def _watched(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            """`gen`, which is told every tenth of a second that nothing came."""
            heard = time.monotonic()
            try:
                wanted = next(gen)
                while True:
                    try:
                        ready = yield wanted
                    except BaseException as error:  # an interrupt: the driver wants to tidy up
                        wanted = gen.throw(error)
                        continue
                    if ready:
                        heard = time.monotonic()
                    elif time.monotonic() - heard > self.silence:
                        gen.close()
                        self.pgconn.finish()  # at once: closing politely would ask the server
                        raise Silent(f"the server kept silent for {self.silence:g} s")
                    wanted = gen.send(ready)
            except StopIteration as end:
                return end.value

    Connection.Silent = Silent
    return Connection
