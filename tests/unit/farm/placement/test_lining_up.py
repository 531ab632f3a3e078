"""Short jobs in line beyond a host's free slots."""

from __future__ import annotations

import dataclasses

from farm import placement
from farm.placement import Placement, Policy
from farm.records import Capacity, Holding, HostCapacity, ReadyJob

NOW = 1000.0
HOST = HostCapacity(node_id=3, host_id=1, queue="host.h", host="h", num_slots=2, free_slots=0)


def short(number: int, *, seconds: float | None = 0.1) -> ReadyJob:
    return ReadyJob(
        id=number,
        stage="resolve",
        priority=0,
        ready_at=number,
        chain=0,
        num_cores=0,
        num_devices=0,
        expected_s=seconds,
        reserved_s=seconds,
    )


def busy(*, until: float | None, queued_s: float = 0.0) -> HostCapacity:
    holdings = tuple(Holding(job_id=number, amount=1, ends_at=until) for number in (91, 92))
    return dataclasses.replace(HOST, holdings=holdings, queued_s=queued_s)


def place(*ready: ReadyJob, host: HostCapacity) -> Placement:
    return placement.place(ready, capacity=Capacity(hosts=(host,), devices=()), shares={}, now=NOW, policy=Policy())


def lined_up(decided: Placement) -> list[int]:
    return [assignment.job_id for assignment in decided.assignments]


def test_short_jobs_line_up_behind_jobs_that_end_soon_for_half_a_second_of_work() -> None:
    decided = place(*(short(number) for number in range(1, 21)), host=busy(until=NOW + 0.05))
    # Two slots: each job of 0.1 s is 0.05 s of the line, and a line of more than 0.5 s takes no more.
    assert lined_up(decided) == list(range(1, 11))
    assert {one.reason for one in decided.assignments} == {"next in line for a slot of h"}
    assert set(decided.waiting) == set(range(11, 21))


def test_what_is_queued_already_counts() -> None:
    assert lined_up(place(short(1), host=busy(until=NOW, queued_s=0.4))) == [1]
    assert lined_up(place(short(1), host=busy(until=NOW, queued_s=0.6))) == []


def test_nothing_lines_up_behind_long_or_unknown_ends() -> None:
    assert lined_up(place(short(1), host=busy(until=NOW + 600))) == []
    assert lined_up(place(short(1), host=busy(until=None))) == []


def test_long_and_unknown_jobs_do_not_line_up_and_nobody_passes_them_in_line() -> None:
    host = busy(until=NOW)
    assert lined_up(place(short(1, seconds=60.0), host=host)) == []
    assert lined_up(place(short(1, seconds=None), host=host)) == []
    long = dataclasses.replace(short(1, seconds=60.0), priority=9)
    assert lined_up(place(long, short(2), host=host)) == []
