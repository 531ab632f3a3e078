"""Everything that writes to a farm's database, each in a situation in which it has much to write.

An operation prepares a :class:`~tests.proof.world.World` and returns what is to be done then, on whatever database it
is given: the same rows to begin with give the same rows at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import admission, attempts, jobs, leadership, leases, outbox, reaping, rebuilding, steering
from farm.lifecycle.claims import claim_all
from farm.lifecycle.failures import POLICIES
from farm.models import jobs as job_rows
from farm.records import DeviceRecord, Limits, Success, Usage
from farm.scheduling import rounds
from qeff_engine.errors import FailureClass
from tests.proof.world import LEADER_LEASE_S, LEASE_S, Broker, Stage, World, plan
from workers import recovery

Act = Callable[[Database], object]


def _writing(function: Callable[..., Any], *arguments: Any, **named: Any) -> Act:
    """A call in a transaction of its own."""

    def act(database: Database) -> object:
        with database.write() as connection:
            return function(connection, *arguments, **named)

    return act


def _submit(world: World, *, tag: str = "a", cores: tuple[int, ...] = (8,), owner: str = "ada") -> int:
    return world.submit(tag=tag, cores=cores, priority=1, owner=owner)


def _begun(world: World, *, rounds: int, cores: tuple[int, ...] = (8,), followed: bool = True) -> list[Stage]:
    """A sweep whose stages of one round work, and another user's who waits for the same; the stages."""
    _submit(world, cores=cores)
    for _ in range(rounds):
        world.begin_work(world.schedulers[0])
        world.end_work()
    world.begin_work(world.schedulers[0])
    if followed:
        _submit(world, cores=cores, owner="bob")
        world.begin_work(world.schedulers[0])
    found = [stage for stage in world.stages.values() if stage.is_alive]
    assert found
    return found


def _job(world: World, state: str) -> int:
    """The first job in a state."""
    world.check()
    return next(row.id for row in world.rows[job_rows] if row.state == state)


def _round(world: World) -> Act:
    """A round of the scheduler that leads."""
    one = world.schedulers[0]
    world.check()
    world.lead(one)
    named = {"settings": world.settings, "term": one.term}
    return lambda database: rounds.tick(database, sender=Broker(), **named)


# Users.


def submit(world: World) -> Act:
    named: dict[str, Any] = {"name": "n", "owner": "ada", "request": {}, "token": "t", "labels": {"a": "b"}}
    return _writing(jobs.submit, plan(cores=(8, 14), tag="a"), **named)


def cancel_a_waiting_job(world: World) -> Act:
    _submit(world, cores=(8, 14))
    return _writing(jobs.cancel, _job(world, "waiting"))


def cancel_a_queued_job_that_others_follow(world: World) -> Act:
    _submit(world)
    _submit(world, owner="bob")
    world.place(world.schedulers[0])
    return _writing(jobs.cancel, _job(world, "queued"))


def cancel_a_queued_job(world: World) -> Act:
    _submit(world)
    world.place(world.schedulers[0])
    return _writing(jobs.cancel, _job(world, "queued"))


def _ready(world: World, *, followed: bool) -> int:
    """A job that nobody has room for, and that others may wait for."""
    for place in world.places:
        world.write(steering.drain, place, by="ada", reason="test")
    _submit(world)
    if followed:
        _submit(world, owner="bob")
    world.place(world.schedulers[0])
    return _job(world, "ready")


def cancel_a_ready_job(world: World) -> Act:
    return _writing(jobs.cancel, _ready(world, followed=False))


def cancel_a_ready_job_that_others_follow(world: World) -> Act:
    return _writing(jobs.cancel, _ready(world, followed=True))


def want_a_ready_job_after_all(world: World) -> Act:
    job_id = _ready(world, followed=True)
    world.write(jobs.cancel, job_id)
    return _writing(jobs.retry, job_id)


def want_a_queued_job_after_all(world: World) -> Act:
    cancel_a_queued_job_that_others_follow(world)(world.database)
    return _writing(jobs.retry, _job(world, "queued"))


