"""A scheduler that was frozen in the middle of its round, and acts on when another leads already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from farm import testing
from farm.db import Database
from farm.errors import StaleTransition
from farm.lifecycle import admission, leadership, outbox
from farm.records import Message
from farm.scheduling import capacity, maintenance, rounds

_LEASE_S = 5.0


class Clock:
    """The database's clock."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Broker:
    """Takes messages; ``meanwhile`` happens while the next ones are on their way."""

    def __init__(self) -> None:
        self.got: list[tuple[int, int]] = []
        self.meanwhile: list[Callable[[], object]] = []

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Take all of them."""
        self.got += [(message.job_id, message.attempt) for message in messages]
        if self.meanwhile:
            self.meanwhile.pop()()
        return [message.id for message in messages]


def lead(database: Database, *, holder: str) -> int:
    """The term of a scheduler that leads from now on."""
    with database.write() as connection:
        term = leadership.acquire(connection, holder=holder, lease_s=_LEASE_S)
    assert term is not None
    return term


def enqueue(database: Database, job_id: int, *, node_id: int) -> tuple[int, int]:
    """The job and its attempt, placed."""
    with database.write() as connection:
        return job_id, admission.enqueue(connection, job_id, node_id=node_id, queue="q", reason="", term=None)


def test_it_forgets_no_message_of_its_successor(empty_url: str) -> None:
    clock, broker = Clock(), Broker()
    with testing.fresh_database(empty_url, clock=clock) as database:
        host = testing.add_host(database)
        for tag in "ab":
            testing.add_submission(database, testing.small_plan(tag=tag))
        one, two = testing.admit_all(database)
        late_term = lead(database, holder="late")
        first = enqueue(database, one, node_id=host.host_node)
        placed = []

        def succeed_to_the_lead() -> None:
            clock.now += 2 * _LEASE_S
            rounds.send(database, sender=broker, term=lead(database, holder="next"))
            placed.append(enqueue(database, two, node_id=host.host_node))

        broker.meanwhile.append(succeed_to_the_lead)
        with pytest.raises(StaleTransition, match="Term 1 is over"):
            rounds.send(database, sender=broker, term=late_term)
        with database.read() as connection:
            kept = [(message.job_id, message.attempt) for message in outbox.take_outbox(connection, limit=9)]
    assert broker.got == [first, first]
    assert kept == placed


def test_it_takes_no_queued_job_from_its_node(empty_url: str) -> None:
    clock = Clock()
    with testing.fresh_database(empty_url, clock=clock) as database:
        host = testing.add_host(database)
        testing.add_submission(database)
        late_term = lead(database, holder="late")
        enqueue(database, testing.admit_all(database)[0], node_id=host.host_node)
        clock.now += 2 * _LEASE_S
        term = lead(database, holder="next")
        with database.read() as connection:
            assert capacity.capacity(connection, max_age_s=_LEASE_S).hosts == ()
        with pytest.raises(StaleTransition, match="Term 1 is over"):
            maintenance.give_back_stranded(database, max_age_s=_LEASE_S, term=late_term)
        assert maintenance.give_back_stranded(database, max_age_s=_LEASE_S, term=term) == 1
