"""Attempts that messages told a node of: claimed together as places get free, each carried out in a thread."""

from __future__ import annotations

import concurrent.futures
import logging
import queue
import threading
import time
from collections.abc import Callable

import sqlalchemy.exc

from farm.lifecycle import claims
from farm.records import Claim
from workers.supervisor import carry_out
from workers.workplace import Workplace

_logger = logging.getLogger(__name__)

CarryOut = Callable[[Workplace, Claim, float], None]
_Key = tuple[int, int]  # job, attempt


class Intake:
    """A node's own line between the broker and its places.

    Celery hands over a key and is done: what it is told takes it microseconds, and a node with many free places claims
    for all of them in one transaction.

    Args:
        workplace: where attempts are carried out.
        places: how many at the same time.
        carry_out: what is done with a claim; the monotonic time before it was made is the third argument.
    """

    def __init__(self, workplace: Workplace, *, places: int, carry_out: CarryOut = carry_out) -> None:
        self._place = workplace
        self._carry_out = carry_out
        self._keys: queue.SimpleQueue[_Key | None] = queue.SimpleQueue()
        self._free = threading.Semaphore(places)
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=places, thread_name_prefix="attempt")
        self._claimer = threading.Thread(target=self._claim_as_told, name="claims", daemon=True)
        self._claimer.start()

    def offer(self, job_id: int, attempt: int) -> None:
        """Tell of an attempt; returns at once. What is no longer due when its turn comes is left alone."""
        self._keys.put((job_id, attempt))

    def close(self) -> None:
        """Take no more and wait for what runs. Keys that are left stay queued: the next node gives them back."""
        self._keys.put(None)
        self._claimer.join()
        self._threads.shutdown()

    def _claim_as_told(self) -> None:
        while True:
            self._free.acquire()
            key = self._keys.get()
            if key is None or self._place.stopping.is_set():
                return
            keys = [key]
            while not self._keys.empty() and self._free.acquire(blocking=False):
                more = self._keys.get()
                if more is None:
                    return
                keys.append(more)
            taken = self._claim(keys)
            for claim, since in taken:
                self._threads.submit(self._run, claim, since)
            for _ in range(len(keys) - len(taken)):
                self._free.release()

    def _claim(self, keys: list[_Key]) -> list[tuple[Claim, float]]:
        """The claims that came of keys, with the time before they were made."""
        since = time.monotonic()
        try:
            with self._place.database.write() as connection:
                found = claims.claim_all(
                    connection,
                    keys,
                    node_id=self._place.node_id,
                    lease_s=self._place.settings.lease_s,
                    run_limits_s=self._place.settings.run_limits_s,
                )
        except sqlalchemy.exc.DBAPIError as error:
            # The scheduler sends again what nobody has claimed for a while.
            _logger.warning("cannot claim %d attempts: %s", len(keys), error)
            return []
        return [(claim, since) for claim in found.taken]

    def _run(self, claim: Claim, since: float) -> None:
        try:
            with self._place.busy:
                self._carry_out(self._place, claim, since)
        except Exception:
            # The outermost step of a thread: the lease runs out and the scheduler decides what becomes of the job.
            _logger.exception("job %d: attempt %d went wrong on the node's side", claim.job_id, claim.attempt)
        finally:
            self._free.release()
