"""Placement: what holds for any jobs and any rooms, and the order that people can rely on."""

from __future__ import annotations

import dataclasses
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from farm import placement
from farm.placement import Placement, Policy
from farm.records import Capacity, DeviceCapacity, HostCapacity, ReadyJob

ULTRA = DeviceCapacity(node_id=1, device_id=1, queue="device.h.0", name="ultra/0", num_cores=16, free_cores=16)
STANDARD = DeviceCapacity(node_id=2, device_id=2, queue="device.h.1", name="standard/1", num_cores=14, free_cores=14)
HOST = HostCapacity(node_id=3, host_id=1, queue="host.h", host="h", num_slots=2, free_slots=2)


PATIENCE_S = Policy().patience_s


def place(ready: list[ReadyJob], *, capacity: Capacity, now: float, policy: Policy | None = None) -> Placement:
    return placement.place(ready, capacity=capacity, shares={}, now=now, policy=policy or Policy())


def job(number: int, num_cores: int = 0, *, priority: int = 0, ready_at: float = 0.0, num_devices: int = 1) -> ReadyJob:
    return ReadyJob(
        id=number,
        stage="run" if num_cores else "compile",
        priority=priority,
        ready_at=ready_at,
        chain=0,
        num_cores=num_cores,
        num_devices=num_devices,
    )


def having(*found: DeviceCapacity | HostCapacity) -> Capacity:
    return Capacity(
        hosts=tuple(one for one in found if isinstance(one, HostCapacity)),
        devices=tuple(one for one in found if isinstance(one, DeviceCapacity)),
    )


def where(decided: Placement) -> dict[int, int]:
    return {assignment.job_id: assignment.node_id for assignment in decided.assignments}


def reasons(decided: Placement) -> dict[int, str]:
    return {job_id: found.reason for job_id, found in decided.waiting.items()}


@st.composite
def capacities(draw: st.DrawFn) -> Capacity:
    found: list[DeviceCapacity | HostCapacity] = []
    for number in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            total = draw(st.sampled_from([14, 16]))
            free = draw(st.integers(0, total))
            device = dataclasses.replace(ULTRA, node_id=number, device_id=number, queue=f"d{number}")
            found.append(dataclasses.replace(device, num_cores=total, free_cores=free))
        else:
            free = draw(st.integers(0, 4))
            found.append(dataclasses.replace(HOST, node_id=number, queue=f"h{number}", num_slots=4, free_slots=free))
    return having(*found)


jobs = st.lists(
    st.builds(
        ReadyJob,
        id=st.integers(1, 10_000),
        stage=st.just("run"),
        priority=st.integers(-2, 2),
        ready_at=st.floats(0, 100),
        chain=st.just(0),
        num_cores=st.sampled_from([0, 0, 1, 4, 8, 14, 16, 20]),
        num_devices=st.sampled_from([1, 1, 1, 2]),
    ),
    max_size=20,
    unique_by=lambda job: job.id,
)
times = st.floats(0, 1000)


def left_after(decided: Placement, ready: list[ReadyJob], capacity: Capacity) -> tuple[dict[int, int], dict[int, int]]:
    """Free cores by device, and free slots by host node, once everything is where it was put."""
    cores = {one.device_id: one.free_cores for one in capacity.devices}
    slots = {one.node_id: one.free_slots for one in capacity.hosts}
    by_id = {job.id: job for job in ready}
    for assignment in decided.assignments:
        for device_id in assignment.device_ids:
            cores[device_id] -= by_id[assignment.job_id].num_cores
        if not assignment.device_ids:
            slots[assignment.node_id] -= 1
    return cores, slots


@given(jobs, capacities(), times)
def test_nothing_is_promised_twice(ready: list[ReadyJob], capacity: Capacity, now: float) -> None:
    decided = place(ready, capacity=capacity, now=now)
    cores, slots = left_after(decided, ready, capacity)
    assert min([*cores.values(), *slots.values()], default=0) >= 0
    by_id = {job.id: job for job in ready}
    for assignment in decided.assignments:
        placed = by_id[assignment.job_id]
        assert len(set(assignment.device_ids)) == (placed.num_devices if placed.num_cores else 0)


@given(jobs, capacities(), times)
def test_every_job_is_placed_once_or_has_a_reason(ready: list[ReadyJob], capacity: Capacity, now: float) -> None:
    decided = place(ready, capacity=capacity, now=now)
    placed = [assignment.job_id for assignment in decided.assignments]
    assert len(placed) == len(set(placed))
    assert set(placed) | set(decided.waiting) == {job.id for job in ready}
    assert not set(placed) & set(decided.waiting)
    assert all(found.reason for found in decided.waiting.values())
    assert all(assignment.reason for assignment in decided.assignments)


