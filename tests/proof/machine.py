"""Everything that may happen to a farm, in any order. The laws are checked after each step.

A new way to change the farm is a method of :class:`tests.proof.world.World` and a rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import sqlalchemy as sa
from hypothesis import stateful
from hypothesis import strategies as st

from farm.lifecycle import jobs, steering
from farm.models import HEALTH_STATES, KINDS, artifacts, submissions
from farm.models import jobs as job_rows
from farm.records import Limits
from farm.states import DONE, FINAL
from farm.store import catalogue
from farm.store.collection import Policy
from qeff_engine import spec
from qeff_engine.errors import FailureClass
from tests.proof.collecting import EVERYTHING
from tests.proof.processes import Stage
from tests.proof.site import Site
from tests.proof.sweeps import SHAPES
from tests.proof.world import LEADER_LEASE_S, LEASE_S, World

picks = st.integers(0, 1000)
UNDONE = FINAL - DONE
PAUSES_S = (0.5, LEADER_LEASE_S + 1, LEASE_S / 2 + 1, LEASE_S + 1)
POLICIES = (  # of the garbage collection; the artifacts of these farms have some 100 bytes each
    EVERYTHING,
    Policy(unused_for_s=0.0, grace_s=LEADER_LEASE_S, recent_s=1.0),
    Policy(unused_for_s=LEASE_S, grace_s=1.0, recent_s=LEASE_S / 2, limit=1),
    Policy(budget_bytes=0, grace_s=0.0, recent_s=0.0),
    Policy(budget_bytes=300, grace_s=1.0, recent_s=0.0, limit=2),
)
LIMITS = (
    Limits(),
    Limits(deadline_s=1.5 * LEASE_S),
    Limits(run_limit_s=1.0, wait_limit_s=LEASE_S / 2),
)


def retry_anew(connection: sa.Connection, job_id: int) -> None:
    """Try a job again without believing what is known."""
    jobs.retry(connection, job_id, skip_cache=True)


def pause(connection: sa.Connection, submission_id: int) -> None:
    """Pause a submission as Ada."""
    steering.pause(connection, submission_id, by="ada")


def drain(connection: sa.Connection, place: steering.Place) -> None:
    """Drain a place as Ada."""
    steering.drain(connection, place, by="ada", reason="test")


def pin(connection: sa.Connection, digests: Sequence[str]) -> None:
    """Keep artifacts."""
    catalogue.pin(connection, digests, reason="test")


class History(stateful.RuleBasedStateMachine):
    """One history of a farm."""

    site: Site

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.site.database, clock=self.site.clock, shelf=self.site.shelf)

    def teardown(self) -> None:
        try:
            self.world.settle()
        finally:
            self.site.note(self.world)
            self.world.close()

    @stateful.invariant()
    def the_laws_hold(self) -> None:
        self.site.num_steps += 1
        self.world.check()

    def _stage(self, pick: int) -> Stage | None:
        """A stage that works, or one of the past whose node has not heard of its end."""
        stages = list(self.world.stages.values())
        return stages[pick % len(stages)] if stages else None

    # Users.

    @stateful.initialize(
        tag=st.sampled_from("ab"),
        cores=st.sampled_from([(8,), (14, 16), (3, 8)]),
        shape=st.sampled_from(SHAPES),
        rounds=st.integers(0, 4),
    )
    def begin(self, tag: str, cores: tuple[int, ...], shape: str, rounds: int) -> None:
        """Some of the work of a first sweep is done, and some is under way."""
        self.world.submit(tag=tag, cores=cores, shape=shape, priority=0, owner="ada")
        for _ in range(rounds):
            self.world.begin_work(self.world.schedulers[0])
            self.world.end_work()
        self.world.begin_work(self.world.schedulers[0])

    @stateful.rule(
        tag=st.sampled_from("ab"),
        cores=st.sampled_from([(8,), (14, 16), (3, 8)]),
        priority=st.integers(0, 3),
        owner=st.sampled_from(["ada", "bob"]),
        token=st.sampled_from([None, "once"]),
        limits=st.sampled_from(LIMITS),
        kind=st.sampled_from(KINDS),
        shape=st.sampled_from(SHAPES),
        anew=st.sampled_from([(), (), ("run",), tuple(spec.Stage)]),
    )
    def submit(self, tag: str, cores: tuple[int, ...], owner: str, **how: Any) -> None:
        self.world.submit(tag=tag, cores=cores, owner=owner, **how)

    @stateful.rule(pick=picks, wish=st.sampled_from([jobs.cancel, jobs.cancel, jobs.retry, retry_anew]))
    def cancel_or_retry(self, pick: int, wish: Callable[..., object]) -> None:
        ids = self.world.job_ids()
        self.world.wish(wish, ids[pick % len(ids)])

    @stateful.rule(pick=picks)
    def cancel_submission(self, pick: int) -> None:
        ids = [row.id for row in self.world.rows[submissions]]
        self.world.wish(jobs.cancel_submission, ids[pick % len(ids)])

    @stateful.rule(pick=picks, wish=st.sampled_from([pause, steering.resume]))
    def pause_or_resume(self, pick: int, wish: Callable[..., object]) -> None:
        ids = [row.id for row in self.world.rows[submissions]]
        self.world.wish(wish, ids[pick % len(ids)])

    @stateful.rule(pick=picks, wish=st.sampled_from([drain, steering.undrain, steering.undrain]), now=st.booleans())
    def drain_or_undrain(self, pick: int, wish: Callable[..., object], now: bool) -> None:
        place = self.world.places[pick % len(self.world.places)]
        self.world.wish(wish, place)
        if now and wish is drain:
            self.world.hand_back(place)

    # Time and schedulers.

    @stateful.rule(pause_s=st.sampled_from(PAUSES_S))
    def wait(self, pause_s: float) -> None:
        self.world.clock.now += pause_s

    @stateful.rule(which=st.integers(0, 1))
    def lead(self, which: int) -> None:
        self.world.lead(self.world.schedulers[which])

    @stateful.rule(which=st.integers(0, 1), full=st.booleans(), steps=st.sampled_from([0, 1, 3, 5, 7, 9, 100]))
    def begin_round(self, which: int, full: bool, steps: int) -> None:
        one = self.world.schedulers[which]
        self.world.begin_round(one, full=full)
        self.world.go_on(one, steps=steps)

    @stateful.rule(which=st.integers(0, 1), steps=st.sampled_from([1, 2, 100]))
    @stateful.precondition(lambda self: any(one.round for one in self.world.schedulers))
    def go_on(self, which: int, steps: int) -> None:
        self.world.go_on(self.world.schedulers[which], steps=steps)

    @stateful.rule(which=st.integers(0, 1))
    def kill_scheduler(self, which: int) -> None:
        self.world.kill_scheduler(self.world.schedulers[which])

    @stateful.rule()
    @stateful.precondition(lambda self: not any(one.round for one in self.world.schedulers))
    def work_begins(self) -> None:
        self.world.begin_work(self.world.schedulers[0])

    # The garbage collection.

    @stateful.rule(
        policy=st.sampled_from(POLICIES), which=st.sampled_from([0, 1, None]), steps=st.sampled_from([0, 1, 2, 100])
    )
    def begin_to_collect(self, policy: Policy, which: int | None, steps: int) -> None:
        """By a scheduler that may have lost the lead, or by a user."""
        term = None if which is None else self.world.schedulers[which].term
        self.world.collecting.begin(policy, term=term)
        self.world.collecting.go_on(steps=steps)

    @stateful.rule(steps=st.sampled_from([1, 2, 100]))
    def go_on_to_collect(self, steps: int) -> None:
        self.world.collecting.go_on(steps=steps)

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: any(row.state in UNDONE for row in self.world.rows[job_rows]))
    def try_again_after_all_was_collected(self, pick: int) -> None:
        ids = [row.id for row in self.world.rows[job_rows] if row.state in UNDONE]
        self.world.collecting.go_on(steps=100)
        self.world.collect(EVERYTHING)
        self.world.wish(jobs.retry, ids[pick % len(ids)])

    @stateful.rule()
    def the_collection_is_killed(self) -> None:
        self.world.collecting.kill()

    @stateful.rule(pick=picks, kept=st.booleans())
    @stateful.precondition(lambda self: self.world.rows[artifacts])
    def pin_or_unpin(self, pick: int, kept: bool) -> None:
        found = self.world.rows[artifacts]
        self.world.wish(pin if kept else catalogue.unpin, [found[pick % len(found)].digest])

    # The broker.

    @stateful.rule(is_down=st.booleans())
    def the_broker_goes_or_comes(self, is_down: bool) -> None:
        self.world.broker.is_down = is_down

    @stateful.rule()
    @stateful.precondition(lambda self: self.world.broker.messages)
    def every_key_of_the_broker_is_lost(self) -> None:
        self.world.broker.messages.clear()

    @stateful.rule(pick=picks, again=st.booleans())
    @stateful.precondition(lambda self: self.world.broker.messages)
    def deliver(self, pick: int, again: bool) -> None:
        messages = self.world.broker.messages
        message = messages[pick % len(messages)]
        if not again:
            messages.remove(message)
        self.world.deliver(message)

    # Nodes.

    @stateful.rule()
    def all_nodes_beat(self) -> None:
        for node in self.world.nodes:
            self.world.beat(node)

    @stateful.rule(pick=picks)
    def restart(self, pick: int) -> None:
        self.world.restart(self.world.nodes[pick % len(self.world.nodes)])

    @stateful.rule(pick=picks, health=st.sampled_from(["ready", *HEALTH_STATES]))
    def set_health(self, pick: int, health: str) -> None:
        found = [node.device_id for node in self.world.nodes if node.device_id is not None]
        self.world.set_health(found[pick % len(found)], health)

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.world.stages)
    def heartbeat(self, pick: int) -> None:
        self.world.heartbeat(self._stage(pick))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.world.stages)
    def succeed(self, pick: int) -> None:
        self.world.succeed(self._stage(pick))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.world.stages)
    def find_damaged(self, pick: int) -> None:
        self.world.find_damaged(self._stage(pick), pick=pick)

    @stateful.rule(pick=picks, failure_class=st.sampled_from(list(FailureClass)))
    @stateful.precondition(lambda self: self.world.stages)
    def fail(self, pick: int, failure_class: FailureClass) -> None:
        self.world.fail(self._stage(pick), failure_class)

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.world.stages)
    def interrupt(self, pick: int) -> None:
        self.world.interrupt(self._stage(pick))

    @stateful.rule(pick=picks)
    @stateful.precondition(lambda self: self.world.stages)
    def obey(self, pick: int) -> None:
        self.world.obey(self._stage(pick))


def live_through(site: Site, *, num_histories: int, num_steps: int, seed: int | None) -> None:
    """Live through random histories.

    Args:
        site: where.
        num_histories: how many.
        num_steps: of each, at most.
        seed: which ones; None for those of the tests, which are the same in every run.
    """

    class Here(History):
        pass

    Here.site = site
    settings = hypothesis.settings(
        max_examples=num_histories,
        stateful_step_count=num_steps,
        deadline=None,
        derandomize=seed is None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    machine = Here if seed is None else hypothesis.seed(seed)(Here)
    stateful.run_state_machine_as_test(machine, settings=settings)
