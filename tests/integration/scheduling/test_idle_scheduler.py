"""A scheduler that has nothing to do: it still hears of work, learns from the last job, and keeps or loses its lead."""

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
from farm.models import leader, outbox
from farm.scheduler import Scheduler
from farm.scheduling import history
from farm.scheduling import pulse as pulses
from farm.scheduling.file_watch import FileWatch
from farm.settings import Settings

_LIMIT_S = 60.0
_LEADER_LEASE_S = 5.0


class Clock:
    """The database's clock, which a test moves."""

    def __init__(self) -> None:
        self.moved_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.moved_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    url = f"sqlite:///{tmp_path / 'farm.db'}"
    return dataclasses.replace(farm_settings.load(home=str(tmp_path), environ={}), database_url=url)


@pytest.fixture
def database(settings: Settings, clock: Clock) -> Iterator[Database]:
    with testing.fresh_database(settings.database_url, clock=clock) as database:
        yield database


@pytest.fixture
def schedulers(settings: Settings, clock: Clock, database: Database) -> Iterator[tuple[Scheduler, Scheduler]]:
    """Two of one farm, the first of which leads."""
    both = Scheduler(settings, clock=clock), Scheduler(settings, clock=clock)
    both[0].step()
    yield both
    for scheduler in both:
        scheduler.close()


def work_until(scheduler: Scheduler, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        scheduler.step()


def leads(database: Database) -> tuple[int, float]:
    """The term, and until when it lasts."""
    with database.read() as connection:
        row = connection.execute(sa.select(leader.c.term, leader.c.lease_until)).one()
    return row.term, row.lease_until


@pytest.mark.parametrize("kernel", ["tells", "says nothing", "cannot"])
def test_an_idle_scheduler_finds_work_whatever_the_kernel_tells(
    kernel: str,
    tmp_path: Path,
    database: Database,
    schedulers: tuple[Scheduler, Scheduler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "other").touch()
    watched = {"says nothing": tmp_path / "other", "cannot": tmp_path / "nowhere"}
    if kernel in watched:
        monkeypatch.setattr(pulses, "FileWatch", lambda _: FileWatch(watched[kernel]))
        schedulers[0]._pulse.close()
    schedulers[0].step()
    testing.add_host(database)
    testing.add_submission(database)
    testing.admit_all(database)

    def decided() -> bool:
        with database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(outbox)) == 1

    work_until(schedulers[0], decided)


def test_the_last_job_is_learnt_from_though_nothing_is_left_to_do(
    database: Database, schedulers: tuple[Scheduler, Scheduler]
) -> None:
    host = testing.add_host(database)
    testing.add_submission(database)
    (job_id,) = testing.admit_all(database)
    testing.finish(database, testing.claim(database, job_id, node_id=host.host_node))

    def learnt() -> bool:
        with database.read() as connection:
            return not history.anything_new(connection)

    assert not learnt()
    work_until(schedulers[0], learnt)


def test_a_leader_that_is_idle_stays_it_and_is_followed_one_lease_after_its_last_word(
    database: Database, clock: Clock, schedulers: tuple[Scheduler, Scheduler]
) -> None:
    first, second = schedulers
    term, until = leads(database)
    for _ in range(2):
        work_until(first, lambda until=until: leads(database)[1] > until)  # type: ignore[misc]
        second.step()
        assert leads(database)[0] == term
        until = leads(database)[1]
    clock.moved_s += _LEADER_LEASE_S  # of silence
    work_until(second, lambda: leads(database)[0] == term + 1)
    term, until = leads(database)
    work_until(first, lambda: first._term is None)
    assert leads(database)[0] == term
