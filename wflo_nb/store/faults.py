"""The one place where a database's errors become this package's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from wflo_nb.errors import WfloError


class Explains(Protocol):
    """A database that can say in words what went wrong and what to do next."""

    def explain(self, error: BaseException) -> WfloError | None:
        """The error to raise instead; None if this is not an error of the database."""
        ...


class Translated:
    """``with translated:`` around everything that touches a database. One object serves all threads.

    A class, not a generator: it stands on the path of every call.
    """

    def __init__(self, database: Explains) -> None:
        self._database = database

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raise the explained error in place of the database's own."""
        if error is None or isinstance(error, WfloError):
            return
        told = self._database.explain(error)
        if told is not None:
            # The database's own text is in ours, cleared of secrets; the original might still show them.
            raise told from None


@contextmanager
def unwrapped() -> Iterator[None]:
    """Around SQLAlchemy: let the driver's own error out, so that it is explained like any other."""
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except DBAPIError as error:
        if error.orig is None:
            raise
        raise error.orig from None
