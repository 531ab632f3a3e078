"""The database: engine, transactions, clock, revision. SQLite for one host, PostgreSQL for many."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm.errors import DatabaseTooNew, FarmNotUp, Refused

# Every revision of migrations/versions, oldest first. Kept here so that commands need not import Alembic.
REVISIONS = ("0001", "0002", "0003")
HEAD = REVISIONS[-1]

# PostgreSQL tells the scheduler on this channel that there is something to do. A hint: the tables are looked at anyway.
WAKE_CHANNEL = "farm_wake"

BUSY_TIMEOUT_MS = 10_000  # how long SQLite waits for another writer
# One process opens no more, and keeps two: a node of 16 cores must not take a tenth of the server's 100 connections.
# Threads beyond wait for one that comes back, which takes milliseconds.
POSTGRESQL_CONNECTIONS = 8
_POOL_PATIENCE_S = 60.0
_ROWS_AT_ONCE = 10_000
_WRITE = "farm_write"

# A server that is cut off or has lost its power says nothing: without these a connection waits for many minutes.
# Parameters of libpq; those of TCP count for nothing on a unix socket.
_TCP = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_CLOCK = "farm_clock"


class Database:
    """One database and its connections.

    Writers of SQLite take the lock at BEGIN: a transaction that begins by reading and then writes could not wait for
    it later (SQLITE_BUSY without regard to the timeout).
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{_WRITE: True})

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self.engine.dialect.name

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A connection in a transaction that is committed at the end, or rolled back on an exception."""
        with self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection in a transaction that only reads."""
        with self.engine.connect() as connection:
            yield connection

    def check(self) -> None:
        """Raise unless the database has the tables that this program knows.

        Raises:
            FarmNotUp: there is no database, or no farm in it, or it does not answer.
            DatabaseTooNew: its revision is unknown here.
            Refused: its revision is older.
        """
        revision = self._revision()
        if revision is None:
            raise FarmNotUp(f"There is no farm in {self._place()}. Start one with: farm up")
        if revision not in REVISIONS:
            raise DatabaseTooNew(
                f"The database {self._place()} has revision {revision}, this program knows up to {HEAD}. "
                "Use the newer qeff-farm that wrote it."
            )
        if revision != HEAD:
            raise Refused(f"The database {self._place()} has revision {revision}, expected {HEAD}. Run: farm up")

    def _revision(self) -> str | None:
        file = self.engine.url.database
        if self.dialect == "sqlite" and file and file != ":memory:" and not Path(file).exists():
            return None
        try:
            with self.read() as connection:
                if not sa.inspect(connection).has_table("alembic_version"):
                    return None
                found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
                return found
        except sa.exc.DBAPIError as error:
            raise FarmNotUp(f"The database {self._place()} does not answer: {error.orig}.") from error

    def _place(self) -> str:
        url = self.engine.url
        return str(url.database) if self.dialect == "sqlite" else url.render_as_string(hide_password=True)

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str, *, clock: Callable[[], float] | None = None) -> Database:
    """The database at a URL; nothing is created or connected yet.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...``.
        clock: what :func:`now` asks instead of the database, so that a test says how late it is.
    """
    parsed = sa.make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(parsed, max_overflow=64)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        pool = {"pool_size": 2, "max_overflow": POSTGRESQL_CONNECTIONS - 2, "pool_timeout": _POOL_PATIENCE_S}
        engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=_TCP, **pool)
    if clock is not None:
        engine = engine.execution_options(**{_CLOCK: clock})
    return Database(engine)


def is_busy(error: sa.exc.DBAPIError) -> bool:
    """Whether SQLite gave up waiting for another process."""
    return getattr(error.orig, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def now(connection: sa.Connection) -> float:
    """The database's clock, in seconds since the epoch. SQLite lives on one host, whose clock is the clock."""
    clock: Callable[[], float] | None = connection.get_execution_options().get(_CLOCK)
    if clock is not None:
        return clock()
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(_POSTGRESQL_NOW).scalar_one())


_POSTGRESQL_NOW = sa.text("SELECT extract(epoch FROM clock_timestamp())")


def wake_scheduler(connection: sa.Connection) -> None:
    """Let the scheduler look at what this transaction writes as soon as it is committed."""
    if connection.dialect.name == "postgresql":  # it sees SQLite's commits by itself
        connection.execute(sa.select(sa.func.pg_notify(WAKE_CHANNEL, "")))


def recordset(dialect: str, table: sa.Table, names: Sequence[str]) -> Any:
    """A list of rows, given as the one parameter ``rows``, in the shape of a table: columns ``names`` of ``table``.

    One parameter instead of one for each value: the driver takes longer over those than the server over the rows.
    """
    rows = sa.bindparam("rows", type_=sa.JSON)
    if dialect != "sqlite":
        columns = (sa.column(name, table.c[name].type) for name in names)
        return sa.func.json_to_recordset(rows).table_valued(*columns).render_derived(with_types=True)
    each = sa.func.json_each(rows).table_valued(sa.column("value", sa.JSON))
    taken = (sa.func.json_extract(each.c.value, f"$.{name}", type_=table.c[name].type).label(name) for name in names)
    return sa.select(*taken).subquery("given")


def insert_all(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns, tens of thousands if need be."""
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(sa.insert(table), rows)
        return
    names = list(rows[0])
    statement = sa.insert(table).from_select(names, sa.select(recordset(connection.dialect.name, table, names)))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        connection.execute(statement, {"rows": rows[start : start + _ROWS_AT_ONCE]})


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions of its own: it would begin them deferred, and not before DDL.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get(_WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
