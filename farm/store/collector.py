"""The leading scheduler's garbage collection: in a thread of its own, now and then, and only over a budget."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa

from farm import db
from farm.errors import StaleTransition, StorageFault
from farm.settings import Settings
from farm.store import catalogue, collection

AT_ONCE = 200  # artifacts that one round condemns and deletes

_logger = logging.getLogger(__name__)
_EVERY_S = collection.GRACE_S  # what one round condemns the next may delete
_PATIENCE_S = 2.0  # at the end; a round that is cut off is gone on with by the next


class Collector:
    """Collects for a scheduler while that does its rounds.

    Args:
        settings: of the farm; without a budget of the store nothing is ever done.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread: threading.Thread | None = None
        self._next = 0.0

    def poke(self, term: int | None) -> None:
        """Begin a round if it is time for one and none is under way; returns at once.

        Args:
            term: of the scheduler; a round whose term is over changes nothing more.
        """
        if self._settings.store_budget_bytes is None or time.monotonic() < self._next:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._next = time.monotonic() + _EVERY_S
        self._thread = threading.Thread(target=self._run, args=(term,), name="collector", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give a round that is under way a moment to end."""
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def _run(self, term: int | None) -> None:
        database = db.open_database(self._settings.database_url)
        try:
            report = collect_if_over(database, settings=self._settings, term=term)
        except (StaleTransition, StorageFault, sa.exc.DBAPIError) as error:
            _logger.warning("the store was not collected: %s", error)
        else:
            if report is not None and (report.condemned or report.deleted):
                _logger.info(
                    "the store: %d artifacts condemned, %d deleted (%d bytes)",
                    len(report.condemned),
                    len(report.deleted),
                    report.deleted_bytes,
                )
        finally:
            database.dispose()


def collect_if_over(database: db.Database, *, settings: Settings, term: int | None) -> collection.Report | None:
    """Do a round if the store may be over its budget, or if something is condemned; None if there was nothing to do.

    Whether it may be is seen without a look at the disk: what artifacts share counts for each of them.

    Raises:
        StorageFault: the store cannot be read or written.
        StaleTransition: the term is over.
    """
    budget_bytes = settings.store_budget_bytes
    with database.read() as connection:
        totals = catalogue.totals(connection)
    if budget_bytes is None or (totals.num_bytes <= budget_bytes and not totals.num_condemned):
        return None
    policy = collection.Policy(budget_bytes=budget_bytes, limit=AT_ONCE)
    return collection.collect(database, collection.places(settings), policy=policy, term=term)
