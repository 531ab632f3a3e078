"""A clock that is set by an hour while the scheduler works and a node holds a lease."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database
from farm.lifecycle import attempts, leadership
from farm.models import attempts as attempt_rows
from farm.models import leader
from farm.records import Claim
from farm.scheduler import Scheduler

LEASE_S = 60.0
HOUR_S = 3600.0
_LIMIT_S = 60.0  # a deadline, not a measurement


class Clock:
    """The time, moved."""

    def __init__(self) -> None:
        self.moved_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.moved_s


@dataclasses.dataclass
class Farm:
    """A scheduler, and a node that is played by the test."""

    database: Database
    clock: Clock
    scheduler: Scheduler

    def claim(self) -> Claim:
        host = testing.add_host(self.database)
        testing.add_submission(self.database)
        (job_id,) = testing.admit_all(self.database)
        return testing.claim(self.database, job_id, node_id=host.host_node, lease_s=LEASE_S)

    def renew(self, claim: Claim) -> None:
        with self.database.write() as connection:
            attempts.heartbeat(connection, claim.job_id, claim.attempt, lease_s=LEASE_S)

    def ended(self, claim: Claim) -> bool:
        with self.database.read() as connection:
            query = sa.select(attempt_rows.c.state).where(attempt_rows.c.job_id == claim.job_id)
            return connection.scalar(query) != "running"

    def work(self, *, renewals: int) -> None:
        """Let the scheduler work until it has renewed its own lease so often, which it does every 5/3 s."""
        for _ in range(renewals):
            before = self._leader_until()
            self.work_until(lambda before=before: self._leader_until() != before)  # type: ignore[misc]

    def work_until(self, condition: Callable[[], bool]) -> None:
        """Let the scheduler work until something is so."""
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            assert time.monotonic() < deadline
            self.scheduler.step()

    def _leader_until(self) -> float:
        with self.database.read() as connection:
            return float(connection.scalar(sa.select(leader.c.lease_until)) or 0.0)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    clock, url = Clock(), f"sqlite:///{tmp_path / 'farm.db'}"
    settings = dataclasses.replace(
        farm_settings.load(home=str(tmp_path), environ={}), database_url=url, heartbeat_s=0.5, lease_s=LEASE_S
    )
    with testing.fresh_database(url, clock=clock) as database:
        scheduler = Scheduler(settings, clock=clock)
        yield Farm(database=database, clock=clock, scheduler=scheduler)
        scheduler.close()


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_a_jump_takes_no_lease_that_is_renewed_and_every_one_that_is_not(farm: Farm, jump_s: float) -> None:
    claim = farm.claim()
    farm.work(renewals=3)  # beyond the time for which one that has just started takes nothing
    farm.clock.moved_s += jump_s
    farm.work(renewals=1)
    assert not farm.ended(claim)
    farm.renew(claim)
    farm.work(renewals=3)
    assert not farm.ended(claim)
    farm.clock.moved_s += 2 * LEASE_S
    farm.work_until(lambda: farm.ended(claim))


def test_a_dead_leaders_lease_does_not_last_an_hour_longer_when_the_clock_is_set_back(empty_url: str) -> None:
    clock = Clock()
    with testing.fresh_database(empty_url, clock=clock) as database, database.write() as connection:
        assert leadership.acquire(connection, holder="dead", lease_s=5.0) == 1
        clock.moved_s -= HOUR_S
        assert leadership.acquire(connection, holder="next", lease_s=5.0) == 2


def test_the_clock_of_a_host_does_not_matter_to_a_database_of_its_own(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = testing.add_host(postgresql)
    testing.add_submission(postgresql)
    (job_id,) = testing.admit_all(postgresql)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + HOUR_S)
    claim = testing.claim(postgresql, job_id, node_id=host.host_node, lease_s=LEASE_S)
    with postgresql.write() as connection:
        attempts.heartbeat(connection, claim.job_id, claim.attempt, lease_s=LEASE_S)
        lease_until = connection.scalar(sa.select(attempt_rows.c.lease_until))
    assert lease_until < real() + HOUR_S / 2
