"""The sentences of placement, and the single decisions that they tell of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from farm.placement import Placement, Policy
from farm.placement import place as place_jobs
from farm.records import Capacity, DeviceCapacity, Holding, HostCapacity, ReadyJob, Waiting

GIB = 2**30
NOW = 1000.0


def device(number: int, *, cores: int = 16, held: tuple[Holding, ...] = (), **changes: Any) -> DeviceCapacity:
    free = cores - sum(one.amount for one in held)
    found = DeviceCapacity(
        node_id=number,
        device_id=number,
        host_id=1,
        host="box",
        queue=f"d{number}",
        name=f"ultra/{number}",
        sku="ultra",
        sdk="1.19.6",
        num_cores=cores,
        free_cores=free,
        holdings=held,
    )
    return dataclasses.replace(found, **changes)


def host(*, slots: int = 2, free: int = 2, ram: int = 64 * GIB, free_ram: int = 64 * GIB) -> HostCapacity:
    return HostCapacity(
        node_id=99,
        host_id=1,
        queue="host.box",
        host="box",
        num_slots=slots,
        free_slots=free,
        ram_bytes=ram,
        free_ram_bytes=free_ram,
    )


def run(number: int, cores: int = 8, **changes: Any) -> ReadyJob:
    found = ReadyJob(
        id=number,
        stage="run",
        priority=0,
        ready_at=float(number),
        chain=0,
        num_cores=cores,
        num_devices=1,
        expected_s=50.0,
        reserved_s=100.0,
    )
    return dataclasses.replace(found, **changes)


def compiled(number: int, **changes: Any) -> ReadyJob:
    return run(number, 0, stage="compile", **changes)


def place(*jobs: ReadyJob, on: tuple[DeviceCapacity | HostCapacity, ...], policy: Policy | None = None) -> Placement:
    capacity = Capacity(
        hosts=tuple(one for one in on if isinstance(one, HostCapacity)),
        devices=tuple(one for one in on if isinstance(one, DeviceCapacity)),
    )
    return place_jobs(jobs, capacity=capacity, shares={}, now=NOW, policy=policy or Policy(burst_s=0.0))


def held(job_id: int, amount: int, ends_at: float | None = NOW + 200) -> Holding:
    return Holding(job_id=job_id, amount=amount, ends_at=ends_at)


@pytest.mark.parametrize(
    ("job", "on", "reason"),
    [
        (run(1), (), "No device node is alive."),
        (compiled(1), (device(1),), "No host node is alive."),
        (run(1, 20), (device(1),), "It needs 20 cores, and the widest device that it may use has 16."),
        (
            run(1, needs={"sku": "standard"}),
            (device(1),),
            "No device that is alive is a standard; there is ultra.",
        ),
        (run(1, needs={"sdk": "1.2"}), (device(1),), "No device that is alive has SDK 1.2; there is 1.19.6."),
        (run(1, needs={"labels": ["fast"]}), (device(1),), "No device that is alive has the labels fast."),
        (run(1, needs={"host": "other"}), (device(1),), "No device that is alive is of host other; there is box."),
        (run(1, needs={"colour": "red"}), (device(1),), "It needs 'colour', expected one of sku, host, labels, sdk."),
        (
            run(1, num_devices=2),
            (device(1), device(2, host_id=2)),
            "It spans 2 devices of one host, and no host has more than 1 that fit.",
        ),
    ],
)
def test_what_no_waiting_helps_against(job: ReadyJob, on: tuple[DeviceCapacity, ...], reason: str) -> None:
    assert place(job, on=on).waiting == {1: Waiting(reason=reason)}


def test_the_first_job_without_room_knows_when_and_where_it_starts() -> None:
    busy = device(1, held=(held(7, 4), held(8, 4, NOW + 400), held(9, 4, NOW + 600)))
    found = place(run(1, 12), on=(busy,)).waiting[1]
    assert found.reason == "It needs 12 free cores on one device. ultra/1 is kept for it until j7 and j8 have ended."
    assert found.forecast_at == 1408  # 1400, and as coarse as 400 s away
    found = place(run(1, 16, exclusive=True), on=(busy,)).waiting[1]
    assert found.reason == "It needs an idle device to itself. ultra/1 is kept for it until j7, j8 and j9 have ended."


def test_others_start_on_a_kept_device_only_if_that_delays_nobody() -> None:
    busy = device(1, held=(held(7, 8),))
    wide = run(1, 14)
    fits_beside, too_long, too_wide = (
        run(2, 2, reserved_s=900.0),
        run(3, 2, reserved_s=900.0),
        run(4, 8, reserved_s=900.0),
    )
    short = run(5, 6, reserved_s=199.0)
    found = place(wide, fits_beside, too_long, too_wide, short, on=(busy,))
    assert [(one.job_id, one.reason) for one in found.assignments] == [
        (2, "2 cores of ultra/1, which leaves 6 free; j1 can still start in time"),
        (5, "6 cores of ultra/1, which leaves 0 free; j1 can still start in time"),
    ]
    barred = "ultra/1 has room, but is kept for j1, which is ahead of it and would have to wait longer."
    assert found.waiting[3].reason.startswith(barred)
    assert found.waiting[4].reason.startswith("It needs 8 free cores on one device.")


def test_without_backfill_nobody_passes() -> None:
    policy = Policy(backfill=False, burst_s=0.0)
    found = place(run(1, 16), run(2, 2), on=(device(1, held=(held(7, 8),)),), policy=policy)
    assert found.waiting[2].reason == "j1 is ahead of it and finds no room."


def test_an_overdue_job_has_a_device_emptied_for_it() -> None:
    policy = Policy(overdue_s=500.0, burst_s=0.0)
    found = place(run(1, 16), run(2, 2, reserved_s=1.0), on=(device(1, held=(held(7, 8),)),), policy=policy)
    assert found.assignments == ()
    assert found.waiting[1] == Waiting(
        reason="It needs 16 free cores on one device. ultra/1 takes no other job until there is room for it."
    )


def test_devices_of_a_run_that_spans_several_are_of_few_cards() -> None:
    boards = ("a", "b", "b", "c")
    devices = tuple(device(number, board=board) for number, board in enumerate(boards, start=1))
    (found,) = place(run(1, 8, num_devices=2), on=devices).assignments
    assert found.device_ids == (2, 3)
    assert found.reason == "8 cores each of ultra/2 and ultra/3"


def test_several_devices_are_kept_together_until_the_last_is_free() -> None:
    devices = (device(1), device(2, held=(held(7, 16),)), device(3, held=(held(8, 16, NOW + 900),)))
    found = place(run(1, 8, num_devices=2), run(2, 8, reserved_s=900.0), on=devices)
    assert found.waiting[1].reason == (
        "It needs 8 free cores on each of 2 devices of one host. "
        "ultra/1 and ultra/2 are kept for it until j7 has ended."
    )
    assert [one.device_ids for one in found.assignments] == [(1,)]  # eight cores of it are not needed then
    assert place(run(1, 16, num_devices=2), run(2, 8, reserved_s=900.0), on=devices).assignments == ()


def test_of_equal_devices_the_one_that_ran_the_model_lately_is_taken() -> None:
    devices = (device(1), device(2, warm=frozenset({"m"})), device(3, cores=14))
    (found,) = place(run(1, 8, model="m"), on=devices[:2]).assignments
    assert (found.device_ids, found.reason) == (
        (2,),
        "8 cores of ultra/2, which leaves 8 free; it has run this model lately",
    )
    (found,) = place(run(1, 8, model="m"), on=devices).assignments
    assert found.device_ids == (3,), "a better fit counts for more"


def test_compiles_never_reserve_more_memory_than_a_host_has() -> None:
    large, small = compiled(1, ram_bytes=50 * GIB), compiled(2, ram_bytes=20 * GIB)
    found = place(large, small, compiled(3, ram_bytes=10 * GIB, reserved_s=1e6), on=(host(slots=4, free=4),))
    assert [(one.job_id, one.ram_bytes, one.reason) for one in found.assignments] == [
        (1, 0, "a slot of box with 50.0 GiB of its memory"),
        (3, 0, "a slot of box with 10.0 GiB of its memory; j2 can still start in time"),
    ]
    assert found.waiting[2].reason == (
        "It needs 20.0 GiB of memory beside a host slot, and no host has both free. "
        "box is kept for it until j1 has ended."
    )


@pytest.mark.parametrize(
    ("job", "ram_bytes"),
    [
        (compiled(1), 32 * GIB),  # nobody knows: half of the host
        (dataclasses.replace(compiled(1), stage="export"), 16 * GIB),  # as much as each slot can have
        (compiled(1, ram_bytes=5 * GIB), 0),  # as predicted
    ],
)
def test_a_stage_of_unknown_appetite_reserves_a_guess(job: ReadyJob, ram_bytes: int) -> None:
    (found,) = place(job, on=(host(slots=4, free=4),)).assignments
    assert found.ram_bytes == ram_bytes


def test_a_job_that_wants_more_memory_than_any_host_has_runs_alone() -> None:
    job = compiled(1, ram_bytes=100 * GIB)
    assert len(place(job, on=(host(),)).assignments) == 1
    assert place(job, on=(host(free=1, free_ram=60 * GIB),)).assignments == ()


def test_a_run_takes_memory_of_its_host_once_and_only_as_predicted() -> None:
    devices = (device(1), device(2))
    wide, unknown = run(1, 8, num_devices=2, ram_bytes=40 * GIB), run(2, 4)
    found = place(wide, unknown, run(3, 4, ram_bytes=24 * GIB), compiled(4, ram_bytes=GIB), on=(*devices, host()))
    assert [(one.job_id, one.ram_bytes, one.reason) for one in found.assignments] == [
        (1, 0, "8 cores each of ultra/1 and ultra/2; 40.0 GiB of box's memory"),
        (2, 0, "4 cores of ultra/1, which leaves 4 free"),
        (3, 0, "4 cores of ultra/1, which leaves 0 free; 24.0 GiB of box's memory"),
    ]
    assert found.waiting[4].reason == (
        "It needs 1.0 GiB of memory beside a host slot, and no host has both free. "
        "box is kept for it until j1 and j3 have ended."
    )


def test_a_run_without_memory_has_it_kept_from_compiles() -> None:
    stage = Holding(job_id=7, amount=1, ram_bytes=40 * GIB, ends_at=NOW + 200)
    busy = dataclasses.replace(host(slots=4, free=3, free_ram=24 * GIB), holdings=(stage,))
    large = run(1, 8, ram_bytes=30 * GIB)
    short, fits, long = (
        compiled(2, ram_bytes=20 * GIB, reserved_s=150.0),
        compiled(3, ram_bytes=4 * GIB, reserved_s=900.0),
        compiled(4, ram_bytes=20 * GIB, reserved_s=900.0),
    )
    found = place(large, fits, long, short, on=(device(1), busy))
    assert found.waiting[1] == Waiting(
        reason=(
            "It needs 8 free cores on one device and 30.0 GiB of its host's memory, and no host has both free. "
            "ultra/1 is kept for it until j7 has ended."
        ),
        forecast_at=1200,
    )
    assert [(one.job_id, one.reason) for one in found.assignments] == [
        (2, "a slot of box with 20.0 GiB of its memory; j1 can still start in time"),
        (3, "a slot of box with 4.0 GiB of its memory; j1 can still start in time"),
    ]
    assert 4 in found.waiting


def test_a_compile_without_memory_has_it_kept_from_runs() -> None:
    other = Holding(job_id=7, amount=0, ram_bytes=40 * GIB, ends_at=NOW + 200)  # a run
    busy = dataclasses.replace(host(free_ram=24 * GIB), holdings=(other,))
    jobs = (compiled(1, ram_bytes=50 * GIB), run(2, 4, ram_bytes=20 * GIB, reserved_s=900.0), run(3, 4))
    found = place(*jobs, on=(device(1), busy))
    assert [one.job_id for one in found.assignments] == [3]
    assert found.waiting[1].forecast_at == 1200
    assert found.waiting[2].reason.endswith("ultra/1 is kept for it until j7 and j1 have ended.")
    without = place(*jobs[1:], on=(device(1), busy))
    assert [one.job_id for one in without.assignments] == [2, 3]


@pytest.mark.parametrize("first", [run(1, 8, ram_bytes=60 * GIB), compiled(1, ram_bytes=60 * GIB)])
def test_an_overdue_job_of_either_kind_has_memory_set_aside_from_both(first: ReadyJob) -> None:
    stage = Holding(job_id=7, amount=1, ram_bytes=20 * GIB, ends_at=NOW + 200)
    busy = dataclasses.replace(host(slots=4, free=3, free_ram=44 * GIB), holdings=(stage,))
    others = (run(2, 2, ram_bytes=1 * GIB, reserved_s=1.0), compiled(3, ram_bytes=1 * GIB, reserved_s=1.0))
    policy = Policy(overdue_s=0.0, burst_s=0.0)
    assert place(first, *others, on=(device(1), device(2), busy), policy=policy).assignments == ()
    free = dataclasses.replace(busy, free_ram_bytes=64 * GIB, holdings=())
    found = place(first, *others, on=(device(1), device(2), free), policy=policy)
    assert [one.job_id for one in found.assignments] == [1, 2, 3]


def test_a_run_that_wants_more_memory_than_any_host_has_gets_all_of_the_largest() -> None:
    small = dataclasses.replace(host(ram=32 * GIB, free_ram=32 * GIB), node_id=98, host_id=2, queue="host.b")
    on = (device(1), device(2, host_id=2), host(), small)
    found = place(run(1, 8, ram_bytes=100 * GIB), compiled(2, ram_bytes=33 * GIB), on=on)
    assert [one.device_ids for one in found.assignments] == [(1,)]
    assert 2 in found.waiting
    pair = (device(1), device(2, host_id=2), device(3, host_id=2), host(), small)
    (spanning,) = place(run(1, 8, num_devices=2, ram_bytes=100 * GIB), on=pair).assignments
    assert spanning.device_ids == (2, 3), "the largest host has one device only"


def test_memory_of_a_host_whose_own_node_is_silent_counts() -> None:
    other = Holding(job_id=7, amount=0, ram_bytes=54 * GIB, ends_at=NOW + 200)
    silent = dataclasses.replace(host(free_ram=10 * GIB), holdings=(other,))
    capacity = Capacity(hosts=(), devices=(device(1),), silent_hosts=(silent,))
    large, small = run(1, 8, ram_bytes=20 * GIB), run(2, 8, ram_bytes=5 * GIB)
    found = place_jobs((large, small), capacity=capacity, shares={}, now=NOW, policy=Policy(burst_s=0.0))
    assert [one.job_id for one in found.assignments] == [2]


def test_jobs_far_behind_are_told_that_their_forecast_is_rough() -> None:
    busy = device(1, held=(held(7, 16),))
    policy = Policy(max_reservations=1, burst_s=0.0)
    found = place(*(run(number, 16) for number in (1, 2, 3)), on=(busy,), policy=policy)
    rough = "It needs 16 free cores on one device. Those ahead of it are counted together, so the forecast is rough."
    assert found.waiting[3].reason == rough
    times = [found.waiting[number].forecast_at for number in (1, 2, 3)]
    assert times == [1200, 1264, 1312]  # 200 s of j7, then 50 s of each ahead


def test_an_owner_falls_back_with_each_job_that_he_is_given() -> None:
    jobs = [run(number, 4, owner="many", ready_at=0.0, expected_s=3600.0) for number in range(1, 9)]
    late = [run(number, 4, owner="few", ready_at=900.0, expected_s=3600.0) for number in (11, 12)]
    found = place(*jobs, *late, on=(device(1),))
    assert [one.job_id for one in found.assignments] == [1, 11, 2, 12]
