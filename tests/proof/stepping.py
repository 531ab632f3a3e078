"""Work that stops before each of its transactions, until it is told to go on: or never goes on again.

The work is the farm's own code, in a thread of its own. One thread runs at a time, so an interleaving is what the
caller says it is, and the same calls give the same one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from farm.db import Database

Watch = Callable[[], contextlib.AbstractContextManager[None]]


class _Killed(BaseException):
    """The process ends here. No handler of the code that runs may catch it."""


class SteppedDatabase(Database):
    """A database whose transactions wait for a gate and are watched."""

    def __init__(self, database: Database, *, gate: Callable[[], None], watch: Watch) -> None:
        super().__init__(database.engine)
        self._gate = gate
        self._watch = watch

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """As :meth:`farm.db.Database.write`, when the gate opens."""
        self._gate()
        with self._watch(), super().write() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """As :meth:`farm.db.Database.read`, when the gate opens."""
        self._gate()
        with super().read() as connection:
            yield connection


class Stepped:
    """Work that is done one transaction at a time.

    Args:
        database: where.
        work: what; it gets the database to use.
        watch: surrounds each writing transaction.
    """

    def __init__(self, database: Database, work: Callable[[Database], Any], *, watch: Watch) -> None:
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._error: BaseException | None = None
        self.is_over = False
        self.result: Any = None
        self._work = work
        self._database = SteppedDatabase(database, gate=self._wait, watch=watch)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._paused.acquire()

    def step(self) -> bool:
        """Go on to before the next transaction, or to the end; False at the end.

        Raises:
            BaseException: what the work raised.
        """
        if not self.is_over:
            self._go.release()
            self._paused.acquire()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
        return not self.is_over

    def finish(self) -> Any:
        """Go on to the end; what the work returned."""
        while self.step():
            pass
        return self.result

    def kill(self) -> None:
        """Let the work end where it stands, as SIGKILL does."""
        self._killed = True
        while not self.is_over:
            self._go.release()
            self._paused.acquire()
        self._thread.join()

    def _wait(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self._killed:
            raise _Killed

    def _run(self) -> None:
        try:
            self._wait()
            self.result = self._work(self._database)
        except _Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._error = error
        self.is_over = True
        self._paused.release()
