"""A database, a clock and a store that many histories use, one after another."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

from farm import testing
from farm.db import Database
from farm.models import events
from tests.proof.clock import Clock
from tests.proof.shelf import Shelf, shelf
from tests.proof.world import World


class Site:
    """Where histories happen, and how much of them has."""

    def __init__(self, database: Database, *, clock: Clock, shelf: Shelf) -> None:
        self.database, self.clock, self.shelf = database, clock, shelf
        self.num_histories = self.num_steps = self.num_transactions = 0
        self.transitions: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def note(self, world: World) -> None:
        """Count what happened in a history."""
        self.num_histories += 1
        self.num_transactions += world.num_transactions
        for event in world.rows[events]:
            if event.from_state is not None:
                self.transitions[event.from_state, event.transition, event.to_state] += 1


@contextlib.contextmanager
def site_at(url: str | None) -> Iterator[Site]:
    """A site in a database at the newest revision: at ``url``, which must be empty, or a temporary SQLite file."""
    clock = Clock()
    with testing.fresh_database(url, clock=clock) as database, shelf(clock) as here:
        yield Site(database, clock=clock, shelf=here)
