"""Users, two schedulers, a reaper and nodes at once, in threads of their own: whoever is right is never refused, of two
who want to end one attempt one does, nobody waits for ever, and the laws hold at the end."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import NoCapacity, Refused, StaleTransition
from farm.lifecycle import attempts, jobs, leadership, leases, reaping
from farm.models import core_leases, host_leases
from farm.models import jobs as job_rows
from farm.records import Claim, Message, Usage
from farm.scheduling import rounds
from farm.settings import Settings
from farm.states import FINAL, JobState
from qeff_engine.errors import FailureClass
from tests.proof import invariants
from tests.proof.sweeps import plan, teach

REQUESTS = 25  # of each user
USERS, NODES, SCHEDULERS = 2, 3, 2
_EVER_S = 3600.0
_TERM_S = 0.05  # of a leader: the other one takes over again and again


class Bustle:
    """A farm whose every role runs in a thread."""

    def __init__(self, database: Database, *, home: Path) -> None:
        self.database = database
        self.host = testing.add_host(database, num_slots=3)
        queues = (self.host.host_queue, *self.host.device_queues)
        self.nodes = dict(zip(queues, (self.host.host_node, *self.host.device_nodes), strict=True))
        self.settings = Settings(home=home, database_url="", broker_url="", store=home, lease_s=_EVER_S)
        self.messages: collections.deque[Message] = collections.deque()
        self.silent: collections.deque[tuple[Claim, threading.Barrier]] = collections.deque()
        self.ended: collections.Counter[tuple[int, int]] = collections.Counter()  # how many believe that they ended it
        self.terms: set[int] = set()
        self.calm = threading.Event()  # no user has further wishes: what runs now succeeds
        self.over = threading.Event()

    def use(self, seed: int) -> None:
        """Submit, cancel and try again."""
        chance = random.Random(seed)
        for _ in range(REQUESTS):
            wish = chance.choice(["submit", "cancel", "cancel_submission", "retry", "retry"])
            if wish == "submit":
                wanted = plan(cores=chance.choice([(8,), (3, 14)]), tag=chance.choice("ab"))
                testing.add_submission(self.database, wanted, priority=chance.randrange(3))
                continue
            column = job_rows.c.submission_id if wish == "cancel_submission" else job_rows.c.id
            with self.database.read() as connection:
                ids = list(connection.scalars(sa.select(column).distinct().order_by(column)))
            with contextlib.suppress(Refused), self.database.write() as connection:
                getattr(jobs, wish)(connection, chance.choice(ids or [0]))

    def schedule(self, holder: str) -> None:
        """Lead when that is possible, and do rounds until everything has ended."""
        term: int | None = None
        while not self.over.is_set():
            if term is None:
                with self.database.write() as connection:
                    term = leadership.acquire(connection, holder=holder, lease_s=_TERM_S)
                if term is None:
                    self.over.wait(_TERM_S / 4)
                    continue
                self.terms.add(term)
            with contextlib.suppress(StaleTransition):
                rounds.tick(self.database, settings=self.settings, term=term, sender=self, reap=False)
                with self.database.read() as connection:
                    live = connection.scalar(sa.select(sa.func.count()).where(job_rows.c.finished_at.is_(None)))
                if self.calm.is_set() and not live:
                    self.over.set()
                continue
            term = None

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
            except NoCapacity as error:
                with contextlib.suppress(StaleTransition), self.database.write() as connection:
                    attempts.give_back(connection, *key, reason=str(error))
            except StaleTransition:
                pass
            else:
                self._end(claimed, chance)

    def _end(self, claimed: Claim, chance: random.Random) -> None:
        """The claim is this node's alone: nothing that it does may be refused, unless the reaper takes it."""
        key = claimed.job_id, claimed.attempt
        if not self.calm.is_set() and chance.random() < 0.3:
            self._race(claimed)
            return
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
        self.ended[key] += 1

    def _race(self, claimed: Claim) -> None:
        """Report at the moment at which the reaper takes the attempt."""
        both = threading.Barrier(2)
        self.silent.append((claimed, both))
        both.wait(timeout=30)
        if self._ends(claimed, lambda: testing.finish(self.database, claimed)):
            return
        with self.database.write() as connection:
            key = {"job_id": claimed.job_id, "attempt": claimed.attempt}
            leases.confirm_gone(connection, host_id=self.host.host_id, **key)

    def reap(self) -> None:
        """Take attempts from nodes that are silent, just when they speak again."""
        while not self.over.is_set():
            try:
                claimed, both = self.silent.popleft()
            except IndexError:
                self.over.wait(0.001)
                continue
            both.wait(timeout=30)
            self._ends(claimed, lambda claimed=claimed: self._lose(claimed))

    def _lose(self, claimed: Claim) -> None:
        with self.database.write() as connection:
            reaping.lose(connection, claimed.job_id, claimed.attempt, reason="silent", term=None)

    def _ends(self, claimed: Claim, act: Callable[[], object]) -> bool:
        """Whether this one ended the attempt."""
        try:
            act()
        except StaleTransition:
            return False
        self.ended[claimed.job_id, claimed.attempt] += 1
        return True


def test_users_schedulers_reaper_and_nodes_at_once(each_database: Database, tmp_path: Path) -> None:
    bustle = Bustle(each_database, home=tmp_path)
    teach(each_database)
    for tag in "ab":
        testing.add_submission(each_database, plan(cores=(8, 14), tag=tag))
    with concurrent.futures.ThreadPoolExecutor(USERS + NODES + SCHEDULERS + 1) as pool:
        others = [pool.submit(bustle.schedule, f"scheduler {number}") for number in range(SCHEDULERS)]
        others += [pool.submit(bustle.work, seed) for seed in range(NODES)]
        others.append(pool.submit(bustle.reap))
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
    assert set(bustle.ended.values()) == {1}, "an attempt was ended twice"
    assert len(bustle.terms) > 1, "nobody took over"
    invariants.check(each_database)
    with each_database.read() as connection:
        found = set(connection.scalars(sa.select(job_rows.c.state).distinct()))
        held = [connection.scalar(sa.select(sa.func.count()).select_from(one)) for one in (core_leases, host_leases)]
    assert JobState.SUCCEEDED in found
    assert found <= FINAL
    assert held == [0, 0]
