"""What holds for any farm and any line of jobs: nothing is given twice, every condition is met, nobody starves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.placement import Placement, Policy
from farm.placement import place as place_jobs
from farm.placement.bins import Bin, bins_of
from farm.placement.line import Line
from farm.records import Assignment, Capacity, DeviceCapacity, Holding, HostCapacity, ReadyJob
from tests.unit.farm.placement.situations import (
    GIB,
    NOW,
    capacities,
    enough_on_one_host,
    lines,
    may_use,
    reversed_capacity,
    shares,
)

FARMS = st.sampled_from(
    [
        Policy(),
        Policy(max_reservations=1),
        Policy(prediction=False, patience_s=1.0),
        Policy(backfill=False, best_fit=False, burst_s=0.0),
        Policy(overdue_s=0.0),
    ]
)


def place(ready: list[ReadyJob], capacity: Capacity, policy: Policy, used: dict[str, float] | None = None) -> Placement:
    return place_jobs(ready, capacity=capacity, shares=used or {}, now=NOW, policy=policy)


def placed(
    decided: Placement, ready: list[ReadyJob], capacity: Capacity
) -> Iterator[tuple[Assignment, ReadyJob, list[DeviceCapacity]]]:
    """Each assignment with its job and its devices."""
    jobs = {job.id: job for job in ready}
    devices = {device.device_id: device for device in capacity.devices}
    for assignment in decided.assignments:
        yield assignment, jobs[assignment.job_id], [devices[number] for number in assignment.device_ids]


@settings(max_examples=60)
@given(lines, capacities(), shares, FARMS)
def test_cores_slots_and_memory_are_never_given_twice(
    ready: list[ReadyJob], capacity: Capacity, used: dict[str, float], policy: Policy
) -> None:
    cores = {device.device_id: device.free_cores for device in capacity.devices}
    slots = {host.node_id: host.free_slots for host in capacity.hosts}
    ram = {host.host_id: host.free_ram_bytes for host in capacity.hosts}
    total_ram = {host.host_id: host.ram_bytes for host in capacity.hosts}
    host_ids = {host.node_id: host.host_id for host in capacity.hosts}
    for assignment, job, devices in placed(place(ready, capacity, policy, used), ready, capacity):
        for device in devices:
            cores[device.device_id] -= device.num_cores if job.exclusive else job.num_cores
        if not devices:
            slots[assignment.node_id] -= 1
        host_id = devices[0].host_id if devices else host_ids[assignment.node_id]
        ram[host_id] -= assignment.ram_bytes or min(job.ram_bytes, total_ram[host_id])
    assert min([*cores.values(), *slots.values(), *ram.values()], default=0) >= 0


@settings(max_examples=60)
@given(lines, capacities(), shares, FARMS)
def test_every_job_is_placed_once_or_has_a_reason(
    ready: list[ReadyJob], capacity: Capacity, used: dict[str, float], policy: Policy
) -> None:
    decided = place(ready, capacity, policy, used)
    ids = [assignment.job_id for assignment in decided.assignments]
    assert sorted([*ids, *decided.waiting]) == sorted(job.id for job in ready)
    assert all(assignment.reason for assignment in decided.assignments)
    assert all(found.reason.endswith(".") for found in decided.waiting.values())
    assert all(found.forecast_at is None or found.forecast_at >= NOW for found in decided.waiting.values())


@settings(max_examples=60)
@given(lines, capacities(), shares, FARMS)
def test_a_job_gets_all_of_its_devices_on_one_host_and_each_meets_its_needs(
    ready: list[ReadyJob], capacity: Capacity, used: dict[str, float], policy: Policy
) -> None:
    for assignment, job, devices in placed(place(ready, capacity, policy, used), ready, capacity):
        assert len(set(assignment.device_ids)) == len(devices) == (job.num_devices if job.num_cores else 0)
        assert len({device.host_id for device in devices}) <= 1
        assert all(may_use(job, device) for device in devices)
        if devices:
            assert (assignment.node_id, assignment.queue) == (devices[0].node_id, devices[0].queue)


@settings(max_examples=60)
@given(lines, capacities(), FARMS)
def test_an_exclusive_job_has_its_devices_to_itself(ready: list[ReadyJob], capacity: Capacity, policy: Policy) -> None:
    decided = place(ready, capacity, policy)
    given_to: dict[int, list[int]] = {}
    for assignment in decided.assignments:
        for device_id in assignment.device_ids:
            given_to.setdefault(device_id, []).append(assignment.job_id)
    for _, job, devices in placed(decided, ready, capacity):
        if job.exclusive:
            assert all(device.free_cores == device.num_cores for device in devices)
            assert all(given_to[device.device_id] == [job.id] for device in devices)


@settings(max_examples=60)
@given(lines, capacities(), FARMS)
def test_a_device_that_failed_a_job_is_avoided_while_others_would_do(
    ready: list[ReadyJob], capacity: Capacity, policy: Policy
) -> None:
    for _, job, devices in placed(place(ready, capacity, policy), ready, capacity):
        others = [device for device in capacity.devices if device.device_id not in job.avoid and may_use(job, device)]
        if devices and enough_on_one_host(job, others):
            assert not {device.device_id for device in devices} & job.avoid


@settings(max_examples=60)
@given(lines, capacities(), shares, FARMS, st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(
    ready: list[ReadyJob], capacity: Capacity, used: dict[str, float], policy: Policy, random: Random
) -> None:
    shuffled = list(ready)
    random.shuffle(shuffled)
    assert place(ready, capacity, policy, used) == place(shuffled, reversed_capacity(capacity), policy, used)


def soonest(job: ReadyJob, bins: list[Bin]) -> float | None:
    """When the first device has room for a job of one device."""
    openings = [found.opening(found.total if job.exclusive else job.num_cores, 0, now=NOW) for found in bins]
    return min((one.at for one in openings if one is not None), default=None)


def without_room_for(num_cores: int, capacity: Capacity) -> Capacity:
    """The machines, one more device, and no device on which so many cores are free."""
    empty = DeviceCapacity(
        node_id=99, device_id=99, host_id=1, queue="device.099", name="device/99", num_cores=16, free_cores=16
    )
    devices = []
    for device in (*capacity.devices, empty):
        if device.free_cores >= num_cores:
            held = Holding(job_id=5000 + device.device_id, amount=device.free_cores - 8, ends_at=NOW + 800.0)
            devices.append(dataclasses.replace(device, free_cores=8, holdings=(*device.holdings, held)))
        else:
            devices.append(device)
    return dataclasses.replace(capacity, devices=tuple(devices))


@settings(max_examples=50)
@given(lines, capacities(), st.sampled_from([14, 16]), st.booleans())
def test_if_predictions_hold_backfill_never_delays_the_first_job_without_room(
    ready: list[ReadyJob], capacity: Capacity, num_cores: int, exclusive: bool
) -> None:
    first = ReadyJob(
        id=1000,
        stage="run",
        priority=10_000,  # so that it is the first
        ready_at=NOW,
        chain=0,
        num_cores=num_cores,
        num_devices=1,
        exclusive=exclusive,
    )
    capacity = without_room_for(14, capacity)
    before = [found for found in bins_of(capacity, now=NOW, predicted=True)[0] if found.total >= num_cores]
    expected = soonest(first, before)
    assert expected is not None
    assert expected > NOW
    decided = place([first, *ready], capacity, Policy(max_reservations=1))
    assert first.id in decided.waiting
    after = {found.device_id: found for found in bins_of(capacity, now=NOW, predicted=True)[0]}
    for _, job, devices in placed(decided, ready, capacity):
        until = NOW + (job.reserved_s if job.reserved_s is not None else 600.0)
        for device in devices:
            after[device.device_id].give(job.id, device.num_cores if job.exclusive else job.num_cores, 0, until=until)
    assert soonest(first, [found for found in after.values() if found.total >= num_cores]) == expected


POLICIES = st.builds(
    Policy,
    class_s=st.dictionaries(st.sampled_from(["sweep", "nightly", "interactive"]), st.floats(0, 1e5)),
    priority_s=st.floats(0, 1e4),
    age=st.floats(0.01, 10),
    share_s=st.floats(0, 1e5),
    chain=st.floats(0, 10),
    longest_chain_s=st.floats(0, 1e5),
    burst_s=st.sampled_from([0.0, 60.0, 3600.0]),
)


@given(POLICIES, lines, shares, st.integers(1, 500))
def test_who_comes_later_than_all_head_starts_together_passes_nobody(
    policy: Policy, ready: list[ReadyJob], used: dict[str, float], num_cores: int
) -> None:
    late_s = policy.head_start_s(priorities=4) * 1.001 + 1.0
    early = [dataclasses.replace(job, ready_at=0.0) for job in ready]
    late = [dataclasses.replace(job, id=job.id + 1000, ready_at=late_s) for job in ready]
    line = Line([*late, *early], shares=used, num_cores=num_cores, now=late_s, policy=policy)
    order = [job.id for job in line]
    assert sorted(order) == sorted(job.id for job in [*early, *late])
    assert all(number < 1000 for number in order[: len(early)])


@given(capacities(), st.integers(0, 5))
def test_a_place_that_is_emptied_has_more_of_what_is_wanted_in_each_round_and_then_enough(
    capacity: Capacity, seed: int
) -> None:
    # Narrow jobs stream in and every prediction is wrong: without a kept place the wide job would never start.
    random = Random(seed)
    wide = ReadyJob(id=1, stage="run", priority=9, ready_at=0.0, chain=0, num_cores=14, num_devices=1)
    capacity = without_room_for(14, capacity)
    rounds = 3 * sum(len(device.holdings) for device in capacity.devices) + 20 * len(capacity.devices) + 1
    number = 10_000
    for _ in range(rounds):
        narrow = []
        for _ in range(8):
            number += 1
            job = dataclasses.replace(wide, id=number, priority=0, num_cores=random.choice([1, 2, 4]), reserved_s=1.0)
            narrow.append(job)
        decided = place([wide, *narrow], capacity, Policy(overdue_s=0.0))
        if any(assignment.job_id == wide.id for assignment in decided.assignments):
            return
        capacity = _one_ends_on_each(_after(decided, {job.id: job for job in narrow}, capacity), random)
    raise AssertionError(f"the wide job has not started after {rounds} rounds")


def _after(decided: Placement, jobs: dict[int, ReadyJob], capacity: Capacity) -> Capacity:
    devices = {device.device_id: device for device in capacity.devices}
    for assignment in decided.assignments:
        for device_id in assignment.device_ids:
            device, cores = devices[device_id], jobs[assignment.job_id].num_cores
            held = Holding(job_id=assignment.job_id, amount=cores, ends_at=NOW + 1.0)
            devices[device_id] = dataclasses.replace(
                device, free_cores=device.free_cores - cores, holdings=(*device.holdings, held)
            )
    return dataclasses.replace(capacity, devices=tuple(devices.values()))


def _one_ends_on_each(capacity: Capacity, random: Random) -> Capacity:
    devices = []
    for device in capacity.devices:
        held = list(device.holdings)
        freed = held.pop(random.randrange(len(held))).amount if held else 0
        devices.append(dataclasses.replace(device, free_cores=device.free_cores + freed, holdings=tuple(held)))
    return dataclasses.replace(capacity, devices=tuple(devices))


def _job(number: int, stage: str, *, gib: int, priority: int = 0) -> ReadyJob:
    return ReadyJob(
        id=number,
        stage=stage,
        priority=priority,
        ready_at=0.0,
        chain=0,
        num_cores=1 if stage == "run" else 0,
        num_devices=1,
        ram_bytes=gib * GIB,
        reserved_s=1.0,
    )


@settings(max_examples=30)
@given(st.sampled_from(["run", "compile"]), st.sampled_from([["run"], ["compile"], ["run", "compile"]]), st.integers())
def test_memory_is_set_aside_for_a_large_job_of_either_kind_while_small_ones_of_either_stream_in(
    stage: str, streaming: list[str], seed: int
) -> None:
    # Every prediction is wrong: without memory that is kept, the large job would never start.
    random = Random(seed)
    running: dict[int, ReadyJob] = {}
    for number in range(60):
        small = [_job(100 * number + n, random.choice(streaming), gib=random.choice([2, 4, 9])) for n in range(2, 10)]
        line = [*small, _job(1, stage, gib=50, priority=9)] if number > 5 else small
        started = {one.job_id for one in place(line, _shared(running), Policy(overdue_s=0.0)).assignments}
        if 1 in started:
            return
        running |= {job.id: job for job in small if job.id in started}
        assert number > 5 or running
        for job_id in random.sample(sorted(running), min(1, len(running))):
            del running[job_id]
    raise AssertionError(f"the large job has not started beside {running}")


def _shared(running: dict[int, ReadyJob]) -> Capacity:
    """A host of 64 GiB and its device, and what runs there."""
    held = [Holding(job_id=job.id, amount=1, ends_at=NOW + 1.0) for job in running.values() if job.num_cores]
    reserved = tuple(
        Holding(job_id=job.id, amount=1 - job.num_cores, ram_bytes=job.ram_bytes, ends_at=NOW + 1.0)
        for job in running.values()
    )
    device = DeviceCapacity(
        node_id=2,
        device_id=2,
        host_id=1,
        queue="device.2",
        name="device/2",
        num_cores=32,
        free_cores=32 - len(held),
        holdings=tuple(held),
    )
    host = HostCapacity(
        node_id=1,
        host_id=1,
        queue="host.1",
        host="host1",
        num_slots=32,
        free_slots=32 - sum(one.amount for one in reserved),
        ram_bytes=64 * GIB,
        free_ram_bytes=64 * GIB - sum(one.ram_bytes for one in reserved),
        holdings=reserved,
    )
    return Capacity(hosts=(host,), devices=(device,))
