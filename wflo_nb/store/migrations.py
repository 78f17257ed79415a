"""Bringing a database to the schema of this version: first set-up and numbered steps.

The caller holds a lock that all other starters respect, and a transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wflo_nb.errors import SchemaVersionError, StoreUnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: What this version of the package reads and writes.
VERSION = 2
VERSION_KEY = "schema_version"
SELECT_VERSION = f"SELECT value FROM wflo_meta WHERE key = '{VERSION_KEY}'"


def _to_2(connection: Connection) -> None:
    """Shared budgets with periods; leases and spools."""
    from wflo_nb.store import schema

    # One DDL statement each, and only types that both databases know by these names.
    for column, kind in (("lease_nano", "BIGINT"), ("name", "TEXT"), ("period", "TEXT"), ("zone", "TEXT")):
        connection.exec_driver_sql(f"ALTER TABLE budgets ADD COLUMN {column} {kind}")
    schema.metadata.create_all(connection, [schema.leases, schema.spool_ops])


#: ``(to, step)`` in order. A step brings a database of version ``to - 1`` to ``to``; it is never edited once released.
STEPS: list[tuple[int, Callable[[Connection], None]]] = [(2, _to_2)]


def is_current(found: str | None, location: str) -> bool:
    """Whether a database with this version text (None: no tables yet) needs nothing.

    Raises:
        SchemaVersionError: it was written by a newer version of this package.
    """
    if found is None:
        return False
    if int(found) > VERSION:
        raise SchemaVersionError(
            f"The store at {location} has schema version {found}, and this wflo_nb knows versions up to {VERSION}. Upgrade with "
            "`pip install -U wflo_nb`, or use another store (WFLO_STORE, `%wflo connect PATH`). Nothing was changed."
        )
    return int(found) == VERSION


def migrate(connection: Connection, location: str) -> None:
    """Create the tables, or take the steps that are missing. Does nothing on a current database.

    Raises:
        SchemaVersionError: the database is newer than this code.
        StoreUnavailableError: a table of ours exists and is not ours.
    """
    import sqlalchemy as sa

    from wflo_nb.store import schema

    present = set(sa.inspect(connection).get_table_names())
    found: str | None = None
    if schema.meta.name in present:
        found = connection.execute(sa.select(schema.meta.c.value).where(schema.meta.c.key == VERSION_KEY)).scalar()
    if is_current(found, location):
        return
    if found is None:
        if foreign := sorted(present & set(schema.metadata.tables)):
            raise StoreUnavailableError(
                f"The database at {location} already has a table named {foreign[0]} that was not made by wflo_nb. "
                "Use a database (or a PostgreSQL schema) of its own."
            )
        schema.metadata.create_all(connection)
        connection.execute(schema.meta.insert().values(key=VERSION_KEY, value=str(VERSION)))
        return
    for to, step in STEPS:
        if to > int(found):
            step(connection)
    connection.execute(schema.meta.update().where(schema.meta.c.key == VERSION_KEY).values(value=str(VERSION)))