def want_a_running_job_after_all(world: World) -> Act:
    cancel_a_running_job(world)(world.database)
    return _writing(jobs.retry, _job(world, "running"))


def make_a_damaged_input_again(world: World) -> Act:
    stage = _begun(world, rounds=1)[0]
    digest = next(iter(stage.claim.inputs.values()))
    return _writing(rebuilding.rebuild_input, *stage.key, digest=digest, message="damaged", usage=Usage(exit_code=1))


def cancel_a_running_job(world: World) -> Act:
    return _writing(jobs.cancel, _begun(world, rounds=1)[0].claim.job_id)


def cancel_a_submission(world: World) -> Act:
    _begun(world, rounds=1, cores=(8, 14))
    return _writing(jobs.cancel_submission, 1)


def retry_a_failed_job(world: World) -> Act:
    world.fail(_begun(world, rounds=1)[0], FailureClass.UNSUPPORTED)
    return _writing(jobs.retry, _job(world, "failed"))


def retry_a_blocked_job(world: World) -> Act:
    world.fail(_begun(world, rounds=1)[0], FailureClass.UNSUPPORTED)
    return _writing(jobs.retry, _job(world, "blocked"))


def retry_a_cancelled_job(world: World) -> Act:
    _submit(world, cores=(8, 14))
    world.write(jobs.cancel, _job(world, "waiting"))
    return _writing(jobs.retry, _job(world, "cancelled"))


def pause_what_is_queued(world: World) -> Act:
    _submit(world)
    world.place(world.schedulers[0])
    return _writing(steering.pause, 1, by="ada")


def resume(world: World) -> Act:
    _begun(world, rounds=1)
    world.write(steering.pause, 1, by="ada")
    return _writing(steering.resume, 1)


def drain_what_is_queued(world: World) -> Act:
    _submit(world)
    world.place(world.schedulers[0])
    place = next(place for place in world.places if place.host_id == world.nodes[0].host_id)
    return _writing(steering.drain, place, by="ada", reason="why")


def undrain(world: World) -> Act:
    world.write(steering.drain, world.places[0], by="ada", reason="why")
    return _writing(steering.undrain, world.places[0])


def hand_back(world: World) -> Act:
    _begun(world, rounds=1)
    return _writing(steering.hand_back, world.places[0], reason="why")


# Schedulers.


def begin_to_lead(world: World) -> Act:
    return _writing(leadership.acquire, holder="one", lease_s=LEADER_LEASE_S)


def take_the_lead(world: World) -> Act:
    world.lead(world.schedulers[1])
    world.clock.now += LEADER_LEASE_S + 1
    return _writing(leadership.acquire, holder="one", lease_s=LEADER_LEASE_S)


def renew_the_lead(world: World) -> Act:
    world.lead(world.schedulers[0])
    return _writing(leadership.renew, holder="one", term=world.schedulers[0].term, lease_s=LEADER_LEASE_S)


def resign_the_lead(world: World) -> Act:
    world.lead(world.schedulers[0])
    return _writing(leadership.resign, holder="one", term=world.schedulers[0].term)


def a_round_that_admits_places_and_sends(world: World) -> Act:
    _submit(world)
    _submit(world, tag="b")
    return _round(world)


def a_round_that_finds_what_is_done(world: World) -> Act:
    _submit(world)
    for _ in range(4):
        world.begin_work(world.schedulers[0])
        world.end_work()
    _submit(world, owner="bob")
    return _round(world)


def a_round_that_finds_what_fails(world: World) -> Act:
    world.fail(_begun(world, rounds=1, followed=False)[0], FailureClass.UNSUPPORTED)
    _submit(world, owner="bob")
    return _round(world)


def a_round_that_lets_followers_follow(world: World) -> Act:
    _begun(world, rounds=1, followed=False)
    _submit(world, owner="bob")
    return _round(world)


def a_round_that_loses_attempts(world: World) -> Act:
    _begun(world, rounds=3, cores=(8, 14))
    world.clock.now += LEASE_S + 1
    for node in world.nodes:
        world.beat(node)
    return _round(world)


