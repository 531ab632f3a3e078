"""Many claimants at once, on real databases: no core and no slot is ever given twice, and nobody gets a part."""

from __future__ import annotations

import collections
import concurrent.futures
import threading

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import NoCapacity, StaleTransition
from farm.lifecycle import admission, attempts
from farm.models import core_leases, host_leases, jobs
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.records import Claim
from qeff_engine.spec import Stage
from tests import claimants

THREADS = 8


def independent(stage: Stage, *, num_jobs: int, num_cores: int) -> Plan:
    """Jobs without inputs."""
    planned = tuple(
        PlannedJob(
            plan_key=f"{stage}{number}",
            stage=stage,
            spec={"number": number},
            label=f"{stage} {number}",
            inputs={},
            num_cores=num_cores,
            num_devices=1 if num_cores else 0,
        )
        for number in range(num_jobs)
    )
    return Plan(jobs=planned, points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def claim_all_at_once(database: Database, ids: list[int], *, node_id: int) -> list[object]:
    """Claim jobs from many threads that start together; claims, and what was raised instead."""
    with database.write() as connection:
        for job_id in ids:
            admission.enqueue(connection, job_id, node_id=node_id, queue="q", reason="", term=None)
    barrier = threading.Barrier(THREADS)

    def work(own: list[int]) -> list[object]:
        found: list[object] = []
        barrier.wait()
        for job_id in own:
            try:
                with database.write() as connection:
                    found.append(attempts.claim(connection, job_id, 1, node_id=node_id, lease_s=60))
            except (NoCapacity, StaleTransition) as error:
                found.append(error)
        return found

    # Every job is claimed by two threads.
    shares = [[job_id for job_id in ids if job_id % THREADS in (n, (n + 1) % THREADS)] for n in range(THREADS)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return [one for found in pool.map(work, shares) for one in found]


@pytest.mark.parametrize("num_cores", [3, 5, 16])
def test_cores_are_taken_all_or_none_and_never_twice(each_database: Database, num_cores: int) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database, independent(Stage.RUN, num_jobs=16, num_cores=num_cores))
    ids = testing.admit_all(each_database)
    found = claim_all_at_once(each_database, ids, node_id=host.device_nodes[0])
    claims = [one for one in found if isinstance(one, Claim)]
    assert len(claims) == 16 // num_cores
    with each_database.read() as connection:
        held = connection.execute(sa.select(core_leases.c.job_id, core_leases.c.core)).all()
    assert collections.Counter(row.job_id for row in held) == {one.job_id: num_cores for one in claims}
    assert {(one.job_id, core) for one in claims for core in one.grants[0].cores} == {tuple(row) for row in held}


def test_processes_take_cores_all_or_none_and_never_twice(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database, independent(Stage.RUN, num_jobs=12, num_cores=5))
    ids = testing.admit_all(each_database)
    with each_database.write() as connection:
        for job_id in ids:
            admission.enqueue(connection, job_id, node_id=host.device_nodes[0], queue="q", reason="", term=None)
    found = claimants.claim_in_processes(each_database, [(job_id, host.device_nodes[0]) for job_id in ids], number=3)
    got = [(job_id, core) for job_id, cores in found.items() for _, core in cores]
    assert sorted(core for _, core in got) == list(range(15))  # three claims of five; the sixteenth core fits nobody
    with each_database.read() as connection:
        held = connection.execute(sa.select(core_leases.c.job_id, core_leases.c.core)).all()
    assert sorted(got) == sorted(tuple(row) for row in held)


def test_slots_are_never_taken_twice(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=3)
    testing.add_submission(each_database, independent(Stage.COMPILE, num_jobs=16, num_cores=0))
    ids = testing.admit_all(each_database)
    found = claim_all_at_once(each_database, ids, node_id=host.host_node)
    assert sum(isinstance(one, Claim) for one in found) == 3
    with each_database.read() as connection:
        assert sorted(connection.scalars(sa.select(host_leases.c.slot))) == [0, 1, 2]


def test_the_same_work_admitted_from_many_threads_is_live_once(each_database: Database) -> None:
    for _ in range(THREADS):
        testing.add_submission(each_database, independent(Stage.RESOLVE, num_jobs=1, num_cores=0))
    with each_database.read() as connection:
        ids = [job.id for job in admission.admissible(connection, limit=99)]
    barrier = threading.Barrier(THREADS)

    def work(job_id: int) -> None:
        barrier.wait()
        with each_database.write() as connection:
            admission.admit(connection, job_id, action_key="same", parts={}, term=None)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, ids))
    with each_database.read() as connection:
        rows = connection.execute(sa.select(jobs.c.id, jobs.c.state, jobs.c.leader_id)).all()
    ready = [row.id for row in rows if row.state == "ready"]
    assert len(ready) == 1
    assert {row.leader_id for row in rows if row.state == "waiting"} == set(ready)


def test_parents_that_finish_at_once_count_their_child_down_once_each(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=THREADS)
    parents = tuple(
        PlannedJob(plan_key=f"p{n}", stage=Stage.COMPILE, spec={"n": n}, label=f"p{n}", inputs={})
        for n in range(THREADS)
    )
    child = PlannedJob(
        plan_key="c", stage=Stage.RUN, spec={}, label="c", inputs={job.plan_key: job.plan_key for job in parents}
    )
    plan = Plan(jobs=(*parents, child), points=(PlannedPoint(axes={}, plan_keys=("c",)),))
    testing.add_submission(each_database, plan)
    claims = [
        testing.claim(each_database, job_id, node_id=host.host_node) for job_id in testing.admit_all(each_database)
    ]
    barrier = threading.Barrier(THREADS)

    def work(claim: Claim) -> None:
        barrier.wait()
        testing.finish(each_database, claim)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, claims))
    with each_database.read() as connection:
        assert connection.scalar(sa.select(jobs.c.remaining).where(jobs.c.label == "c")) == 0
        assert [job.stage for job in admission.admissible(connection, limit=9)] == ["run"]
