"""Waiting until somebody writes to the database, at next to no cost.

SQLite counts commits of others in ``PRAGMA data_version``, which takes microseconds to look at. PostgreSQL is asked for
its newest rows, and a submission wakes the scheduler with a notification: a hint that may be lost, for example behind a
pooler, where the next look finds what was written.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import sqlalchemy as sa

from farm.db import WAKE_CHANNEL, Database

_SQLITE_LOOK_S = 0.04
_NEWEST = "SELECT (SELECT max(id) FROM events), (SELECT max(id) FROM nodes)"


class Pulse:
    """Watches a database for what others write."""

    def __init__(self, database: Database) -> None:
        self._engine = database.engine
        self._sqlite = database.dialect == "sqlite"
        self._connection: sa.PoolProxiedConnection | None = None
        self._last: tuple[int | None, ...] = ()

    def wait(self, limit_s: float) -> bool:
        """Wait until somebody has written since the last call, for ``limit_s`` at most; whether somebody has.

        Raises:
            sqlalchemy.exc.DBAPIError: the database does not answer.
        """
        driver = self._engine.dialect.loaded_dbapi
        try:
            return self._wait(time.monotonic() + limit_s)
        except driver.Error as error:
            raise sa.exc.OperationalError("wait for writes", None, error) from error

    def _wait(self, deadline: float) -> bool:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
            if not self._sqlite:
                self._driver.autocommit = True
                self._driver.execute(f"LISTEN {WAKE_CHANNEL}")
        while True:
            if self._changed():
                return True
            rest_s = deadline - time.monotonic()
            if rest_s <= 0:
                return False
            if self._sqlite:
                time.sleep(min(_SQLITE_LOOK_S, rest_s))
            else:
                for _ in self._driver.notifies(timeout=rest_s, stop_after=1):
                    break  # the next look says what there is

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
        self._connection, self._last = None, ()  # nobody knows what is missed meanwhile