@given(jobs, capacities(), times, st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(
    ready: list[ReadyJob], capacity: Capacity, now: float, random: Random
) -> None:
    shuffled = list(ready)
    random.shuffle(shuffled)
    turned = Capacity(hosts=capacity.hosts[::-1], devices=capacity.devices[::-1])
    assert place(ready, capacity=capacity, now=now) == place(shuffled, capacity=turned, now=now)


@given(jobs, capacities(), times)
def test_of_two_equal_jobs_the_older_one_is_never_passed(ready: list[ReadyJob], capacity: Capacity, now: float) -> None:
    placed = set(where(place(ready, capacity=capacity, now=now)))
    for first in ready:
        for second in ready:
            alike = dataclasses.replace(second, id=first.id, ready_at=first.ready_at) == first
            if alike and (first.ready_at, first.id) < (second.ready_at, second.id):
                assert not (second.id in placed and first.id not in placed)


@given(jobs, capacities(), times)
def test_nothing_that_fits_is_left_out_while_nothing_is_kept(
    ready: list[ReadyJob], capacity: Capacity, now: float
) -> None:
    decided = place(ready, capacity=capacity, now=now, policy=Policy(max_reservations=0))
    cores, slots = left_after(decided, ready, capacity)
    by_id = {job.id: job for job in ready}
    for job_id in decided.waiting:
        left_out = by_id[job_id]
        if not left_out.num_cores:
            assert max(slots.values(), default=0) == 0
        else:
            assert sum(free >= left_out.num_cores for free in cores.values()) < left_out.num_devices


def test_priority_goes_before_age_and_age_before_number() -> None:
    ready = [job(1, 16, ready_at=5), job(2, 16, ready_at=3), job(3, 16, priority=1, ready_at=9), job(4, 16, ready_at=3)]
    order = []
    while ready:
        (chosen,) = where(place(ready, capacity=having(ULTRA), now=0))
        order.append(chosen)
        ready = [waiting for waiting in ready if waiting.id != chosen]
    assert order == [3, 2, 4, 1]


def test_a_job_goes_where_the_fewest_cores_stay_free() -> None:
    assert where(place([job(1, 14), job(2, 16)], capacity=having(ULTRA, STANDARD), now=0)) == {1: 2, 2: 1}
    half = dataclasses.replace(ULTRA, free_cores=8)
    assert where(place([job(1, 8)], capacity=having(half, STANDARD), now=0)) == {1: 1}


def test_host_slots_are_spread_over_hosts() -> None:
    other = dataclasses.replace(HOST, node_id=4, queue="host.other", host="other", free_slots=1)
    assert where(place([job(1), job(2), job(3)], capacity=having(HOST, other), now=0)) == {1: 3, 2: 3, 3: 4}


def test_without_predicted_ends_a_wide_job_is_passed_only_until_its_patience_ends() -> None:
    busy = dataclasses.replace(ULTRA, free_cores=8)
    wide, narrow = job(1, 16, ready_at=0), job(2, 8, ready_at=1)
    assert where(place([wide, narrow], capacity=having(busy), now=PATIENCE_S - 1)) == {2: 1}
    late = place([wide, narrow], capacity=having(busy), now=PATIENCE_S)
    assert where(late) == {}
    assert reasons(late)[1] == (
        "It needs 16 free cores on one device. ultra/0 takes no other job until there is room for it."
    )
    assert where(place([wide, narrow], capacity=having(busy, STANDARD), now=PATIENCE_S)) == {2: 2}


def test_reasons_say_what_is_missing() -> None:
    capacity = having(dataclasses.replace(ULTRA, free_cores=2), dataclasses.replace(HOST, free_slots=0))
    ready = [job(1, 20), job(2, 8), job(3), job(4, 8, num_devices=2)]
    assert reasons(place(ready, capacity=capacity, now=0)) == {
        1: "It needs 20 cores, and the widest device that it may use has 16.",
        2: "It needs 8 free cores on one device.",
        3: "It needs a host slot, and none is free.",
        4: "It spans 2 devices of one host, and no host has more than 1 that fit.",
    }
    assert reasons(place([job(1), job(2, 8)], capacity=having(), now=0)) == {
        1: "No host node is alive.",
        2: "No device node is alive.",
    }


def test_an_assignment_says_what_stays_free() -> None:
    decided = place([job(1, 8), job(2)], capacity=having(ULTRA, HOST), now=0)
    assert [assignment.reason for assignment in decided.assignments] == [
        "8 cores of ultra/0, which leaves 8 free",
        "a slot of h",
    ]
