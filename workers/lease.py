"""An attempt's lease as its node sees it: renewed in SQL, trusted by the node's own clock."""

from __future__ import annotations

import enum
import logging
import time

import sqlalchemy.exc

from farm import attempts
from farm.db import Database
from farm.errors import StaleTransition
from farm.settings import Settings

_logger = logging.getLogger(__name__)
_RETRY_S = 1.0
_SAFETY = 0.25  # part of the lease that must be left when its process is killed, for the killing takes time


class Verdict(enum.Enum):
    """What a renewal says."""

    HELD = "held"
    CANCEL = "cancel"  # held, and a user asked to stop
    LOST = "lost"  # somebody else has the job, or may have it soon: stop at once


class Lease:
    """A claim that was just made.

    Args:
        database: where it is kept.
        settings: its length and rhythm.
        job_id: whose it is.
        attempt: the fence.
        since: monotonic time before the claim was made.
    """

    def __init__(self, database: Database, *, settings: Settings, job_id: int, attempt: int, since: float) -> None:
        self._database = database
        self._settings = settings
        self._job_id = job_id
        self._attempt = attempt
        self._renewed = since
        self._next = since + settings.heartbeat_s

    def due_in(self) -> float:
        """Seconds until it should be renewed."""
        return max(0.0, self._next - time.monotonic())

    def renew_when_due(self, *, progress: str | None, fraction: float | None) -> Verdict:
        """Renew it if it is time, and tell how far the stage is."""
        return Verdict.HELD if self.due_in() > 0 else self._renew(progress=progress, fraction=fraction)

    def _renew(self, *, progress: str | None, fraction: float | None) -> Verdict:
        began = time.monotonic()
        self._next = began + self._settings.heartbeat_s
        try:
            with self._database.write() as connection:
                cancel = attempts.heartbeat(
                    connection,
                    self._job_id,
                    self._attempt,
                    lease_s=self._settings.lease_s,
                    progress=progress,
                    fraction=fraction,
                )
        except StaleTransition:
            return Verdict.LOST
        except sqlalchemy.exc.DBAPIError as error:
            self._next = began + min(_RETRY_S, self._settings.heartbeat_s)
            age_s = time.monotonic() - self._renewed
            _logger.warning("job %d: cannot renew the lease since %.0f s: %s", self._job_id, age_s, error)
            return Verdict.LOST if age_s > self._settings.lease_s * (1 - _SAFETY) else Verdict.HELD
        self._renewed = began
        return Verdict.CANCEL if cancel else Verdict.HELD
