"""Connections to a PostgreSQL server, a few for all threads, and what is worth a retry.

* A server that keeps silent is given up after a while (`wflo_nb.store.patience`), by all who were waiting for it: one after the other
  would take as long for each.
* A lost connection, a restart, a deadlock, a serialisation failure or a transaction that was undone because this process had been
  stopped is answered by asking again; a statement time-out or a lock time-out is not.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wflo_nb.errors import StoreUnavailableError
from wflo_nb.store.patience import patient, waiting

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

#: How often something is asked at most.
ATTEMPTS = 6

_MOST = 8  # more bought nothing: the rows that matter are few and hot
_RETRIED = frozenset({"25P03", "40001", "40P01", "57P01", "57P02", "57P03"})


class Connections:
    """The connections of one store. Thread-safe. Iterates over those that are open.

    Args:
        url: the server's address, with its secrets.
        location: what users are shown of it.
    """

    def __init__(self, url: str, location: str) -> None:
        import psycopg

        self._psycopg = psycopg
        self._class = patient(psycopg)
        self._url = url
        self._location = location
        self._keep_idle = True
        self._closed = False
        self._inherited: list[Any] = []
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(_MOST)
        self._idle: list[psycopg.Connection[Any]] = []
        self._all: set[psycopg.Connection[Any]] = set()
        self._given_up = 0.0  # when last, on the monotonic clock

    def __iter__(self) -> Iterator[psycopg.Connection[Any]]:
        with self._lock:
            return iter([*self._all])

    def __len__(self) -> int:
        return len(self._all)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection that is not one of these: whoever asks for it closes it."""
        # What the URL says wins: libpq takes the keywords as the URL's parameters, so only what it leaves open is given.
        given = urlsplit(self._url).query
        options: dict[str, Any] = {
            name: value
            for name, value in {
                "connect_timeout": 3,
                "application_name": "wflo_nb",
                "tcp_user_timeout": 20_000,
                "keepalives_idle": 30,
            }.items()
            if name not in given
        }
        connection: psycopg.Connection[Any] = self._class.connect(self._url, autocommit=True, prepare_threshold=None, **options)
        return connection

    def check_open(self) -> None:
        """Do nothing, as long as they are not closed.

        Raises:
            StoreUnavailableError: they are.
        """
        if self._closed:
            raise StoreUnavailableError(f"The store at {self._location} was closed. Open it again with open_store().")

    @contextlib.contextmanager
    def _one(self, since: float) -> Iterator[psycopg.Connection[Any]]:
        with self._slots:
            if self._given_up > since:
                raise self._class.Silent("the server kept silent")
            with self._lock:
                self.check_open()
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self.connect()
                with self._lock:
                    self._all.add(connection)
            try:
                yield connection
            finally:
                with self._lock:
                    healthy = not connection.closed and connection.info.transaction_status == 0
                    keep = healthy and self._keep_idle and not self._closed
                    if keep:
                        self._idle.append(connection)
                    else:
                        self._all.discard(connection)
                if not keep:
                    connection.close()

    def retrying(self, work: Callable[[psycopg.Connection[Any]], T], also: frozenset[str] = frozenset()) -> T:
        """Run `work` with a connection, and again where that may help: so it must change nothing when it is said twice.

        Args:
            work: what to do.
            also: SQLSTATEs that are worth a retry for this work.

        Raises:
            StoreUnavailableError: the store was closed.
            psycopg.Error: the last try failed, or the first that is not worth another.
        """
        since = waiting.since or time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._one(since) as connection:
                    return work(connection)
            except self._psycopg.Error as error:
                if attempt == ATTEMPTS or not (error.sqlstate in also or self._worth_a_retry(error, attempt, since)):
                    if isinstance(error, (self._class.Silent, self._psycopg.errors.ConnectionTimeout)) and self._given_up <= since:
                        self._given_up = time.monotonic()
                    raise
                if error.sqlstate is None or error.sqlstate.startswith("57"):
                    self._drop_idle()  # the server went away: the others are dead as well
            time.sleep(random.uniform(0.5, 1.0) * min(1.0, 0.02 * 3**attempt))
        raise AssertionError("unreachable")

    def _worth_a_retry(self, error: psycopg.Error, attempt: int, since: float) -> bool:
        if error.sqlstate is not None:
            return error.sqlstate in _RETRIED or error.sqlstate.startswith("08")
        if self._given_up > since:
            return False
        if isinstance(error, self._class.Silent):  # once more by a new connection: the old one may have been cut off
            return attempt == 1
        lost = isinstance(error, (self._psycopg.OperationalError, self._psycopg.InterfaceError))
        # A server that does not answer at all has taken the connect time-out already; asking six times would take six of them.
        return lost and not (isinstance(error, self._psycopg.errors.ConnectionTimeout) and attempt > 1)

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            self._all.difference_update(idle)
        for connection in idle:
            with contextlib.suppress(self._psycopg.Error):
                connection.close()

    def retire(self) -> None:
        """Keep none open between uses."""
        self._keep_idle = False
        self._drop_idle()

    def close(self) -> None:
        """Close those that nobody uses; one that is in use closes when it is given back."""
        self.retire()
        self._closed = True

    def forget(self) -> None:
        """After a fork, in the child: they are the parent's. Even closing them would tell the server to hang up on it."""
        self._inherited += self._all
        self._reset()
