"""One round of the scheduler: take what time has ended, admit, place, send."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa

from farm import db, placement
from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import admission, leadership, outbox
from farm.needs import sdk_of
from farm.placement.estimates import Estimate
from farm.records import Capacity, Message
from farm.scheduling import candidates, capacity, history, maintenance
from farm.settings import Settings
from qeff_engine import actions

ADMIT_AT_ONCE, PLACE_AT_ONCE, SEND_AT_ONCE, EXPIRE_AT_ONCE = 200, 500, 500, 500
_FEW, _CHOICE = 50, 2  # jobs that are looked at when little is free, and for each thing that is


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
    learnt = full and maintenance.learn(database, half_life_s=settings.share_half_life_s, term=term) > 0
    if learnt:
        maintenance.forget(database, num_keys=settings.history_keys, term=term)
    admitted = admit(database, term=term, max_age_s=max_age_s)
    half_life_s = settings.share_half_life_s
    placed = place(database, term=term, max_age_s=max_age_s, half_life_s=half_life_s, explain=full, learnt=learnt)
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


def place(
    database: Database,
    *,
    term: int | None,
    max_age_s: float,
    half_life_s: float,
    explain: bool = True,
    learnt: bool = False,
) -> int:
    """Put ready jobs on nodes that have room; returns how many.

    Args:
        database: the farm's.
        term: of this leader.
        max_age_s: nodes that were not heard for longer count as dead.
        half_life_s: after which half of an owner's use is forgotten.
        explain: also note why the others wait.
        learnt: predict anew what jobs take that became ready before. A sweep becomes ready within a second, long
            before its first job has shown how long the others will take.
    """
    with database.read() as connection:
        if not candidates.any_ready(connection):
            return 0
        room = capacity.capacity(connection, max_age_s=max_age_s)
        rows: list[Any] = []
        for of_device in (True, False):
            # Who finds no place need only be told so now and then; to fill places, some more jobs than places do.
            limit = PLACE_AT_ONCE if explain or learnt else _worth_a_look(room, of_device=of_device)
            rows += candidates.heads(connection, limit=limit, of_device=of_device) if limit else []
        if not rows:
            return 0
        predicted = _predicted(connection, rows, max_age_s=max_age_s) if learnt else {}
        decided = placement.place(
            candidates.jobs_of(connection, rows, predicted=predicted),
            capacity=room,
            shares=history.shares(connection, half_life_s=half_life_s),
            now=db.now(connection),
            policy=placement.Policy(),
        )
    if not (decided.assignments or predicted or (explain and decided.waiting)):
        return 0
    with database.write() as connection:
        if predicted:
            admission.predict_anew(connection, rows, predicted, term=term)
        placed = admission.enqueue_all(connection, decided.assignments, term=term)
        if explain:
            admission.explain(connection, rows, decided.waiting, term=term)
    return len(placed)


def _predicted(connection: sa.Connection, rows: Sequence[Any], *, max_age_s: float) -> Mapping[int, Estimate]:
    """By job, what rows of ready jobs are predicted to take by all that is known now."""
    toolchain = devices.toolchain(connection, max_age_s=max_age_s)
    return {} if toolchain is None else history.predict(connection, [row.id for row in rows], sdk=sdk_of(toolchain))


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
