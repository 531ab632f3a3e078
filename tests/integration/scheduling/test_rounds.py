"""Rounds of the scheduler on real databases, with nodes that are played by the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database
from farm.errors import StaleTransition
from farm.fleet import devices
from farm.lifecycle import attempts, leadership
from farm.models import core_leases, outbox
from farm.models import jobs as job_rows
from farm.plan import Plan
from farm.records import Message
from farm.scheduling import rounds
from farm.scheduling.dispatch import BrokerDown
from farm.scheduling.rounds import Counts
from farm.settings import Settings
from farm.states import FINAL, JobState
from farm.views import queries
from tests import small_sweep


class Broker:
    """Takes messages, or does not."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.up = True

    def send(self, messages: Sequence[Message]) -> list[int]:
        if not self.up:
            raise BrokerDown("away")
        self.messages += messages
        return [message.id for message in messages]


@dataclasses.dataclass
class World:
    """A farm without processes."""

    database: Database
    host: testing.FakeHost
    settings: Settings
    broker: Broker = dataclasses.field(default_factory=Broker)
    term: int | None = None

    def tick(self, *, full: bool = True, reap: bool = True) -> Counts:
        return rounds.tick(
            self.database, settings=self.settings, term=self.term, sender=self.broker, full=full, reap=reap
        )

    def submit(self, plan: Plan, *, priority: int = 0) -> int:
        return testing.add_submission(self.database, plan, priority=priority)

    def jobs(self, submission_id: int) -> list[queries.Job]:
        with self.database.read() as connection:
            return queries.job_list(connection, submission_id=submission_id, limit=None)[::-1]

    def work(self, *, lease_s: float = 60.0, finish: bool = True, queues: tuple[str, ...] | None = None) -> None:
        """Do what the nodes, or those of some queues, would do with the messages that have come."""
        taken = [message for message in self.broker.messages if queues is None or message.queue in queues]
        self.broker.messages = [message for message in self.broker.messages if message not in taken]
        for message in taken:
            node_id = {
                self.host.host_queue: self.host.host_node,
                **dict(zip(self.host.device_queues, self.host.device_nodes, strict=True)),
            }[message.queue]
            try:
                with self.database.write() as connection:
                    claim = attempts.claim(
                        connection, message.job_id, message.attempt, node_id=node_id, lease_s=lease_s
                    )
            except StaleTransition:
                continue
            if finish:
                testing.finish(self.database, claim, digest=f"digest of j{message.job_id}")

    def finish(self, submission_id: int) -> int:
        """Work and tick until a submission has ended; how many messages that took."""
        count = 0
        while any(job.state not in FINAL for job in self.jobs(submission_id)):
            counts = self.tick()
            assert counts.any or self.broker.messages, [
                (job.label, job.state, job.reason) for job in self.jobs(submission_id)
            ]
            count += len(self.broker.messages)
            self.work()
        return count


@pytest.fixture
def world(each_database: Database, tmp_path: Path) -> World:
    settings = farm_settings.load(home=str(tmp_path), environ={})
    return World(database=each_database, host=testing.add_host(each_database), settings=settings)


