"""Successes of a node on their way into the database: those of one moment share a transaction."""

from __future__ import annotations

import concurrent.futures
import threading

import sqlalchemy.exc

from farm.db import Database
from farm.errors import StaleTransition
from farm.lifecycle import attempts
from farm.records import Success

_Waiting = tuple[Success, "concurrent.futures.Future[bool]"]


class Ledger:
    """Writes successes for many threads. While one of them writes, the next ones come together."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._adding = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: list[_Waiting] = []

    def succeed(self, success: Success) -> None:
        """Write a success; returns when it is committed.

        Raises:
            StaleTransition: the attempt is no longer this node's.
            sqlalchemy.exc.DBAPIError: the database did not take it.
        """
        mine: concurrent.futures.Future[bool] = concurrent.futures.Future()
        with self._adding:
            self._waiting.append((success, mine))
        with self._writing:  # whoever wrote meanwhile may have written this one, too
            if not mine.done():
                with self._adding:
                    found, self._waiting = self._waiting, []
                self._write(found)
        if not mine.result():
            raise StaleTransition(f"Attempt {success.attempt} of job j{success.job_id} is over: it came too late.")

    def _write(self, found: list[_Waiting]) -> None:
        """Write successes and tell whether each was still due."""
        try:
            with self._database.write() as connection:
                moved = attempts.succeed_all(connection, [success for success, _ in found])
        except sqlalchemy.exc.DBAPIError as error:
            if len(found) > 1 and not isinstance(error, sqlalchemy.exc.OperationalError):
                for one in found:  # what is wrong with one of them must not hold up the others
                    self._write([one])
                return
            for _, future in found:
                future.set_exception(error)
            return
        for success, future in found:
            future.set_result(success.job_id in moved)
