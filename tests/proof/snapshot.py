"""All rows of a database: read to be compared or judged, forgotten, and put back.

They are read after each step of thousands, so all of it goes past SQLAlchemy's own handling of rows and types.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from farm import models
from farm.db import Database

TABLES = models.metadata.sorted_tables
_ROWS = {table.name: collections.namedtuple(table.name, table.c.keys()) for table in TABLES}
_KEYS = {table.name: ", ".join(table.primary_key.columns.keys()) for table in TABLES}
_JSON = {
    table.name: [place for place, column in enumerate(table.c) if isinstance(column.type, sa.JSON)] for table in TABLES
}
_SELECT = {
    table.name: f"SELECT {', '.join(table.c.keys())} FROM {table.name} ORDER BY {_KEYS[table.name]}" for table in TABLES
}
_IN_ONE = sa.select(
    *(sa.text(f"(SELECT json_agg(t ORDER BY {_KEYS[table.name]}) FROM {table.name} t)") for table in TABLES)
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
            ours, theirs = set(map(repr, mine)), set(map(repr, other.rows[name]))
            if ours != theirs:
                found[name] = (ours - theirs, theirs - ours)
        return found


def take(database: Database) -> Snapshot:
    """What the database holds now."""
    with database.read() as connection:
        if database.dialect == "sqlite":
            cursor = connection.connection.cursor()
            return Snapshot({name: _of_sqlite(cursor, name) for name in _SELECT})
        found = connection.execute(_IN_ONE).one()  # all tables with one question
    made = ((name, rows or (), _ROWS[name]) for name, rows in zip(_SELECT, found, strict=True))
    return Snapshot({name: tuple(make(**row) for row in rows) for name, rows, make in made})


def _of_sqlite(cursor: Any, name: str) -> tuple[Any, ...]:
    make, places = _ROWS[name]._make, _JSON[name]
    rows = cursor.execute(_SELECT[name]).fetchall()
    if not places:
        return tuple(map(make, rows))
    found = []
    for row in rows:
        values = list(row)
        for place in places:
            values[place] = None if values[place] is None else json.loads(values[place])
        found.append(make(values))
    return tuple(found)


def empty(database: Database) -> None:
    """Forget all rows and begin to count ids again."""
    with database.write() as connection:
        _empty(connection)


def restore(database: Database, snapshot: Snapshot) -> None:
    """Make the database hold what it held when the snapshot was taken."""
    with database.write() as connection:
        _empty(connection)
        with _unchecked(connection):
            for table in TABLES:
                rows = [row._asdict() for row in snapshot[table]]
                if rows:
                    connection.execute(sa.insert(table), rows)
    count_ids_from(database, snapshot)


def count_ids_from(database: Database, snapshot: Snapshot) -> None:
    """Let the next ids follow those of a snapshot: PostgreSQL does not give those again that were rolled back."""
    if database.dialect != "postgresql":
        return
    following = []
    for table in TABLES:
        if table.c[0].autoincrement is True:
            last = max((row.id for row in snapshot[table]), default=0)
            following.append(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), last + 1, False))
    with database.write() as connection:
        connection.execute(sa.select(*following))


def _empty(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        names = ", ".join(table.name for table in TABLES)
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        return
    with _unchecked(connection):
        for table in reversed(TABLES):
            connection.exec_driver_sql(f"DELETE FROM {table.name}")


@contextlib.contextmanager
def _unchecked(connection: sa.Connection) -> Iterator[None]:
    """Let rows come in any order: those that they refer to may come later."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
        yield
    else:
        connection.execute(sa.text("PRAGMA defer_foreign_keys = ON"))
        yield
