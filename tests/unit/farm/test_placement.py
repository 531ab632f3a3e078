"""Placement: what holds for any jobs and any rooms, and the order that people can rely on."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from farm.placement import PATIENCE_S, Placement, ReadyJob, Room, place

ULTRA = Room(node_id=1, queue="device.h.0", name="ultra/0", of_device=True, total=16, free=16)
STANDARD = Room(node_id=2, queue="device.h.1", name="standard/1", of_device=True, total=14, free=14)
HOST = Room(node_id=3, queue="host.h", name="h", of_device=False, total=2, free=2)


def job(job_id: int, num_cores: int = 0, *, priority: int = 0, ready_at: float = 0.0, num_devices: int = 1) -> ReadyJob:
    return ReadyJob(job_id=job_id, priority=priority, ready_at=ready_at, num_cores=num_cores, num_devices=num_devices)


def where(placement: Placement) -> dict[int, int]:
    return {assignment.job_id: assignment.node_id for assignment in placement.assignments}


@st.composite
def rooms(draw: st.DrawFn) -> list[Room]:
    found = []
    for node_id in range(draw(st.integers(0, 5))):
        of_device = draw(st.booleans())
        total = draw(st.sampled_from([14, 16])) if of_device else draw(st.integers(1, 4))
        free = draw(st.integers(0, total))
        found.append(
            Room(node_id=node_id, queue=f"q{node_id}", name=f"n{node_id}", of_device=of_device, total=total, free=free)
        )
    return found


jobs = st.lists(
    st.builds(
        ReadyJob,
        job_id=st.integers(1, 10_000),
        priority=st.integers(-2, 2),
        ready_at=st.floats(0, 100),
        num_cores=st.sampled_from([0, 0, 1, 4, 8, 14, 16, 20]),
        num_devices=st.sampled_from([1, 1, 1, 2]),
    ),
    max_size=20,
    unique_by=lambda job: job.job_id,
)
times = st.floats(0, 1000)


@given(jobs, rooms(), times)
def test_no_room_is_promised_twice(ready: list[ReadyJob], given_rooms: list[Room], now: float) -> None:
    by_id = {job.job_id: job for job in ready}
    taken = dict.fromkeys((room.node_id for room in given_rooms), 0)
    kinds = {room.node_id: room.of_device for room in given_rooms}
    for assignment in place(ready, rooms=given_rooms, now=now).assignments:
        placed = by_id[assignment.job_id]
        taken[assignment.node_id] += placed.num_cores or 1
        assert kinds[assignment.node_id] == bool(placed.num_cores)
    assert all(taken[room.node_id] <= room.free for room in given_rooms)


@given(jobs, rooms(), times)
def test_every_job_is_placed_once_or_has_a_reason(ready: list[ReadyJob], given_rooms: list[Room], now: float) -> None:
    placement = place(ready, rooms=given_rooms, now=now)
    placed = [assignment.job_id for assignment in placement.assignments]
    assert len(placed) == len(set(placed))
    assert set(placed) | set(placement.waiting) == {job.job_id for job in ready}
    assert not set(placed) & set(placement.waiting)
    assert all(placement.waiting.values())
    assert all(assignment.reason for assignment in placement.assignments)


@given(jobs, rooms(), times, st.randoms(use_true_random=False))
def test_the_order_of_the_arguments_does_not_matter(
    ready: list[ReadyJob], given_rooms: list[Room], now: float, random: object
) -> None:
    shuffled_jobs, shuffled_rooms = list(ready), list(given_rooms)
    random.shuffle(shuffled_jobs)  # type: ignore[attr-defined]
    random.shuffle(shuffled_rooms)  # type: ignore[attr-defined]
    assert place(ready, rooms=given_rooms, now=now) == place(shuffled_jobs, rooms=shuffled_rooms, now=now)


@given(jobs, rooms(), times)
def test_of_two_equal_jobs_the_older_one_is_never_passed(
    ready: list[ReadyJob], given_rooms: list[Room], now: float
) -> None:
    placed = set(where(place(ready, rooms=given_rooms, now=now)))
    for first in ready:
        for second in ready:
            alike = dataclasses.replace(second, job_id=first.job_id, ready_at=first.ready_at) == first
            if alike and (first.ready_at, first.job_id) < (second.ready_at, second.job_id):
                assert not (second.job_id in placed and first.job_id not in placed)


@given(jobs, rooms(), times)
def test_nothing_that_fits_is_left_out_while_nothing_is_kept(
    ready: list[ReadyJob], given_rooms: list[Room], now: float
) -> None:
    placement = place(ready, rooms=given_rooms, now=now, patience_s=float("inf"))
    free = {room.node_id: room.free for room in given_rooms}
    by_id = {job.job_id: job for job in ready}
    for assignment in placement.assignments:
        free[assignment.node_id] -= by_id[assignment.job_id].num_cores or 1
    for job_id in placement.waiting:
        left_out = by_id[job_id]
        if left_out.num_devices == 1:
            for room in given_rooms:
                if room.of_device == bool(left_out.num_cores):
                    assert free[room.node_id] < (left_out.num_cores or 1)


def test_priority_goes_before_age_and_age_before_number() -> None:
    ready = [job(1, 16, ready_at=5), job(2, 16, ready_at=3), job(3, 16, priority=1, ready_at=9), job(4, 16, ready_at=3)]
    order = []
    while ready:
        (chosen,) = where(place(ready, rooms=[ULTRA], now=0))
        order.append(chosen)
        ready = [waiting for waiting in ready if waiting.job_id != chosen]
    assert order == [3, 2, 4, 1]


def test_a_job_goes_where_the_fewest_cores_stay_free() -> None:
    assert where(place([job(1, 14), job(2, 16)], rooms=[ULTRA, STANDARD], now=0)) == {1: 2, 2: 1}
    half = dataclasses.replace(ULTRA, free=8)
    assert where(place([job(1, 8)], rooms=[half, STANDARD], now=0)) == {1: 1}


def test_host_slots_are_spread_over_hosts() -> None:
    other = dataclasses.replace(HOST, node_id=4, queue="host.other", name="other", free=1)
    assert where(place([job(1), job(2), job(3)], rooms=[HOST, other], now=0)) == {1: 3, 2: 3, 3: 4}


def test_a_wide_job_is_passed_by_narrow_ones_only_until_its_patience_ends() -> None:
    busy = dataclasses.replace(ULTRA, free=8)
    wide, narrow = job(1, 16, ready_at=0), job(2, 8, ready_at=1)
    assert where(place([wide, narrow], rooms=[busy], now=PATIENCE_S - 1)) == {2: 1}
    late = place([wide, narrow], rooms=[busy], now=PATIENCE_S)
    assert where(late) == {}
    assert late.waiting == {
        1: "It needs 16 free cores: ultra/0 has 8.",
        2: "ultra/0 is kept for j1, which has waited longer.",
    }
    assert where(place([wide, narrow], rooms=[busy, STANDARD], now=PATIENCE_S)) == {2: 2}


def test_reasons_say_what_is_missing() -> None:
    rooms_now = [dataclasses.replace(ULTRA, free=2), dataclasses.replace(HOST, free=0)]
    ready = [job(1, 20), job(2, 8), job(3), job(4, 8, num_devices=2)]
    assert place(ready, rooms=rooms_now, now=0).waiting == {
        1: "It needs 20 cores, and the widest device that is alive has 16.",
        2: "It needs 8 free cores: ultra/0 has 2.",
        3: "All host slots are taken.",
        4: "It spans 2 devices, and a node has one.",
    }
    assert place([job(1), job(2, 8)], rooms=[], now=0).waiting == {
        1: "No host node is alive.",
        2: "No device node is alive.",
    }


def test_an_assignment_says_what_stays_free() -> None:
    placement = place([job(1, 8), job(2)], rooms=[ULTRA, HOST], now=0)
    assert [assignment.reason for assignment in placement.assignments] == [
        "8 cores of ultra/0, which leaves 8 free",
        "a slot of h",
    ]
