"""What schedulers write to a farm's database, see :mod:`tests.proof.situations`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farm.lifecycle import admission, jobs, leadership, outbox, reaping, steering
from farm.lifecycle.failures import POLICIES
from farm.records import Limits
from farm.store import collection
from farm.store.collection import Places
from qeff_engine.errors import FailureClass
from tests.proof.collecting import EVERYTHING
from tests.proof.situations import Act, begun, first_job, round_of_leader, submit_sweep, writing
from tests.proof.world import LEADER_LEASE_S, LEASE_S, World


def begin_to_lead(world: World) -> Act:
    return writing(leadership.acquire, holder="one", lease_s=LEADER_LEASE_S)


def take_the_lead(world: World) -> Act:
    world.lead(world.schedulers[1])
    world.clock.now += LEADER_LEASE_S + 1
    return writing(leadership.acquire, holder="one", lease_s=LEADER_LEASE_S)


def renew_the_lead(world: World) -> Act:
    world.lead(world.schedulers[0])
    return writing(leadership.renew, holder="one", term=world.schedulers[0].term, lease_s=LEADER_LEASE_S)


def resign_the_lead(world: World) -> Act:
    world.lead(world.schedulers[0])
    return writing(leadership.resign, holder="one", term=world.schedulers[0].term)


def a_round_that_admits_places_and_sends(world: World) -> Act:
    submit_sweep(world)
    submit_sweep(world, tag="b")
    return round_of_leader(world)


def a_round_that_finds_what_is_done(world: World) -> Act:
    submit_sweep(world)
    for _ in range(4):
        world.begin_work(world.schedulers[0])
        world.end_work()
    submit_sweep(world, owner="bob")
    return round_of_leader(world)


def a_round_that_finds_what_fails(world: World) -> Act:
    world.fail(begun(world, rounds=1, followed=False)[0], FailureClass.UNSUPPORTED)
    submit_sweep(world, owner="bob")
    return round_of_leader(world)


def a_round_that_lets_followers_follow(world: World) -> Act:
    begun(world, rounds=1, followed=False)
    submit_sweep(world, owner="bob")
    return round_of_leader(world)


def a_round_that_loses_attempts(world: World) -> Act:
    begun(world, rounds=3, cores=(8, 14))
    world.clock.now += LEASE_S + 1
    for node in world.nodes:
        world.beat(node)
    return round_of_leader(world)


def a_round_that_returns_and_sends_again(world: World) -> Act:
    submit_sweep(world)
    submit_sweep(world, tag="b")
    world.place(world.schedulers[0])
    world.clock.now += LEASE_S
    for node in world.nodes[1:]:
        world.beat(node)
    return round_of_leader(world)


def admit_one(world: World) -> Act:
    submit_sweep(world)
    return writing(admission.admit, first_job(world, "waiting"), action_key="key", parts={"a": 1}, term=None)


def a_round_that_expires_what_waits(world: World) -> Act:
    submit_sweep(world)  # has no deadline, and is followed
    world.write(steering.pause, 1, by="ada")
    limits = Limits(deadline_s=LEASE_S)
    world.submit(tag="a", cores=(8,), priority=0, owner="bob", limits=limits)
    world.submit(tag="b", cores=(8,), priority=0, owner="bob", limits=limits)
    world.place(world.schedulers[0])
    for place in world.places:
        world.write(steering.drain, place, by="ada", reason="test")
    world.submit(tag="c", cores=(8,), priority=0, owner="bob", limits=Limits(wait_limit_s=LEASE_S / 2))
    world.place(world.schedulers[0])
    world.clock.now += LEASE_S
    for node in world.nodes:
        world.beat(node)
    return round_of_leader(world)


def a_round_that_expires_what_is_queued(world: World) -> Act:
    world.submit(tag="a", cores=(8,), priority=0, owner="bob", limits=Limits(deadline_s=LEASE_S))
    world.place(world.schedulers[0])
    world.clock.now += LEASE_S
    for node in world.nodes:
        world.beat(node)
    return round_of_leader(world)


def _taken_for_good(take: Callable[..., Any], failure_class: FailureClass) -> Callable[[World], Act]:
    def operation(world: World) -> Act:
        stage = begun(world, rounds=3)[0]
        for _ in range(POLICIES[failure_class].retries):
            stage.is_alive = False
            world.write(take, *stage.key, reason="test", term=None)
            world.confirm(stage)
            world.clock.now += LEASE_S
            world.begin_work(world.schedulers[0])
            again = (one for one in world.stages.values() if one.claim.job_id == stage.claim.job_id)
            stage = next(one for one in again if one.is_alive)
        return writing(take, *stage.key, reason="test", term=None)

    return operation


def overrun(world: World) -> Act:
    return writing(reaping.overrun, *begun(world, rounds=3)[0].key, reason="test", term=None)


def lose_what_a_user_cancelled(world: World) -> Act:
    stage = begun(world, rounds=1)[0]
    world.write(jobs.cancel, stage.claim.job_id)
    return writing(reaping.lose, *stage.key, reason="silent", term=None)


def forget_what_was_sent(world: World) -> Act:
    submit_sweep(world)
    world.broker.is_down = True
    world.place(world.schedulers[0])
    with world.database.read() as connection:
        ids = [message.id for message in outbox.take_outbox(connection, limit=9)]
    assert ids
    return writing(outbox.delete_outbox, ids, term=None)


def a_round_that_has_inputs_made_again(world: World) -> Act:
    world.fail(begun(world, rounds=1, followed=False)[0], FailureClass.UNSUPPORTED)
    world.collect(EVERYTHING)
    world.write(jobs.retry, first_job(world, "failed"))
    return round_of_leader(world)


def collect_what_nobody_needs(world: World) -> Act:
    """Beside a sweep whose inputs are needed."""
    begun(world, rounds=3)
    submit_sweep(world, tag="b")
    for _ in range(3):
        world.end_work()
        world.begin_work(world.schedulers[0])
    places = Places(store=world.store)
    return lambda database: collection.collect(database, places, policy=EVERYTHING)


OPERATIONS: Mapping[str, Callable[[World], Act]] = {
    one.__name__: one
    for one in (
        begin_to_lead,
        take_the_lead,
        renew_the_lead,
        resign_the_lead,
        a_round_that_admits_places_and_sends,
        a_round_that_finds_what_is_done,
        a_round_that_finds_what_fails,
        a_round_that_lets_followers_follow,
        a_round_that_loses_attempts,
        a_round_that_returns_and_sends_again,
        admit_one,
        a_round_that_expires_what_waits,
        a_round_that_expires_what_is_queued,
        overrun,
        lose_what_a_user_cancelled,
        forget_what_was_sent,
        a_round_that_has_inputs_made_again,
        collect_what_nobody_needs,
    )
} | {
    "lose_for_good": _taken_for_good(reaping.lose, FailureClass.WORKER_LOST),
    "overrun_for_good": _taken_for_good(reaping.overrun, FailureClass.TIMEOUT),
}
