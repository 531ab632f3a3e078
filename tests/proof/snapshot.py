"""All rows of a database: read to be compared or judged, forgotten, and put back."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from farm import models
from farm.db import Database

TABLES = models.metadata.sorted_tables
_ALL = {table.name: sa.select(table).order_by(*table.primary_key.columns) for table in TABLES}
_ROWS = {table.name: collections.namedtuple(table.name, table.c.keys()) for table in TABLES}
_IN_ONE = sa.select(
    *(
        sa.text(f"(SELECT json_agg(t ORDER BY {', '.join(table.primary_key.columns.keys())}) FROM {table.name} t)")
        for table in TABLES
    )
)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The rows of all tables by the table's name, in the order of their keys."""

    rows: Mapping[str, tuple[Any, ...]]

    def __getitem__(self, table: sa.Table) -> tuple[Any, ...]:
        return self.rows[table.name]

    def differences(self, other: Snapshot) -> dict[str, tuple[set[str], set[str]]]:
        """By table: what only this one has and what only the other has; for people who read a failed test."""
        found = {}
        for name, mine in self.rows.items():
            ours, theirs = {repr(row._asdict()) for row in mine}, {repr(row._asdict()) for row in other.rows[name]}
            if ours != theirs:
                found[name] = (ours - theirs, theirs - ours)
        return found


def take(database: Database) -> Snapshot:
    """What the database holds now."""
    with database.read() as connection:
        if database.dialect == "sqlite":
            return Snapshot({name: tuple(connection.execute(query).all()) for name, query in _ALL.items()})
        # All tables with one question: a server is asked for them after each step.
        found = connection.execute(_IN_ONE).one()
    made = ((name, rows or (), _ROWS[name]) for name, rows in zip(_ALL, found, strict=True))
    return Snapshot({name: tuple(make(**row) for row in rows) for name, rows, make in made})


def empty(database: Database) -> None:
    """Forget all rows and begin to count ids again."""
    with database.write() as connection:
        if database.dialect == "postgresql":
            names = ", ".join(table.name for table in TABLES)
            connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        else:
            with _unchecked(connection):
                for table in reversed(TABLES):
                    connection.execute(sa.delete(table))


def restore(database: Database, snapshot: Snapshot) -> None:
    """Make the database hold what it held when the snapshot was taken."""
    empty(database)
    with database.write() as connection, _unchecked(connection):
        for table in TABLES:
            rows = [row._asdict() for row in snapshot[table]]
            if rows:
                connection.execute(sa.insert(table), rows)
            if rows and database.dialect == "postgresql" and "id" in table.c and table.c.id.autoincrement is True:
                sequence = sa.func.pg_get_serial_sequence(table.name, "id")
                connection.execute(sa.select(sa.func.setval(sequence, max(row["id"] for row in rows))))


@contextlib.contextmanager
def _unchecked(connection: sa.Connection) -> Iterator[None]:
    """Let rows come in any order: those that they refer to may come later."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        yield
    else:
        connection.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
        yield
