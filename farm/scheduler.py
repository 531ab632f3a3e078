"""The scheduler: one round after another of admitting, reaping, placing and sending. ``python -m farm.scheduler``.

All state is in SQL, so a scheduler may die at any moment and another goes on. Several may run: the leader's row has a
term, every write carries it, and who has lost it stops. While the broker is away, what should be sent waits in the
outbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable

import sqlalchemy as sa

from farm import db
from farm import settings as farm_settings
from farm.clockwatch import ClockWatch
from farm.errors import FarmError, StaleTransition, TermOver
from farm.lifecycle import leadership
from farm.scheduling import candidates
from farm.scheduling.dispatch import BrokerDown, Sender
from farm.scheduling.pulse import Pulse
from farm.scheduling.rounds import tick
from farm.settings import Settings
from farm.store.collector import Collector

_logger = logging.getLogger(__name__)

_LEASE_S = 5.0  # of the leadership; a successor waits for so long at most
_RENEW_S = _LEASE_S / 3
_TRY_S = 1.0  # between two tries to lead
_PATIENCE_S = 0.5  # for so long it does not see that it should stop
_ACTIVE_LOOK_S, _IDLE_LOOK_S = 0.025, 0.25
_ACTIVE_FOR_S = 3.0  # after the last thing that happened
_BETWEEN_ROUNDS_S = 0.01  # what is written meanwhile is one round's work
_FULL_ROUND_S = 1.0  # leases end and pauses pass without anybody writing
_LATE_RENEWAL_S = 2.0  # a node tries again each second while the database is away
_IDLE_FULL_ROUND_S = 5.0  # while no job is unfinished: then only the clocks are looked at
_IDLE_TICK_S = 30.0  # and all else once more, and now and then
_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.25, 5.0


class Scheduler:
    """A scheduler's process.

    Args:
        settings: of the farm.
        clock: the database's clock, see :func:`farm.db.open_database`.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings
        self._database = db.open_database(settings.database_url, clock=clock)
        self._sender = Sender(settings)
        self._pulse = Pulse(self._database)
        self._collector = Collector(settings)
        self._holder = f"{settings.host}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._term: int | None = None
        self._stopping = False
        self._renewed = self._full_round = self._happened = self._idle_tick_after = 0.0
        self._broker_after = 0.0
        # The clocks are watched in full rounds, and must be looked at more often than leases end.
        self._idle_full_round_s = max(_FULL_ROUND_S, min(_IDLE_FULL_ROUND_S, settings.lease_s / 8))
        self._between_full_rounds_s = _FULL_ROUND_S
        self._clock = ClockWatch(tolerance_s=settings.lease_s / 4)
        self._looked = self._reap_after = 0.0
        self._broker_back_off_s = self._back_off_s = _FIRST_BACK_OFF_S

    def run(self) -> None:
        """Schedule until :meth:`stop`.

        Raises:
            FarmError: there is no database, or one of another revision.
        """
        self._database.check()
        while not self._stopping:
            self.step()
        self.close()

    def step(self) -> None:
        """Do a round if this scheduler leads, which it does if it can; what goes wrong waits for the next one."""
        try:
            if self._leads():
                self._round()
            else:
                time.sleep(_PATIENCE_S)
            self._back_off_s = _FIRST_BACK_OFF_S
        except TermOver as error:
            _logger.warning("%s", error)
            self._term = None
        except StaleTransition as error:
            _logger.warning("%s", error)
        except sa.exc.DBAPIError as error:
            self._on_database_error(error)

    def stop(self) -> None:
        """End after the current round. May be called in a signal handler."""
        self._stopping = True

    def _leads(self) -> bool:
        """Whether this scheduler is the leader, which it becomes or stays if it can."""
        now = time.monotonic()
        if now < self._renewed + (_TRY_S if self._term is None else _RENEW_S):
            return self._term is not None
        self._renewed = now
        with self._database.write() as connection:
            if self._term is not None and not leadership.renew(
                connection, holder=self._holder, term=self._term, lease_s=_LEASE_S
            ):
                _logger.warning("another scheduler leads")
                self._term = None
            if self._term is None:
                self._term = leadership.acquire(connection, holder=self._holder, lease_s=_LEASE_S)
                if self._term is not None:
                    _logger.info("leads with term %d", self._term)
        return self._term is not None

    def _watch_clocks(self) -> None:
        """Leave leases alone until all who live have renewed theirs: after a jump of the database's clock, and when
        this process stood still, for then the database or the whole machine may have."""
        with self._database.read() as connection:
            now = time.monotonic()
            jump_s = self._clock.jump_s(database=db.now(connection), own=now)
        if jump_s:
            _logger.warning("the database's clock has jumped by %.0f s; leases are left alone for a while", jump_s)
        if jump_s or now > self._looked + self._settings.lease_s / 2:
            self._reap_after = self._when_all_have_renewed()
        self._looked = now

    def _when_all_have_renewed(self) -> float:
        """Monotonic time after which a node that lives has renewed whatever it holds."""
        return time.monotonic() + 2 * self._settings.heartbeat_s + _LATE_RENEWAL_S

    def _nothing_to_do(self) -> bool:
        """Whether every job has ended."""
        with self._database.read() as connection:
            return not candidates.any_unfinished(connection)

    def _round(self) -> None:
        now = time.monotonic()
        due = min(self._renewed + _RENEW_S, self._full_round + self._between_full_rounds_s, now + _PATIENCE_S)
        active = now < self._happened + _ACTIVE_FOR_S
        written = self._pulse.wait(due - now, look_s=_ACTIVE_LOOK_S if active else _IDLE_LOOK_S)
        now = time.monotonic()
        full = now >= self._full_round + self._between_full_rounds_s
        if not written and not full:
            return
        idle = self._nothing_to_do()
        self._between_full_rounds_s = self._idle_full_round_s if idle else _FULL_ROUND_S
        if idle and not full:
            return  # what was written are signs of life
        if full:
            self._full_round = now
            self._watch_clocks()
            self._collector.poke(self._term)
        if idle and now < self._idle_tick_after:
            return
        self._idle_tick_after = now + _IDLE_TICK_S if idle else 0.0
        sender = self._sender if now >= self._broker_after else None
        try:
            counts = tick(
                self._database,
                settings=self._settings,
                term=self._term,
                sender=sender,
                full=full,
                reap=now >= self._reap_after,
            )
        except BrokerDown as error:
            _logger.warning("the broker takes no messages, next try in %.2f s: %s", self._broker_back_off_s, error)
            self._broker_after = time.monotonic() + self._broker_back_off_s
            self._broker_back_off_s = min(_LONGEST_BACK_OFF_S, 2 * self._broker_back_off_s)
            return
        if sender is not None:
            self._broker_back_off_s = _FIRST_BACK_OFF_S
        if counts.any:
            self._happened = time.monotonic()
            _logger.debug("%s", counts)
        time.sleep(_BETWEEN_ROUNDS_S)

    def _on_database_error(self, error: sa.exc.DBAPIError) -> None:
        _logger.warning("the database does not answer, next try in %.2f s: %s", self._back_off_s, error)
        self._pulse.close()
        time.sleep(self._back_off_s)
        self._back_off_s = min(_LONGEST_BACK_OFF_S, 2 * self._back_off_s)
        # Nodes could not renew their leases either: give them time before taking any.
        self._reap_after = self._when_all_have_renewed()

    def close(self) -> None:
        """Give up the lead, so that another need not wait for it, and all connections."""
        if self._term is not None:
            with contextlib.suppress(sa.exc.DBAPIError), self._database.write() as connection:
                leadership.resign(connection, holder=self._holder, term=self._term)
        self._collector.close()
        self._pulse.close()
        self._sender.close()
        self._database.dispose()


def run(settings: Settings) -> None:
    """Be the scheduler of a farm until SIGTERM or SIGINT."""
    scheduler = Scheduler(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scheduler.stop())
    scheduler.run()


def main() -> int:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(farm_settings.load())
    except FarmError as error:
        sys.stderr.write(f"farm.scheduler: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
