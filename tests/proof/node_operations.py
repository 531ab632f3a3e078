"""What nodes write to a farm's database, see :mod:`tests.proof.situations`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from farm import testing
from farm.db import Database
from farm.fleet import devices
from farm.lifecycle import attempts, jobs, leases, reaping, rebuilding
from farm.lifecycle.claims import claim_all
from farm.records import DeviceRecord, Success, Usage
from qeff_engine.errors import FailureClass
from tests.proof.situations import Act, begun, submit_sweep, writing
from tests.proof.sweeps import NARROW, WIDE
from tests.proof.world import LEASE_S, World
from workers import recovery


def _message(world: World, *, rounds: int, shape: str = NARROW) -> tuple[tuple[int, int], int]:
    """A queued attempt and the node that it is for."""
    submit_sweep(world, shape=shape)
    for _ in range(rounds):
        world.begin_work(world.schedulers[0])
        world.end_work()
    world.place(world.schedulers[0])
    message = world.broker.messages[0]
    node = next(node for node in world.nodes if node.queue == message.queue)
    return (message.job_id, message.attempt), node.node_id


def claim_a_slot(world: World) -> Act:
    key, node_id = _message(world, rounds=0)
    return writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_cores(world: World) -> Act:
    key, node_id = _message(world, rounds=3)
    return writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_cores_of_two_devices(world: World) -> Act:
    key, node_id = _message(world, rounds=3, shape=WIDE)
    return writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_where_one_of_two_devices_has_no_room(world: World) -> Act:
    key, node_id = _message(world, rounds=3, shape=WIDE)
    world.set_health(world.nodes[2].device_id, "quarantined")
    return writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def claim_where_no_room_is(world: World) -> Act:
    key, node_id = _message(world, rounds=3)
    for place in world.places:
        if place.device_id is not None:
            world.write(testing.set_health, place.device_id, health="quarantined", reason="test")
    return writing(claim_all, [key], node_id=node_id, lease_s=LEASE_S)


def heartbeat(world: World) -> Act:
    stage = begun(world, rounds=1)[0]
    return writing(attempts.heartbeat, *stage.key, lease_s=LEASE_S, progress="works", fraction=0.5)


def succeed_with_children_and_followers(world: World) -> Act:
    stage = begun(world, rounds=1)[0]
    artifact = world.shelf.publish(stage.claim)
    success = Success(
        job_id=stage.key[0], attempt=stage.key[1], artifact=artifact, figures={"x": 1}, usage=Usage(exit_code=0)
    )
    return writing(attempts.succeed_all, [success])


def _failing(failure_class: FailureClass) -> Callable[[World], Act]:
    def operation(world: World) -> Act:
        stage = begun(world, rounds=1)[0]
        usage = Usage(exit_code=1)
        return writing(attempts.fail, *stage.key, failure_class=failure_class, message="why", usage=usage)

    return operation


def make_a_damaged_input_again(world: World) -> Act:
    stage = begun(world, rounds=1)[0]
    digest = next(iter(stage.claim.inputs.values()))
    return writing(rebuilding.rebuild_input, *stage.key, digest=digest, message="damaged", usage=Usage(exit_code=1))


def interrupt(world: World) -> Act:
    return writing(attempts.interrupt, *begun(world, rounds=3)[0].key, reason="the node stops")


def stop_what_a_user_cancelled(world: World) -> Act:
    stage = begun(world, rounds=1, followed=False)[0]
    world.write(jobs.cancel, stage.claim.job_id)
    return writing(attempts.cancel_attempt, *stage.key, usage=Usage(exit_code=-15))


def confirm_that_a_lost_attempt_is_gone(world: World) -> Act:
    stage = begun(world, rounds=3, shape=WIDE)[0]
    assert len(stage.claim.grants) == 2
    world.write(reaping.lose, *stage.key, reason="silent", term=None)
    key = {"job_id": stage.key[0], "attempt": stage.key[1]}
    return writing(leases.confirm_gone, host_id=stage.node.host_id, **key)


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
    stage = begun(world, rounds=3)[0]
    submit_sweep(world, tag="b", cores=(8,))
    for _ in range(3):
        world.begin_work(world.schedulers[0])
    node = stage.node
    world.kill_stages(node)
    named = {"host_id": node.host_id, "device_id": node.device_id, "kind": node.kind, "queue": node.queue}
    node.node_id = world.write(devices.register_node, pid=2, **named)
    return lambda database: recovery.take_over(world.workplace(node, database))


def stop_a_node(world: World) -> Act:
    return writing(devices.stop_node, world.nodes[0].node_id)


def set_health(world: World) -> Act:
    return writing(testing.set_health, world.nodes[1].device_id, health="lost", reason="gone")


OPERATIONS: Mapping[str, Callable[[World], Act]] = {
    one.__name__: one
    for one in (
        claim_a_slot,
        claim_cores,
        claim_cores_of_two_devices,
        claim_where_one_of_two_devices_has_no_room,
        claim_where_no_room_is,
        heartbeat,
        succeed_with_children_and_followers,
        make_a_damaged_input_again,
        interrupt,
        stop_what_a_user_cancelled,
        confirm_that_a_lost_attempt_is_gone,
        register,
        take_over_from_a_dead_node,
        stop_a_node,
        set_health,
    )
} | {
    "fail_and_try_again": _failing(FailureClass.INFRASTRUCTURE),
    "fail_for_good": _failing(FailureClass.BUG),
    "fail_as_anybody_would": _failing(FailureClass.UNSUPPORTED),
}