def a_round_that_returns_and_sends_again(world: World) -> Act:
    _submit(world)
    _submit(world, tag="b")
    world.place(world.schedulers[0])
    world.clock.now += LEASE_S
    for node in world.nodes[1:]:
        world.beat(node)
    return _round(world)


def admit_one(world: World) -> Act:
    _submit(world)
    return _writing(admission.admit, _job(world, "waiting"), action_key="key", parts={"a": 1}, term=None)


def a_round_that_expires_what_waits(world: World) -> Act:
    _submit(world)  # has no deadline, and is followed
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
    return _round(world)


def a_round_that_expires_what_is_queued(world: World) -> Act:
    world.submit(tag="a", cores=(8,), priority=0, owner="bob", limits=Limits(deadline_s=LEASE_S))
    world.place(world.schedulers[0])
    world.clock.now += LEASE_S
    for node in world.nodes:
        world.beat(node)
    return _round(world)


def _taken_for_good(take: Callable[..., Any], failure_class: FailureClass) -> Callable[[World], Act]:
    def operation(world: World) -> Act:
        stage = _begun(world, rounds=3)[0]
        for _ in range(POLICIES[failure_class].retries):
            stage.is_alive = False
            world.write(take, *stage.key, reason="test", term=None)
            world.confirm(stage)
            world.clock.now += LEASE_S
            world.begin_work(world.schedulers[0])
            again = (one for one in world.stages.values() if one.claim.job_id == stage.claim.job_id)
            stage = next(one for one in again if one.is_alive)
        return _writing(take, *stage.key, reason="test", term=None)

    return operation


def overrun(world: World) -> Act:
    return _writing(reaping.overrun, *_begun(world, rounds=3)[0].key, reason="test", term=None)


def lose_what_a_user_cancelled(world: World) -> Act:
    stage = _begun(world, rounds=1)[0]
    world.write(jobs.cancel, stage.claim.job_id)
    return _writing(reaping.lose, *stage.key, reason="silent", term=None)


def forget_what_was_sent(world: World) -> Act:
    _submit(world)
    world.broker.is_down = True
    world.place(world.schedulers[0])
    with world.database.read() as connection:
        ids = [message.id for message in outbox.take_outbox(connection, limit=9)]
    assert ids
    return _writing(outbox.delete_outbox, ids, term=None)


# Nodes.


def _message(world: World, *, rounds: int) -> tuple[tuple[int, int], int]:
    """A queued attempt and the node that it is for."""
    _submit(world)
    for _ in range(rounds):
        world.begin_work(world.schedulers[0])
        world.end_work()
    world.place(world.schedulers[0])
    message = world.broker.messages[0]
    node = next(node for node in world.nodes if node.queue == message.queue)
    return (message.job_id, message.attempt), node.node_id


def claim_a_slot(world: World) -> Act:
    key, node_id = _message(world, rounds=0)
    return _writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_cores(world: World) -> Act:
    key, node_id = _message(world, rounds=3)
    return _writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_where_no_room_is(world: World) -> Act:
    key, node_id = _message(world, rounds=3)
    for place in world.places:
        if place.device_id is not None:
            world.write(devices.set_health, place.device_id, health="quarantined", reason="test")
    return _writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def heartbeat(world: World) -> Act:
    stage = _begun(world, rounds=1)[0]
    return _writing(attempts.heartbeat, *stage.key, lease_s=LEASE_S, progress="works", fraction=0.5)


def succeed_with_children_and_followers(world: World) -> Act:
    stage = _begun(world, rounds=1)[0]
    artifact = world.shelf.publish(stage.claim)
    success = Success(
        job_id=stage.key[0], attempt=stage.key[1], artifact=artifact, figures={"x": 1}, usage=Usage(exit_code=0)
    )
    return _writing(attempts.succeed_all, [success])


def _failing(failure_class: FailureClass) -> Callable[[World], Act]:
    def operation(world: World) -> Act:
        stage = _begun(world, rounds=1)[0]
        usage = Usage(exit_code=1)
        return _writing(attempts.fail, *stage.key, failure_class=failure_class, message="why", usage=usage)

    return operation


