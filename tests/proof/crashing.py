"""A database whose client ends at a chosen moment: before any statement, before a commit, or right after one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from farm.db import Database

BEFORE_STATEMENT, BEFORE_COMMIT, AFTER_COMMIT = "before a statement", "before the commit", "after the commit"


class Crashed(BaseException):
    """The process has ended here. No handler of the code that runs may catch it."""


class CrashingDatabase(Database):
    """Counts the moments at which its client could end, and ends it at one of them.

    Args:
        database: the real one.
        end: called with the number and the kind of each moment before it passes; it may raise :class:`Crashed`, or end
            the process.
    """

    def __init__(self, database: Database, *, end: Callable[[int, str], None]) -> None:
        super().__init__(database.engine)
        self.moments: list[str] = []
        self._end = end

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """As :meth:`farm.db.Database.write`, if the client lives for so long."""
        with super().write() as connection:
            self._listen(connection)
            yield connection
        self._reach(AFTER_COMMIT)

    def _listen(self, connection: sa.Connection) -> None:
        def before_statement(*_: Any) -> None:
            self._reach(BEFORE_STATEMENT, connection)

        def before_commit(*_: Any) -> None:
            self._reach(BEFORE_COMMIT, connection)

        sa.event.listen(connection, "before_cursor_execute", before_statement)
        sa.event.listen(connection, "commit", before_commit)

    def _reach(self, kind: str, connection: sa.Connection | None = None) -> None:
        self.moments.append(kind)
        try:
            self._end(len(self.moments) - 1, kind)
        except Crashed:
            if connection is not None:
                connection.invalidate()  # the database sees its client go, and nobody asks for a rollback
            raise


def ends_at(chosen: int | None) -> Callable[[int, str], None]:
    """What ends a client at the moment of that number, or never."""

    def end(number: int, _: str) -> None:
        if number == chosen:
            raise Crashed

    return end
