"""Attempts' leases as their node sees them: renewed in SQL, trusted by the node's own clock.

Renewals have a thread of their own. A database that is cut off may not even refuse, and whoever watches a stage must
not wait for it: the stage has to end before its lease does.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
from collections.abc import Iterator

import sqlalchemy as sa

from farm import durations
from farm.db import Database
from farm.errors import StaleTransition
from farm.lifecycle import attempts, health
from farm.records import Claim
from farm.settings import Settings

_logger = logging.getLogger(__name__)
_RETRY_S = 1.0
_SAFETY = 0.25  # part of the lease that must be left when its process is killed, for the killing takes time
_TOGETHER = 0.25  # part of a heartbeat's pause by which a renewal may come early, to share a transaction


class Verdict(enum.Enum):
    """What a lease says about its attempt."""

    HELD = "held"
    CANCEL = "cancel"  # held, and a user asked to stop
    DEVICE_GONE = "device gone"  # held, and what it runs on is not there any more
    LOST = "lost"  # somebody else has the job, or may have it soon: stop at once


class Lease:
    """The lease of one claim; selectors can wait for a change of its verdict.

    Attributes:
        job_id, attempt: whose it is.
        time: how long the attempt may run.
        qids: by id of a device that it holds cores of, the number that the stage addresses it by.
        fault: what has become of one of them; empty while nothing has.
        progress, fraction: the stage's last words, which go along with the next renewal.
        renew_at: monotonic time of the next renewal; only the renewing thread changes it.
    """

    def __init__(self, claim: Claim, *, since: float, settings: Settings) -> None:
        self.job_id, self.attempt = claim.job_id, claim.attempt
        self.time = RunningTime(run_limit_s=claim.run_limit_s, left_s=claim.left_s, since=since)
        self.qids = {grant.device_id: grant.qid for grant in claim.grants}
        self.fault = ""
        self.progress: str | None = None
        self.fraction: float | None = None
        self.renew_at = since + settings.heartbeat_s
        self._trusted_s = settings.lease_s * (1 - _SAFETY)
        self._renewed = since
        self._told = Verdict.HELD
        self._reader, self._writer = os.pipe()

    @property
    def verdict(self) -> Verdict:
        """Whether the attempt may go on: what the last renewal said, unless that is too long ago."""
        return Verdict.LOST if self.trusted_for_s <= 0 else self._told

    @property
    def trusted_for_s(self) -> float:
        """Seconds until the lease is not trusted any more, if it is not renewed."""
        return self._renewed + self._trusted_s - time.monotonic()

    def fileno(self) -> int:
        """A descriptor that is readable once a renewal has said something else than that it is held."""
        return self._reader

    def renewed(self, verdict: Verdict, *, began: float) -> None:
        """A renewal that began at the monotonic time ``began`` has said something."""
        if verdict is not Verdict.LOST:
            self._renewed = began
        if self._told is Verdict.HELD and verdict is not Verdict.HELD:
            os.write(self._writer, b".")
        self._told = verdict

    def close(self) -> None:
        """Nobody waits any more."""
        os.close(self._reader)
        os.close(self._writer)


class Leases:
    """Keeps the leases of a node's attempts: those that are due are renewed together.

    Args:
        database: where they are kept.
        settings: their length and rhythm.
    """

    def __init__(self, database: Database, *, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._kept: dict[tuple[int, int], Lease] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def keep(self, claim: Claim, *, since: float) -> Iterator[Lease]:
        """Keep the lease of a claim that was made after the monotonic time ``since``, until the block ends."""
        key, lease = (claim.job_id, claim.attempt), Lease(claim, since=since, settings=self._settings)
        with self._changed:
            self._kept[key] = lease
            if len(self._kept) == 1:
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_as_due, name="leases", daemon=True)
                self._thread.start()
        try:
            yield lease
        finally:
            with self._changed:
                del self._kept[key]
                lease.close()

    def _renew_as_due(self) -> None:
        while True:
            with self._changed:
                while not self._kept:
                    self._changed.wait()
                wait_s = min(lease.renew_at for lease in self._kept.values()) - time.monotonic()
                if wait_s > 0:
                    self._changed.wait(wait_s)
                    continue
                soon = time.monotonic() + _TOGETHER * self._settings.heartbeat_s
                due = [lease for _, lease in sorted(self._kept.items()) if lease.renew_at <= soon]
            self._renew(due)

    def _renew(self, due: list[Lease]) -> None:
        began = time.monotonic()
        pause_s = self._settings.heartbeat_s
        verdicts: list[Verdict] = []
        try:
            with self._database.write() as connection:
                verdicts = [self._beat(connection, lease) for lease in due]
        except sa.exc.DBAPIError as error:
            pause_s, verdicts = min(_RETRY_S, pause_s), []
            _logger.warning("cannot renew the leases of %d attempts: %s", len(due), error)
        except Exception:
            # The outermost step of a thread: without it every attempt of the node would be lost.
            pause_s, verdicts = min(_RETRY_S, pause_s), []
            _logger.exception("cannot renew the leases of %d attempts", len(due))
        for lease in due:
            lease.renew_at = began + pause_s
        with self._changed:
            for lease, verdict in zip(due, verdicts, strict=False):
                if self._kept.get((lease.job_id, lease.attempt)) is lease:  # else it has ended meanwhile
                    lease.renewed(verdict, began=began)

    def _beat(self, connection: sa.Connection, lease: Lease) -> Verdict:
        try:
            cancel = attempts.heartbeat(
                connection,
                lease.job_id,
                lease.attempt,
                lease_s=self._settings.lease_s,
                progress=lease.progress,
                fraction=lease.fraction,
                run_left_s=lease.time.left_s,
            )
        except StaleTransition:
            return Verdict.LOST
        if cancel:
            return Verdict.CANCEL
        if lease.qids:
            lease.fault = next(iter(health.gone_under(connection, lease.qids).values()), "")
        return Verdict.DEVICE_GONE if lease.fault else Verdict.HELD


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
