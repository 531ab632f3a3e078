"""The scheduler: one round after another of admitting, reaping, placing and sending. ``python -m farm.scheduler``.

All state is in SQL, so a scheduler may die at any moment and another goes on. Several may run: the leader's row has a
term, every write carries it, and who has lost it stops. While the broker is away, what should be sent waits in the
outbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

import sqlalchemy as sa

from farm import (
    admission,
    candidates,
    capacity,
    db,
    devices,
    history,
    leadership,
    maintenance,
    outbox,
    placement,
)
from farm import settings as farm_settings
from farm.clockwatch import ClockWatch
from farm.collector import Collector
from farm.db import Database
from farm.dispatch import BrokerDown, Sender
from farm.errors import FarmError, StaleTransition, TermOver
from farm.needs import sdk_of
from farm.pulse import Pulse
from farm.records import Capacity, Message
from farm.settings import Settings
from qeff_engine import actions

_logger = logging.getLogger(__name__)

ADMIT_AT_ONCE, PLACE_AT_ONCE, SEND_AT_ONCE, EXPIRE_AT_ONCE = 200, 500, 500, 500
_FEW, _CHOICE = 50, 2  # jobs that are looked at when little is free, and for each thing that is
_LEASE_S = 5.0  # of the leadership; a successor waits for so long at most
_RENEW_S = 1.0
_ACTIVE_POLL_S, _IDLE_POLL_S = 0.025, 0.25
_ACTIVE_FOR_S = 3.0  # after the last thing that happened
_BETWEEN_ROUNDS_S = 0.01  # what is written meanwhile is one round's work
_FULL_ROUND_S = 1.0  # leases end and pauses pass without anybody writing
_LATE_RENEWAL_S = 2.0  # a node tries again each second while the database is away
_IDLE_FULL_ROUND_S = 5.0  # while no job is unfinished
_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.25, 5.0


class Sending(Protocol):
    """What a round needs of the broker."""

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Send and return the ids of those that were taken; BrokerDown when none was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What one round did."""

    admitted: int = 0
    lost: int = 0
    given_back: int = 0
    expired: int = 0
    placed: int = 0
    sent: int = 0

    @property
    def any(self) -> bool:
        """Whether it did anything."""
        return any(dataclasses.astuple(self))


def tick(
    database: Database,
    *,
    settings: Settings,
    term: int | None,
    sender: Sending | None,
    full: bool = True,
    reap: bool = True,
) -> Counts:
    """Do one round.

    Args:
        database: the farm's.
        settings: lengths of leases.
        term: of this leader.
        sender: where messages go; None while the broker is away.
        full: also do what time alone brings about: leases that end, messages to send again, reasons to write down.
        reap: whether clocks that have run out count; False right after the database was away, when nobody could renew.

    Raises:
        BrokerDown: the broker took nothing; all else of the round is done.
        StaleTransition: the term is over.
    """
    max_age_s = node_max_age_s(settings)
    lost = given_back = expired = 0
    if full and reap:
        lost = maintenance.reap(database, lease_s=settings.lease_s, term=term)
        lost += maintenance.end_overdue(database, grace_s=settings.lease_s, term=term)
        given_back = maintenance.give_back_stranded(database, max_age_s=max_age_s, term=term)
        expired = maintenance.expire(database, limit=EXPIRE_AT_ONCE, term=term)
    if full:
        maintenance.resend(database, older_than_s=settings.queued_resend_s, term=term)
        if maintenance.learn(database, half_life_s=settings.share_half_life_s, term=term):
            predict_anew(database, term=term, max_age_s=max_age_s)
    admitted = admit(database, term=term, max_age_s=max_age_s)
    placed = place(database, term=term, max_age_s=max_age_s, half_life_s=settings.share_half_life_s, explain=full)
    sent = send(database, sender=sender, term=term) if sender is not None else 0
    return Counts(admitted=admitted, lost=lost, given_back=given_back, expired=expired, placed=placed, sent=sent)


def node_max_age_s(settings: Settings) -> float:
    """After which silence a node gets no more work."""
    return settings.lease_s / 2


