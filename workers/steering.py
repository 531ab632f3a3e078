"""What users ask of the attempts that a node carries out: looked up for all of them at once, while there are some.

A cancelled attempt shall end within two seconds, so it cannot wait for the next renewal of its lease. The word comes
from the database, so it also comes while the broker is away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa

from farm.db import Database
from farm.lifecycle import steering
from farm.lifecycle.steering import Key, Wish

_logger = logging.getLogger(__name__)


class Asked:
    """What is asked of one attempt; selectors can wait for it.

    Attributes:
        since: when its node began with the attempt, seconds since the epoch.
        wish: what is asked; None for nothing.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.since = time.time()
        self.wish: Wish | None = None

    def fileno(self) -> int:
        """A descriptor that is readable once something is asked."""
        return self._reader

    def say(self, wish: Wish) -> None:
        """Ask for something; what is asked first counts, but for a cancellation."""
        if self.wish is None:
            os.write(self._writer, b".")
        if self.wish is None or wish.cancel:
            self.wish = wish

    def close(self) -> None:
        """Nobody waits any more."""
        os.close(self._reader)
        os.close(self._writer)


class Steering:
    """Looks every ``poll_s`` seconds for what is asked, with one query, and not at all while the node is idle.

    Args:
        database: of the farm.
        poll_s: between two looks.
    """

    def __init__(self, database: Database, *, poll_s: float) -> None:
        self._database = database
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._attempts: dict[Key, Asked] = {}
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def attempt(self, job_id: int, number: int) -> Iterator[Asked]:
        """Look after an attempt until the block ends."""
        key, asked = (job_id, number), Asked()
        with self._lock:
            self._attempts[key] = asked
            self._busy.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="steering", daemon=True)
                self._thread.start()
        try:
            yield asked
        finally:
            with self._lock:
                del self._attempts[key]
                asked.close()
                if not self._attempts:
                    self._busy.clear()

    def attempts(self) -> dict[Key, float]:
        """The attempts that the node carries out, and since when."""
        with self._lock:
            return {key: asked.since for key, asked in self._attempts.items()}

    def look(self) -> None:
        """Look once, and tell the attempts of which something is asked."""
        with self._lock:
            keys = list(self._attempts)
        if not keys:
            return
        with self._database.read() as connection:
            found = steering.wishes(connection, keys)
        with self._lock:
            for key, wish in found.items():
                if key in self._attempts:  # it may have ended meanwhile
                    self._attempts[key].say(wish)

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._busy.wait()
            pause.wait(self._poll_s)
            try:
                self.look()
            except sa.exc.DBAPIError as error:  # renewals of leases say so, too, and know what it means
                _logger.debug("cannot see what is asked: %s", error)
