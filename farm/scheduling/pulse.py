"""Waiting until somebody writes to the database, at next to no cost.

SQLite counts commits of others in ``PRAGMA data_version``, which takes microseconds to look at; the kernel says when to
look, for every commit is written to the log beside the database. PostgreSQL is asked for its newest rows, and a
submission wakes the scheduler with a notification. Both are hints that may be missing or lost, SQLite's where there is
no inotify, PostgreSQL's behind a pooler: the next look finds what was written.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from farm.db import WAKE_CHANNEL, Database
from farm.scheduling.file_watch import FileWatch

_UNTOLD_LOOK_S = 0.04  # between two looks at SQLite where nobody says when
_FIRST_LOOK_S, _LONGEST_LOOK_S, _GROWTH = 0.001, 1.0, 2.0  # where the kernel does, after it did and nothing was seen
_NEWEST = "SELECT (SELECT max(id) FROM events), (SELECT max(id) FROM nodes)"


class Pulse:
    """Watches a database for what others write."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._sqlite = database.dialect == "sqlite"
        self._connection: sa.PoolProxiedConnection | None = None
        self._watch: FileWatch | None = None  # of SQLite's log
        self._look_s = _LONGEST_LOOK_S
        self._last: tuple[int | None, ...] = ()

    def wait(self, limit_s: float, *, look_s: float = _LONGEST_LOOK_S) -> bool:
        """Wait until somebody has written since the last call; whether somebody has.

        Args:
            limit_s: how long at most.
            look_s: between two looks at PostgreSQL, where not all who write say so.

        Raises:
            sqlalchemy.exc.DBAPIError: the database does not answer.
        """
        driver = self._engine.dialect.loaded_dbapi
        try:
            return self._wait(time.monotonic() + limit_s, look_s=look_s)
        except driver.Error as error:
            raise sa.exc.OperationalError("wait for writes", None, error) from error

    def _wait(self, deadline: float, *, look_s: float) -> bool:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
            if not self._sqlite:
                self._driver.autocommit = True
                self._driver.execute(f"LISTEN {WAKE_CHANNEL}")
            else:
                self._watch = self._watch_log()
        while True:
            told = self._watch is not None and self._watch.written()  # asked before the look: what comes later is news
            if self._changed():
                self._look_s = _LONGEST_LOOK_S
                return True
            # A commit counts a moment after it is written.
            self._look_s = _FIRST_LOOK_S if told else min(_LONGEST_LOOK_S, _GROWTH * self._look_s)
            rest_s = deadline - time.monotonic()
            if rest_s <= 0:
                return False
            if self._watch is not None:
                self._watch.wait(min(self._look_s, rest_s))
            elif self._sqlite:
                time.sleep(min(_UNTOLD_LOOK_S, rest_s))
            else:
                for _ in self._driver.notifies(timeout=min(look_s, rest_s), stop_after=1):
                    break  # the next look says what there is

    def _watch_log(self) -> FileWatch | None:
        """A watch on SQLite's write-ahead log, which lives as long as somebody is connected; None where it has none."""
        self._driver.execute("SELECT count(*) FROM sqlite_schema")  # whoever reads makes the file if nobody has
        with contextlib.suppress(OSError):
            return FileWatch(Path(f"{self._engine.url.database}-wal"))
        return None

    @property
    def _driver(self) -> Any:
        """The driver's own connection."""
        return self._connection.driver_connection if self._connection is not None else None

    def _changed(self) -> bool:
        query = "PRAGMA data_version" if self._sqlite else _NEWEST
        now: tuple[int | None, ...] = self._driver.execute(query).fetchone()
        changed, self._last = now != self._last, now
        return changed

    def close(self) -> None:
        """Give up the connection, after an error for example."""
        if self._connection is not None:
            driver = self._driver
            with contextlib.suppress(sa.exc.DBAPIError, self._engine.dialect.loaded_dbapi.Error):
                self._connection.detach()  # it must not come back to the pool: it listens
                driver.close()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._connection, self._last = None, ()  # nobody knows what is missed meanwhile