def admit(database: Database, *, term: int | None, max_age_s: float) -> int:
    """Decide about waiting jobs whose inputs are done, in the order of their ids.

    A job that becomes cached may make others admissible: they are found in the same call, up to a number that leaves
    time for the other duties.
    """
    count = 0
    while count < ADMIT_AT_ONCE:
        with database.read() as connection:
            waiting = admission.admissible(connection, limit=ADMIT_AT_ONCE)
            toolchain = devices.toolchain(connection, max_age_s=max_age_s) if waiting else None
            if toolchain is None:
                break
            sdk = sdk_of(toolchain)
            predicted = history.predict(connection, [job.id for job in waiting], sdk=sdk)
        found = [
            (job.id, *actions.action_key(job.stage, fields=job.fields, input_digests=job.inputs, toolchain=toolchain))
            for job in waiting
        ]
        with database.write() as connection:
            count += admission.admit_all(connection, found, term=term, predicted=predicted)
    return count


def predict_anew(database: Database, *, term: int | None, max_age_s: float) -> int:
    """Use what was just learnt for jobs that became ready before; returns how many predictions changed.

    A sweep becomes ready within a second, long before its first job has shown how long the others will take.
    """
    with database.read() as connection:
        ready = candidates.ready(connection, limit=PLACE_AT_ONCE)
        toolchain = devices.toolchain(connection, max_age_s=max_age_s) if ready else None
        if toolchain is None:
            return 0
        predicted = history.predict(connection, [job.id for job in ready], sdk=sdk_of(toolchain))
    with database.write() as connection:
        return admission.predict_anew(connection, ready, predicted, term=term)


def place(database: Database, *, term: int | None, max_age_s: float, half_life_s: float, explain: bool = True) -> int:
    """Put ready jobs on nodes that have room, and note why the others wait if that is wanted."""
    with database.read() as connection:
        if not candidates.any_ready(connection):
            return 0
        room = capacity.capacity(connection, max_age_s=max_age_s)
        ready = []
        for of_device in (True, False):
            # Who finds no place need only be told so now and then; to fill places, some more jobs than places do.
            limit = PLACE_AT_ONCE if explain else _worth_a_look(room, of_device=of_device)
            ready += candidates.ready(connection, limit=limit, of_device=of_device) if limit else []
        if not ready:
            return 0
        decided = placement.place(
            ready,
            capacity=room,
            shares=history.shares(connection, half_life_s=half_life_s),
            now=db.now(connection),
            policy=placement.Policy(),
        )
    if not decided.assignments and not (explain and decided.waiting):
        return 0
    with database.write() as connection:
        placed = admission.enqueue_all(connection, decided.assignments, term=term)
        if explain:
            admission.explain(connection, decided.waiting, term=term)
    return len(placed)


def _worth_a_look(room: Capacity, *, of_device: bool) -> int:
    """How many jobs for a kind of place should be looked at to fill what is free of it; 0 when nothing is."""
    if not of_device and any(host.queued_s < placement.Policy().ahead_s for host in room.hosts):
        return PLACE_AT_ONCE  # short jobs may be put in line by the hundred
    free = [device.free_cores for device in room.devices] if of_device else [host.free_slots for host in room.hosts]
    return min(PLACE_AT_ONCE, _FEW + _CHOICE * sum(free)) if any(free) else 0


def send(database: Database, *, sender: Sending, term: int | None) -> int:
    """Hand messages of the outbox to the broker. One that is sent and not yet forgotten may be sent again.

    Raises:
        BrokerDown: the broker took nothing.
        StaleTransition: the term is over.
    """
    count = 0
    while True:
        with database.read() as connection:
            leadership.require_term(connection, term)
            messages = outbox.take_outbox(connection, limit=SEND_AT_ONCE)
        if not messages:
            return count
        sent = sender.send(messages)
        with database.write() as connection:
            outbox.delete_outbox(connection, sent, term=term)
        count += len(sent)


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
        self._renewed = self._full_round = self._happened = 0.0
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
            time.sleep(_BETWEEN_ROUNDS_S)
        self.close()

    def step(self) -> None:
        """Do a round if this scheduler leads, which it does if it can; what goes wrong waits for the next one."""
        try:
            if self._leads():
                self._round()
            else:
                time.sleep(_IDLE_POLL_S)
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
        if now < self._renewed + _RENEW_S:
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
        active = now < self._happened + _ACTIVE_FOR_S
        written = self._pulse.wait(_ACTIVE_POLL_S if active else _IDLE_POLL_S)
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