def test_a_sweep_goes_through_with_one_message_a_job(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a", "b"))
    assert world.finish(submission_id) == 16
    assert {job.state for job in world.jobs(submission_id)} == {JobState.SUCCEEDED}
    assert world.tick() == Counts()


def test_work_that_is_done_is_not_sent_again(world: World) -> None:
    world.finish(world.submit(small_sweep.plan("a")))
    again = world.submit(small_sweep.plan("a"))
    assert world.finish(again) == 0
    assert {job.state for job in world.jobs(again)} == {JobState.CACHED}


def test_only_the_new_points_of_a_larger_sweep_are_sent(world: World) -> None:
    world.finish(world.submit(small_sweep.plan("a", cores=(8,))))
    larger = world.submit(small_sweep.plan("a", cores=(8, 14)))
    assert world.finish(larger) == 2


def test_the_same_work_of_two_submissions_is_done_once(world: World) -> None:
    first, second = world.submit(small_sweep.plan("a")), world.submit(small_sweep.plan("a"))
    assert world.finish(first) == 8
    assert world.finish(second) == 0
    assert {job.state for job in world.jobs(second)} == {JobState.CACHED}


def test_an_attempt_whose_lease_is_over_is_taken_and_its_cores_drain(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a", cores=(8,)))
    for _ in range(3):
        world.tick()
        world.work()
    world.tick()
    world.work(lease_s=-1.0, finish=False)
    run = world.jobs(submission_id)[-1]
    assert run.state is JobState.RUNNING
    assert world.tick(reap=False).lost == 0
    assert world.tick(full=False).lost == 0
    assert world.tick().lost == 1
    with world.database.read() as connection:
        assert set(connection.scalars(sa.select(core_leases.c.state))) == {"draining"}
    with world.database.write() as connection:
        attempts.confirm_gone(connection, host_id=world.host.host_id, job_id=run.id, attempt=run.attempt)
        connection.execute(sa.update(job_rows).values(not_before=0.0))  # the pause before it is tried again
    world.finish(submission_id)
    assert world.jobs(submission_id)[-1].state is JobState.SUCCEEDED


def test_queued_jobs_of_a_silent_node_are_placed_again(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a", cores=(8,)))
    world.tick()
    (message,) = world.broker.messages
    with world.database.write() as connection:
        devices.stop_node(connection, world.host.host_node)
    assert world.tick().given_back == 1
    job = world.jobs(submission_id)[0]
    assert job.state is JobState.READY
    with pytest.raises(StaleTransition), world.database.write() as connection:
        attempts.claim(connection, message.job_id, message.attempt + 1, node_id=world.host.host_node, lease_s=60)


def test_jobs_wait_with_a_reason_while_no_host_is_alive(world: World) -> None:
    with world.database.write() as connection:
        devices.stop_node(connection, world.host.host_node)
    submission_id = world.submit(small_sweep.plan("a"))
    assert world.tick() == Counts()
    assert {job.state for job in world.jobs(submission_id)} == {JobState.WAITING}


def test_the_outbox_keeps_messages_while_the_broker_is_away(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a"))
    world.broker.up = False
    with pytest.raises(BrokerDown):
        world.tick()
    assert world.jobs(submission_id)[0].state is JobState.QUEUED
    world.broker.up = True
    assert world.tick().sent == 1
    assert len(world.broker.messages) == 1
    assert world.tick() == Counts()


def test_a_message_that_nobody_acts_on_is_sent_again_and_a_second_copy_finds_nothing(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a"))
    world.tick()
    world.settings = dataclasses.replace(world.settings, queued_resend_s=-1.0)
    world.tick()
    first, second = world.broker.messages
    assert (first.job_id, first.attempt) == (second.job_id, second.attempt)
    world.work()
    assert world.jobs(submission_id)[0].state is JobState.SUCCEEDED
    with world.database.read() as connection:
        assert len(queries.attempt_list(connection, first.job_id)) == 1


def test_a_scheduler_whose_term_is_over_writes_nothing(world: World) -> None:
    with world.database.write() as connection:
        world.term = leadership.acquire(connection, holder="first", lease_s=-1.0)
    with world.database.write() as connection:
        assert leadership.acquire(connection, holder="second", lease_s=60.0) is not None
    submission_id = world.submit(small_sweep.plan("a"))
    with pytest.raises(StaleTransition, match="Term 1 is over"):
        world.tick()
    assert {job.state for job in world.jobs(submission_id)} == {JobState.WAITING}


def test_ready_jobs_say_what_they_wait_for(world: World) -> None:
    submission_id = world.submit(small_sweep.plan("a", cores=(16, 15)))
    for _ in range(2):
        world.tick()
        world.work()
    world.tick()
    world.work()
    world.tick()
    waiting = [job for job in world.jobs(submission_id) if job.state is JobState.READY]
    assert len(waiting) == 1
    assert waiting[0].reason.startswith("It needs 15 free cores on one device.")


def test_a_long_line_of_runs_does_not_hide_work_for_the_host(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PLACE_AT_ONCE", 3)
    many = world.submit(small_sweep.plan("a", "b", cores=(12, 13, 14, 15, 16)), priority=5)
    while any(job.stage != "run" and job.state not in FINAL for job in world.jobs(many)):
        world.tick()
        world.work(queues=(world.host.host_queue,))
    assert sum(job.state is JobState.READY for job in world.jobs(many)) > rounds.PLACE_AT_ONCE
    other = world.submit(small_sweep.plan("other"))
    world.tick()
    assert world.jobs(other)[0].state is JobState.QUEUED


def test_more_messages_than_fit_one_batch_leave_nothing_in_the_outbox(world: World) -> None:
    with world.database.write() as connection:
        rows = [{"queue": "q", "job_id": number, "attempt": 1, "created_at": 0.0} for number in range(1200)]
        connection.execute(sa.insert(outbox), rows)
    assert world.tick().sent == 1200
    assert [message.job_id for message in world.broker.messages] == list(range(1200))