def interrupt(world: World) -> Act:
    return _writing(attempts.interrupt, *_begun(world, rounds=3)[0].key, reason="the node stops")


def stop_what_a_user_cancelled(world: World) -> Act:
    stage = _begun(world, rounds=1, followed=False)[0]
    world.write(jobs.cancel, stage.claim.job_id)
    return _writing(attempts.cancel_attempt, *stage.key, usage=Usage(exit_code=-15))


def confirm_that_a_lost_attempt_is_gone(world: World) -> Act:
    stage = _begun(world, rounds=3)[0]
    world.write(reaping.lose, *stage.key, reason="silent", term=None)
    key = {"job_id": stage.key[0], "attempt": stage.key[1]}
    return _writing(leases.confirm_gone, host_id=stage.node.host_id, **key)


def register(world: World) -> Act:
    def act(database: Database) -> object:
        with database.write() as connection:
            named = {"num_cpus": 4, "ram_bytes": 2**34, "num_slots": 2, "toolchain": {"engine": "1"}}
            host_id = devices.register_host(connection, name="new", **named)
            serial = {"board_serial": "b", "pci_address": "0000:00:00.0", "sku": "ultra"}
            found = [DeviceRecord(qid=0, num_cores=16, dram_mb=1, simulated=True, **serial)]
            device_id = devices.register_devices(connection, host_id=host_id, found=found)[0]
            node = {"kind": "device", "queue": "device.new.0", "pid": 1}
            return devices.register_node(connection, host_id=host_id, device_id=device_id, **node)

    return act


def take_over_from_a_dead_node(world: World) -> Act:
    """One with a running, a lost and a queued attempt."""
    stage = _begun(world, rounds=3)[0]
    _submit(world, tag="b", cores=(8,))
    for _ in range(3):
        world.begin_work(world.schedulers[0])
    node = stage.node
    world.kill_stages(node)
    named = {"host_id": node.host_id, "device_id": node.device_id, "kind": node.kind, "queue": node.queue}
    node.node_id = world.write(devices.register_node, pid=2, **named)
    return lambda database: recovery.take_over(world.workplace(node, database))


def stop_a_node(world: World) -> Act:
    return _writing(devices.stop_node, world.nodes[0].node_id)


def set_health(world: World) -> Act:
    return _writing(devices.set_health, world.nodes[1].device_id, health="lost", reason="gone")


OPERATIONS: Mapping[str, Callable[[World], Act]] = {
    one.__name__: one
    for one in (
        submit,
        cancel_a_waiting_job,
        cancel_a_queued_job_that_others_follow,
        cancel_a_queued_job,
        cancel_a_ready_job,
        cancel_a_ready_job_that_others_follow,
        want_a_ready_job_after_all,
        want_a_queued_job_after_all,
        want_a_running_job_after_all,
        make_a_damaged_input_again,
        cancel_a_running_job,
        cancel_a_submission,
        retry_a_failed_job,
        retry_a_blocked_job,
        retry_a_cancelled_job,
        pause_what_is_queued,
        resume,
        drain_what_is_queued,
        undrain,
        hand_back,
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
        claim_a_slot,
        claim_cores,
        claim_where_no_room_is,
        heartbeat,
        succeed_with_children_and_followers,
        interrupt,
        stop_what_a_user_cancelled,
        confirm_that_a_lost_attempt_is_gone,
        register,
        take_over_from_a_dead_node,
        stop_a_node,
        set_health,
    )
} | {
    "lose_for_good": _taken_for_good(reaping.lose, FailureClass.WORKER_LOST),
    "overrun_for_good": _taken_for_good(reaping.overrun, FailureClass.TIMEOUT),
    "fail_and_try_again": _failing(FailureClass.INFRASTRUCTURE),
    "fail_for_good": _failing(FailureClass.BUG),
    "fail_as_anybody_would": _failing(FailureClass.UNSUPPORTED),
}
