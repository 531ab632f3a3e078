"""A farm without processes: its code on a real database, with a broker, hosts and clocks that do what they are told.

What may happen is a method of :class:`World`. Each checks what it can by itself: who is right is not refused, who is
late changes nothing. What must always be true is in :mod:`tests.proof.invariants`, see :meth:`World.check`.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

from farm import testing
from farm.db import Database
from farm.errors import NoCapacity, Refused, StaleTransition
from farm.fleet import devices
from farm.lifecycle import attempts, jobs, leadership, leases, rebuilding, steering
from farm.lifecycle.steering import Place, Wish
from farm.models import artifacts, core_leases, host_leases, leader, outbox, submissions
from farm.models import attempts as attempt_rows
from farm.models import jobs as job_rows
from farm.records import Message, Usage
from farm.scheduling import rounds
from farm.scheduling.dispatch import BrokerDown
from farm.settings import Settings
from farm.states import FINAL
from farm.store.collection import Policy
from qeff_engine.errors import FailureClass
from tests.proof import invariants, snapshot
from tests.proof.clock import START, Clock
from tests.proof.collecting import EVERYTHING, Collecting
from tests.proof.processes import Broker, Key, Node, Scheduler, Stage
from tests.proof.shelf import Shelf
from tests.proof.stepping import Stepped
from tests.proof.sweeps import NARROW, plan, teach
from workers import recovery

LEASE_S, LEADER_LEASE_S = 60.0, 5.0
_ROUNDS = 120  # of a farm without faults, until everything must have ended
_SKEW_S = 3600.0


class World:
    """A farm with two hosts, three devices and two schedulers, in a database that is emptied for it."""

    def __init__(self, database: Database, *, clock: Clock, shelf: Shelf) -> None:
        snapshot.empty(database)
        clock.now = START
        self.database, self.clock, self.shelf = database, clock, shelf
        self.store = shelf.store
        shelf.clear()
        self.collecting = Collecting(database, shelf=shelf, clock=clock)
        root = self.store.root.parent
        self._records = root / "records"
        self.settings = Settings(home=root, database_url="", broker_url="", store=self.store.root, lease_s=LEASE_S)
        self.broker = Broker()
        self.nodes: list[Node] = []
        for number, (name, cores) in enumerate((("box", (16, 14)), ("den", (8,)))):
            self._add_host(name, cores=cores, skew_s=_SKEW_S * (1 - 2 * number))
        self.schedulers = [Scheduler(holder="one"), Scheduler(holder="two")]
        self.stages: dict[Key, Stage] = {}
        self.num_transactions = 0
        teach(database)
        with database.read() as connection:
            self.places = steering.places(connection)
        self.rows = snapshot.take(database)

    def _add_host(self, name: str, *, cores: tuple[int, ...], skew_s: float) -> None:
        made = testing.add_host(self.database, name=name, cores=cores, num_slots=2)
        fixed: dict[str, Any] = {"host_id": made.host_id, "skew_s": skew_s}
        self.nodes.append(Node(kind="host", queue=made.host_queue, node_id=made.host_node, device_id=None, **fixed))
        for queue, node_id, device_id in zip(made.device_queues, made.device_nodes, made.device_ids, strict=True):
            self.nodes.append(Node(kind="device", queue=queue, node_id=node_id, device_id=device_id, **fixed))

    def close(self) -> None:
        """End what is under way."""
        self.collecting.kill()
        for one in self.schedulers:
            self.kill_scheduler(one)

    # What is known without asking the farm.

    def check(self) -> None:
        """Look at the tables and assert that all laws hold."""
        self.rows = snapshot.take(self.database)
        invariants.check_rows(self.rows, store=self.store, now=self.clock(), struck=self.collecting.struck)

    def is_running(self, key: Key) -> bool:
        """Whether an attempt is the current one of its job and has not ended."""
        return any((row.job_id, row.number) == key and row.state == "running" for row in self.rows[attempt_rows])

    def is_queued(self, key: Key) -> bool:
        """Whether a job waits for a node to claim this attempt."""
        return any((row.id, row.attempt) == key and row.state == "queued" for row in self.rows[job_rows])

    def job_ids(self) -> list[int]:
        """All jobs."""
        return [row.id for row in self.rows[job_rows]]

    def unfinished(self) -> list[Any]:
        """Jobs that have not ended."""
        return [row for row in self.rows[job_rows] if row.state not in FINAL]

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Assert that not one row changes meanwhile."""
        before = snapshot.take(self.database)
        yield
        after = snapshot.take(self.database)
        assert before == after, before.differences(after)

    def write(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call a function of the farm in a transaction."""
        self.num_transactions += 1
        with self.database.write() as connection:
            return function(connection, *arguments, **named)

    # Users.

    def submit(self, *, tag: str, cores: tuple[int, ...], owner: str, shape: str = NARROW, **how: Any) -> int:
        """Ask for a sweep, with more arguments of :func:`farm.lifecycle.jobs.submit`; returns the submission."""
        named: dict[str, Any] = {"name": tag, "owner": owner, "request": {}, **how}
        return int(self.write(jobs.submit, plan(cores=cores, tag=tag, shape=shape), **named))

    def wish(self, function: Callable[..., Any], identity: object) -> None:
        """Ask for a change of a job or submission that may be refused, and then nothing has changed."""
        before = snapshot.take(self.database)
        try:
            self.write(function, identity)
        except Refused:
            assert before == snapshot.take(self.database)

    def hand_back(self, place: Place) -> None:
        """Let nodes end what runs at a place, which they do when they hear of it."""
        self.write(steering.hand_back, place, reason="test")

    def wishes(self, stage: Stage) -> Wish | None:
        """What a stage's node hears about it."""
        with self.database.read() as connection:
            return steering.wishes(connection, [stage.key]).get(stage.key)

    # Schedulers.

    def lead(self, one: Scheduler) -> None:
        """Become or stay the leader if that is possible."""
        held = {row.term: row for row in self.rows[leader]}
        if one.term is not None:
            named = {"holder": one.holder, "term": one.term, "lease_s": LEADER_LEASE_S}
            renewed = self.write(leadership.renew, **named)
            assert renewed == (one.term in held), "only the holder of the newest term renews"
            one.term = one.term if renewed else None
        if one.term is None:
            one.term = self.write(leadership.acquire, holder=one.holder, lease_s=LEADER_LEASE_S)
            assert (one.term is not None) == all(row.lease_until < self.clock() for row in held.values())

    def begin_round(self, one: Scheduler, *, full: bool = True) -> None:
        """Begin a round, if this scheduler believes that it leads and is not in the middle of one."""
        if one.term is None or one.round is not None:
            return
        named = {"settings": self.settings, "term": one.term, "sender": self.broker, "full": full}
        one.round = Stepped(
            self.database, lambda database: rounds.tick(database, **named), watch=lambda: self._fenced(one)
        )

    def go_on(self, one: Scheduler, *, steps: int) -> None:
        """Let a round go on for some transactions: it may have stood still for long."""
        with self.clock.wrong_by(_SKEW_S):
            for _ in range(steps):
                if one.round is None:
                    return
                try:
                    if not one.round.step():
                        one.round = None
                except StaleTransition:
                    one.round, one.term = None, None
                except BrokerDown:
                    one.round = None

    @contextlib.contextmanager
    def _fenced(self, one: Scheduler) -> Iterator[None]:
        """A write of a scheduler's round: one of a past term changes nothing."""
        self.num_transactions += 1
        with self.database.read() as connection:
            current = connection.scalar(leader.select().with_only_columns(leader.c.term))
        with contextlib.nullcontext() if current == one.term else self._unchanged():
            yield

    def kill_scheduler(self, one: Scheduler) -> None:
        """End the process, wherever its round stands."""
        if one.round is not None:
            one.round.kill()
        one.round, one.term = None, None

    # Nodes.

    def deliver(self, message: Message) -> Stage | None:
        """A node gets a message: it claims the attempt if that still waits for it, and starts its stage."""
        key = message.job_id, message.attempt
        node = next(node for node in self.nodes if node.queue == message.queue)
        wanted = self.is_queued(key)
        with self.clock.wrong_by(node.skew_s), contextlib.nullcontext() if wanted else self._unchanged():
            try:
                claim = self.write(attempts.claim, *key, node_id=node.node_id, lease_s=LEASE_S)
            except StaleTransition:
                assert not wanted, key
                return None
            except NoCapacity as error:
                assert wanted, key
                self.write(attempts.give_back, *key, reason=str(error))
                return None
        assert wanted, key
        for digest in claim.inputs.values():
            self.store.path(digest)  # as the stage does, which fails without one
        stage = self.stages[key] = Stage(claim=claim, node=node)
        for other in self.stages.values():
            both = other is not stage and other.is_alive and other.cores & stage.cores
            assert not both, f"{stage.key} works on the cores {both} of {other.key}"
        return stage

    def report(self, stage: Stage, function: Callable[..., Any], **named: Any) -> Any:
        """A node says something about an attempt: it is heard if and only if the attempt is still its own.

        Returns what the farm answered; None when it was too late.
        """
        current = self.is_running(stage.key)
        with self.clock.wrong_by(stage.node.skew_s), contextlib.nullcontext() if current else self._unchanged():
            try:
                answer = self.write(function, *stage.key, **named)
            except StaleTransition:
                assert not current, stage.key
                return None
        assert current, stage.key
        return answer

    def heartbeat(self, stage: Stage) -> bool | None:
        """Renew the lease of a stage that works; whether a user asked to stop it."""
        answer: bool | None = self.report(stage, attempts.heartbeat, lease_s=LEASE_S, progress="works", fraction=0.5)
        return answer

    def succeed(self, stage: Stage) -> None:
        """The stage has made its artifact."""
        self.collecting.unlock()
        named = {"artifact": self.shelf.publish(stage.claim), "figures": {"x": 1}, "usage": Usage(exit_code=0)}
        self._end(stage, attempts.succeed, **named)

    def fail(self, stage: Stage, failure_class: FailureClass) -> None:
        """The stage has failed."""
        self._end(stage, attempts.fail, failure_class=failure_class, message="why", usage=Usage(exit_code=1))

    def find_damaged(self, stage: Stage, *, pick: int) -> None:
        """The stage has found that one of its inputs is not what was published, if it has any."""
        digests = sorted(set(stage.claim.inputs.values()))
        if digests:
            named = {"digest": digests[pick % len(digests)], "message": "damaged", "usage": Usage(exit_code=1)}
            self._end(stage, rebuilding.rebuild_input, **named)

    def interrupt(self, stage: Stage) -> None:
        """The node stops the stage because it ends itself."""
        self._end(stage, attempts.interrupt, reason="the node stops")

    def obey(self, stage: Stage) -> bool:
        """The node hears what users want of the stage, and does it; whether there was something."""
        wish = self.wishes(stage)
        assert (wish is not None and wish.cancel) == bool(self.heartbeat(stage))
        if wish is not None and wish.cancel:
            self._end(stage, attempts.cancel_attempt, usage=Usage(exit_code=-15))
        elif wish is not None:
            self._end(stage, attempts.interrupt, reason=wish.reason)
        return wish is not None

    def _end(self, stage: Stage, function: Callable[..., Any], **named: Any) -> None:
        stage.is_alive = False
        if self.report(stage, function, **named) is None and not self.is_running(stage.key):
            self.confirm(stage)

    def confirm(self, stage: Stage) -> None:
        """The node says that nothing of a stage runs any more."""
        assert not stage.is_alive
        key = {"job_id": stage.claim.job_id, "attempt": stage.claim.attempt}
        self.write(leases.confirm_gone, host_id=stage.node.host_id, **key)

    def beat(self, node: Node) -> None:
        """A node says that it lives."""
        with self.clock.wrong_by(node.skew_s):
            self.write(devices.node_heartbeat, node.node_id)

    def restart(self, node: Node) -> None:
        """A node's process and its stages are killed, and another one takes over."""
        self.kill_stages(node)
        with self.clock.wrong_by(node.skew_s):
            named = {"host_id": node.host_id, "device_id": node.device_id, "kind": node.kind, "queue": node.queue}
            node.node_id = self.write(devices.register_node, pid=1, **named)
            recovery.take_over(self.workplace(node, self.database))

    def workplace(self, node: Node, database: Database) -> Any:
        """What a node's code needs to know where it is."""
        return types.SimpleNamespace(
            database=database,
            store=self.store,
            records=self._records,
            host_id=node.host_id,
            node_id=node.node_id,
            settings=self.settings,
        )

    def kill_stages(self, node: Node) -> None:
        """The processes of a node's stages end."""
        for stage in self.stages.values():
            if stage.node is node:
                stage.is_alive = False

    def set_health(self, device_id: int, health: str) -> None:
        """Somebody finds a device healthy or not."""
        self.write(testing.set_health, device_id, health=health, reason="test")

    # A farm in which nothing goes wrong.

    def place(self, one: Scheduler) -> None:
        """Let a scheduler lead, place and send."""
        self.clock.now += LEADER_LEASE_S + 1
        self.check()
        self.lead(one)
        for node in self.nodes:
            self.beat(node)
        self.begin_round(one)
        self.go_on(one, steps=1000)
        self.check()

    def begin_work(self, one: Scheduler) -> None:
        """Let a scheduler place, and the nodes begin what they are told to."""
        self.place(one)
        messages, self.broker.messages = self.broker.messages, []
        for message in messages:
            self.check()
            self.deliver(message)
        self.check()

    def end_work(self) -> None:
        """Let every stage that works end as it should."""
        for stage in [stage for stage in self.stages.values() if stage.is_alive]:
            self.check()
            if not self.obey(stage):
                self.check()
                self.succeed(stage)
        self.check()

    def settle(self) -> None:
        """Restart everything, lose all messages, and assert that a farm without faults ends all that can be ended."""
        self.check()
        done = self._succeeded()
        self.collecting.kill()
        for one in self.schedulers:
            self.kill_scheduler(one)
        self.broker.messages, self.broker.is_down = [], False
        self.clock.now += LEASE_S  # long enough for any lease of a leader
        self.check()
        for row in self.rows[submissions]:
            self.write(steering.resume, row.id)
        for place in self.places:
            self.write(steering.undrain, place)
        for node in self.nodes:
            if node.device_id is not None:
                self.set_health(node.device_id, "ready")
            self.restart(node)
        self.check()
        for _ in range(_ROUNDS):
            self.begin_work(self.schedulers[0])
            self.end_work()
            if not self.unfinished():
                break
        assert self.unfinished() == [], "a job that could run is forgotten"
        for table in (core_leases, host_leases, outbox):
            assert self.rows[table] == (), "nothing may be left of what has ended"
        self.collect(EVERYTHING)
        pinned = {row.digest for row in self.rows[artifacts] if row.pinned is not None}
        assert {row.digest for row in self.rows[artifacts] if row.deleted_at is None} == pinned, "nobody wants the rest"
        still = self._succeeded()
        assert {key: still.get(key) for key in done} == done, "what is done stays so, and is not done again"

    def collect(self, policy: Policy) -> None:
        """Let a round of the garbage collection begin and end."""
        self.collecting.begin(policy, term=None)
        self.collecting.go_on(steps=1000)
        self.check()

    def _succeeded(self) -> dict[int, tuple[int, float]]:
        """By job: the attempt that succeeded, and when."""
        rows = self.rows[attempt_rows]
        return {row.job_id: (row.number, row.finished_at) for row in rows if row.state == "succeeded"}
