"""Random interleavings of everything that may happen to jobs; the invariants hold after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st

from farm import admission, attempts, jobs, leases, reaping, testing
from farm.db import Database
from farm.errors import NoCapacity, Refused, StaleTransition
from farm.models import jobs as job_rows
from farm.records import Usage
from qeff_engine.errors import FailureClass
from tests import farm_books
from tests.databases import empty_postgresql

CORES = (16, 14)
picks = st.integers(0, 10_000)


class Farm(stateful.RuleBasedStateMachine):
    """Users, a scheduler, nodes and messages that come late or twice."""

    url: Callable[[], str | None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self._context = testing.fresh_database(type(self).url())
        self.database: Database = self._context.__enter__()
        self.host = testing.add_host(self.database, cores=CORES, num_slots=2)
        self.messages: list[tuple[int, int, int]] = []  # job, attempt, node; never forgotten: any may come again
        self.held: list[tuple[int, int]] = []  # every attempt that was ever claimed; most are over

    def teardown(self) -> None:
        self._context.__exit__(None, None, None)

    def _write(self, function: Callable[[sa.Connection], Any]) -> Any:
        """What a late writer meets is a refusal, and never a change."""
        try:
            with self.database.write() as connection:
                return function(connection)
        except (StaleTransition, NoCapacity, Refused):
            return None

    def _job_ids(self) -> list[int]:
        with self.database.read() as connection:
            return list(connection.scalars(sa.select(job_rows.c.id).order_by(job_rows.c.id)))

    @stateful.rule(tag=st.sampled_from(["a", "b"]), cores=st.sampled_from([(8,), (14, 16), (3, 8)]), priority=picks)
    def submit(self, tag: str, cores: tuple[int, ...], priority: int) -> None:
        testing.add_submission(self.database, testing.small_plan(cores=cores, tag=tag), priority=priority)

    @stateful.rule()
    def admit(self) -> None:
        testing.admit_all(self.database)

    @stateful.rule(pick=picks)
    def enqueue(self, pick: int) -> None:
        with self.database.read() as connection:
            ready = admission.ready(connection, limit=100)
        if not ready:
            return
        job = ready[pick % len(ready)]
        nodes = self.host.device_nodes if job.num_cores else (self.host.host_node,)
        node = nodes[pick % len(nodes)]
        attempt = self._write(lambda c: admission.enqueue(c, job.id, node_id=node, queue="q", reason="test", term=None))
        self.messages.append((job.id, attempt, node))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.messages)
    def deliver(self, pick: int) -> None:
        job_id, attempt, node = self.messages[pick % len(self.messages)]
        if self._write(lambda c: attempts.claim(c, job_id, attempt, node_id=node, lease_s=60)):
            self.held.append((job_id, attempt))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.messages)
    def give_back(self, pick: int) -> None:
        job_id, attempt, _ = self.messages[pick % len(self.messages)]
        self._write(lambda c: attempts.give_back(c, job_id, attempt, reason="test"))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.held)
    def heartbeat(self, pick: int) -> None:
        self._write(lambda c: attempts.heartbeat(c, *self.held[pick % len(self.held)], lease_s=60))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.held)
    def succeed(self, pick: int) -> None:
        job_id, attempt = self.held[pick % len(self.held)]
        record = testing.artifact(f"digest-{job_id}")
        self._write(lambda c: attempts.succeed(c, job_id, attempt, artifact=record, figures={}, usage=Usage()))

    @stateful.rule(pick=picks, failure_class=st.sampled_from(list(FailureClass)))
    @stateful.precondition(lambda self: self.held)
    def fail(self, pick: int, failure_class: FailureClass) -> None:
        held = self.held[pick % len(self.held)]
        self._write(lambda c: attempts.fail(c, *held, failure_class=failure_class, message="test", usage=Usage()))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.held)
    def interrupt(self, pick: int) -> None:
        self._write(lambda c: attempts.interrupt(c, *self.held[pick % len(self.held)], reason="test"))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.held)
    def stop_cancelled(self, pick: int) -> None:
        held = self.held[pick % len(self.held)]
        if self._write(lambda c: attempts.heartbeat(c, *held, lease_s=60)):
            self._write(lambda c: attempts.cancel_attempt(c, *held, usage=Usage()))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.held)
    def lose(self, pick: int) -> None:
        held = self.held[pick % len(self.held)]
        self._write(lambda c: reaping.lose(c, *held, reason="test", term=None))

    @stateful.rule()
    def confirm(self) -> None:
        with self.database.write() as connection:
            for job_id, attempt in leases.draining(connection, host_id=self.host.host_id):
                attempts.confirm_gone(connection, host_id=self.host.host_id, job_id=job_id, attempt=attempt)

    @stateful.rule(pick=picks)
    def cancel(self, pick: int) -> None:
        ids = self._job_ids()
        if ids:
            self._write(lambda c: jobs.cancel(c, ids[pick % len(ids)]))

    @stateful.rule(pick=picks)
    def cancel_submission(self, pick: int) -> None:
        with self.database.read() as connection:
            ids = list(connection.scalars(sa.select(job_rows.c.submission_id).distinct().order_by("submission_id")))
        if ids:
            self._write(lambda c: jobs.cancel_submission(c, ids[pick % len(ids)]))

    @stateful.rule(pick=picks)
    def retry(self, pick: int) -> None:
        ids = self._job_ids()
        if ids:
            self._write(lambda c: jobs.retry(c, ids[pick % len(ids)]))

    @stateful.invariant()
    def the_books_agree(self) -> None:
        farm_books.check(self.database)


SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "derandomize": True,  # the same walk in every run; a longer search is a matter of --hypothesis-seed
}


def test_random_histories_on_sqlite_keep_the_books() -> None:
    stateful.run_state_machine_as_test(
        Farm, settings=hypothesis.settings(max_examples=15, stateful_step_count=30, **SETTINGS)
    )


@pytest.mark.slow
def test_random_histories_on_postgresql_keep_the_books(postgresql_url: sa.URL) -> None:
    class OnPostgresql(Farm):
        url = staticmethod(lambda: empty_postgresql(postgresql_url))

    stateful.run_state_machine_as_test(
        OnPostgresql, settings=hypothesis.settings(max_examples=4, stateful_step_count=30, **SETTINGS)
    )
