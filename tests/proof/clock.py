"""A clock that stands still until it is told otherwise, and hosts whose own clocks are wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

START = 1_000_000.0


class Clock:
    """The database's clock."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    @contextlib.contextmanager
    def wrong_by(self, seconds: float) -> Iterator[None]:
        """Do something on a host whose own clock is ahead of this one: nothing may come of it."""
        real = time.time
        time.time = lambda: self.now + seconds
        try:
            yield
        finally:
            time.time = real
