"""Ending the embedded farm of a home in the way that its user wants: finish what runs, hand it back, or kill it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from farm.db import Database
from farm.home import closing, local
from farm.home.closing import Running
from farm.home.local import LocalFarm
from farm.settings import Settings

_POLL_S = 0.2
_SAY_EVERY_S = 5.0
_REASON = "its farm was stopped"


class Shutdown:
    """One way down. The database may be away, or gone: then processes end and nothing is written.

    Args:
        settings: the home.
        found: its farm.
        database: None when there is none that can be used.
    """

    def __init__(self, settings: Settings, found: LocalFarm, *, database: Database | None) -> None:
        self._settings = settings
        self._found = found
        self._database = database
        self._node_ids: list[int] = []
        self._running: list[Running] = []

    def begin(self) -> Sequence[Running]:
        """Let nothing new begin; returns what runs."""
        with self._writing() as connection:
            if connection is not None:
                pids = [child.pid for child in self._found.children.values()]
                self._node_ids = closing.nodes_of(connection, host=self._settings.host, pids=pids)
                closing.close_nodes(connection, self._node_ids)
                self._running = closing.running_on(connection, self._node_ids)
        return self._running

    def wait(self, *, limit_s: float | None, progress: Callable[[Sequence[Running]], None]) -> bool:
        """Wait until nothing runs; False when something still does after ``limit_s``, or the farm has ended."""
        began = said = time.monotonic()
        while True:
            with self._writing() as connection:
                left = closing.running_on(connection, self._node_ids) if connection is not None else []
            if not left:
                return True
            now = time.monotonic()
            if (limit_s is not None and now - began > limit_s) or not self._found.keeper.lives():
                return False
            if now - said > _SAY_EVERY_S:
                said = now
                progress(left)
            time.sleep(_POLL_S)

    def end(self) -> list[int]:
        """End the farm; its nodes hand back what still runs. Returns the jobs of that."""
        local.stop(self._settings)
        local.sweep(self._settings)
        return self._handed_back()

    def kill(self) -> list[int]:
        """Kill every process of the farm at once, and give back what ran; returns the jobs of that."""
        local.kill(self._settings)
        local.sweep(self._settings)
        if self._database is not None:
            with contextlib.suppress(sa.exc.DBAPIError):
                closing.interrupt_all(self._database, self._running, reason=_REASON)
        return self._handed_back()

    def _handed_back(self) -> list[int]:
        with self._writing() as connection:
            return closing.interrupted(connection, self._running) if connection is not None else []

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection | None]:
        """A transaction, or None where no database answers; from then on there is none."""
        if self._database is None:
            yield None
            return
        try:
            with self._database.write() as connection:
                yield connection
        except sa.exc.DBAPIError:
            self._database = None
