"""An attempt's lease as its node sees it: renewed in SQL, trusted by the node's own clock."""

from __future__ import annotations

import enum
import logging
import time

import sqlalchemy.exc

from farm import attempts, durations
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

    def renew_when_due(self, *, progress: str | None, fraction: float | None, run_left_s: float | None) -> Verdict:
        """Renew it if it is time, and tell how far the stage is, and how much of its time is left."""
        if self.due_in() > 0:
            return Verdict.HELD
        return self._renew(progress=progress, fraction=fraction, run_left_s=run_left_s)

    def _renew(self, *, progress: str | None, fraction: float | None, run_left_s: float | None) -> Verdict:
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
                    run_left_s=run_left_s,
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


class RunningTime:
    """How long an attempt may go on, by the node's own clock: its running limit, and the deadline of the whole.

    Args:
        run_limit_s: of the stage, from its start; None for none.
        left_s: until the deadline, from the claim; None for none.
        since: monotonic time before the claim was made.
    """

    def __init__(self, *, run_limit_s: float | None, left_s: float | None, since: float) -> None:
        self._run_limit_s = run_limit_s
        self._deadline = None if left_s is None else since + left_s
        self._limit: float | None = None

    def start(self) -> None:
        """The stage starts now; waiting for its process was none of its time."""
        self._limit = None if self._run_limit_s is None else time.monotonic() + self._run_limit_s

    @property
    def left_s(self) -> float | None:
        """Seconds that are left, below zero when it is over; None when there is no limit."""
        ends = [end for end in (self._limit, self._deadline) if end is not None]
        return min(ends) - time.monotonic() if ends else None

    @property
    def over(self) -> bool:
        """Whether the attempt has to end."""
        left_s = self.left_s
        return left_s is not None and left_s <= 0

    @property
    def words(self) -> str:
        """Which of the two is over, for people."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "The deadline passed while it ran."
        return f"It ran longer than its running limit of {durations.words(self._run_limit_s or 0.0)}."

    def shorter(self, timeout_s: float) -> float:
        """A timeout that does not reach beyond the end."""
        left_s = self.left_s
        return timeout_s if left_s is None else max(0.0, min(timeout_s, left_s))
