"""Users, a scheduler and nodes at once, in threads of their own: whoever is right is never refused, nobody waits for
ever, and the books agree at the end."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import random
import threading
from collections.abc import Sequence

import sqlalchemy as sa

from farm import admission, attempts, jobs, scheduler, testing
from farm.db import Database
from farm.errors import NoCapacity, Refused, StaleTransition
from farm.models import jobs as job_rows
from farm.records import Claim, Message, Usage
from farm.states import FINAL, JobState
from qeff_engine.errors import FailureClass
from tests.proof import invariants

REQUESTS = 25  # of each user
USERS, NODES = 2, 4
_EVER_S = 3600.0


class Bustle:
    """A farm whose every role runs in a thread."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.host = testing.add_host(database, num_slots=3)
        queues = (self.host.host_queue, *self.host.device_queues)
        self.nodes = dict(zip(queues, (self.host.host_node, *self.host.device_nodes), strict=True))
        self.messages: collections.deque[Message] = collections.deque()
        self.calm = threading.Event()  # no user has further wishes: what runs now succeeds
        self.over = threading.Event()

    def use(self, seed: int) -> None:
        """Submit, cancel and try again."""
        chance = random.Random(seed)
        for _ in range(REQUESTS):
            wish = chance.choice(["submit", "cancel", "cancel_submission", "retry", "retry"])
            if wish == "submit":
                plan = testing.small_plan(cores=chance.choice([(8,), (3, 14)]), tag=chance.choice("ab"))
                testing.add_submission(self.database, plan, priority=chance.randrange(3))
                continue
            column = job_rows.c.submission_id if wish == "cancel_submission" else job_rows.c.id
            with self.database.read() as connection:
                ids = list(connection.scalars(sa.select(column).distinct().order_by(column)))
            with contextlib.suppress(Refused), self.database.write() as connection:
                getattr(jobs, wish)(connection, chance.choice(ids or [0]))

    def schedule(self) -> None:
        """Admit, place and send until everything has ended."""
        while not self.over.is_set():
            with self.database.read() as connection:
                waiting = admission.admissible(connection, limit=20)
                live = connection.scalar(sa.select(sa.func.count()).where(job_rows.c.finished_at.is_(None)))
            if self.calm.is_set() and not live:
                self.over.set()
            with self.database.write() as connection:
                for job in waiting:
                    key = f"{job.stage} {job.fields} {sorted(job.inputs.items())}"
                    with contextlib.suppress(StaleTransition):  # a user was faster
                        admission.admit(connection, job.id, action_key=key, parts={}, term=None)
            scheduler.place(self.database, term=None, max_age_s=_EVER_S)
            scheduler.send(self.database, sender=self, term=None)

    def send(self, messages: Sequence[Message]) -> list[int]:
        """Take messages, as the broker does."""
        self.messages += messages
        return [message.id for message in messages]

    def work(self, seed: int) -> None:
        """Claim what messages tell, now and then twice, and end it in one way or another."""
        chance = random.Random(seed)
        while not self.over.is_set():
            try:
                message = self.messages.popleft()
            except IndexError:
                self.over.wait(0.001)
                continue
            if chance.random() < 0.1:
                self.messages.append(message)
            key = message.job_id, message.attempt
            try:
                with self.database.write() as connection:
                    claimed = attempts.claim(connection, *key, node_id=self.nodes[message.queue], lease_s=_EVER_S)
            except NoCapacity:
                with contextlib.suppress(StaleTransition), self.database.write() as connection:
                    attempts.give_back(connection, *key, reason="no room")
            except StaleTransition:
                pass
            else:
                self._end(claimed, chance)

    def _end(self, claimed: Claim, chance: random.Random) -> None:
        """The claim is this node's alone: nothing that it does may be refused."""
        key = claimed.job_id, claimed.attempt
        with self.database.write() as connection:
            asked = attempts.heartbeat(connection, *key, lease_s=_EVER_S)
        way = "succeed" if self.calm.is_set() else chance.choice(["succeed", "succeed", "fail", "interrupt"])
        if asked:
            with self.database.write() as connection:
                attempts.cancel_attempt(connection, *key, usage=Usage())
        elif way == "succeed":
            testing.finish(self.database, claimed)
        elif way == "fail":
            kind = chance.choice([FailureClass.BUG, FailureClass.UNSUPPORTED])
            with self.database.write() as connection:
                attempts.fail(connection, *key, failure_class=kind, message="why", usage=Usage())
        else:
            with self.database.write() as connection:
                attempts.interrupt(connection, *key, reason="why")


def test_users_scheduler_and_nodes_at_once(each_database: Database) -> None:
    bustle = Bustle(each_database)
    for tag in "ab":
        testing.add_submission(each_database, testing.small_plan(tag=tag))
    with concurrent.futures.ThreadPoolExecutor(USERS + NODES + 1) as pool:
        others = [pool.submit(bustle.schedule), *(pool.submit(bustle.work, seed) for seed in range(NODES))]
        users = [pool.submit(bustle.use, seed) for seed in range(USERS)]
        try:
            for user in users:
                user.result()
            bustle.calm.set()
            done, _ = concurrent.futures.wait(others, return_when=concurrent.futures.FIRST_EXCEPTION, timeout=60)
            stuck = len(others) - len(done)
        finally:
            bustle.calm.set()
            bustle.over.set()
    for other in others:
        other.result()
    assert stuck == 0
    invariants.check(each_database)
    with each_database.read() as connection:
        found = set(connection.scalars(sa.select(job_rows.c.state).distinct()))
    assert JobState.SUCCEEDED in found
    assert found <= FINAL
