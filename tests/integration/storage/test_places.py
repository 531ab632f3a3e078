"""What a claim takes of several devices, of a whole device, and of a host's memory: all of it or nothing."""

from __future__ import annotations

import collections
import itertools

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import NoCapacity
from farm.lifecycle import admission, attempts, leases, reaping
from farm.models import attempts as tries
from farm.models import core_leases, devices, host_leases, hosts, jobs
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.records import Claim
from qeff_engine.spec import Stage
from tests import claimants
from tests.proof import invariants


def runs(*, num_jobs: int, num_cores: int, num_devices: int = 1) -> Plan:
    """Runs without inputs."""
    planned = tuple(
        PlannedJob(
            plan_key=f"run{number}of{num_cores}on{num_devices}",
            stage=Stage.RUN,
            spec={"number": number, "cores": num_cores, "devices": num_devices},
            label=f"run {number}",
            inputs={},
            num_cores=num_cores,
            num_devices=num_devices,
        )
        for number in range(num_jobs)
    )
    return Plan(jobs=planned, points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def compiles(number: int) -> Plan:
    """Compiles without inputs."""
    planned = tuple(
        PlannedJob(plan_key=f"compile{n}", stage=Stage.COMPILE, spec={"n": n}, label=f"compile {n}", inputs={})
        for n in range(number)
    )
    return Plan(jobs=planned, points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def ready_jobs(database: Database, plan: Plan, **columns: object) -> list[int]:
    """The ids of a plan's jobs, all of them ready, with these columns."""
    testing.add_submission(database, plan)
    ids = testing.admit_all(database)
    if columns:
        with database.write() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(**columns))
    return ids


def held(database: Database) -> dict[int, list[tuple[int, int]]]:
    """Device and core of all core leases, by job."""
    found: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    with database.read() as connection:
        query = sa.select(core_leases.c.job_id, core_leases.c.device_id, core_leases.c.core).order_by(*core_leases.c)
        for row in connection.execute(query):
            found[row.job_id].append((row.device_id, row.core))
    return found


def enqueue(database: Database, job_id: int, *, node_id: int, device_ids: tuple[int, ...] = ()) -> None:
    with database.write() as connection:
        admission.enqueue(connection, job_id, node_id=node_id, queue="q", reason="", term=None, device_ids=device_ids)


def claim_again(database: Database, job_id: int, *, node_id: int) -> Claim:
    """Claim what has been queued since it found no room."""
    with database.write() as connection:
        return attempts.claim(connection, job_id, 1, node_id=node_id, lease_s=60.0)


def test_processes_take_pairs_of_devices_all_or_none_without_waiting_for_each_other(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16, 14))
    ids = ready_jobs(each_database, runs(num_jobs=18, num_cores=5, num_devices=2))
    nodes = dict(zip(host.device_ids, host.device_nodes, strict=True))
    pairs = list(itertools.islice(itertools.cycle(itertools.permutations(host.device_ids, 2)), len(ids)))
    for job_id, pair in zip(ids, pairs, strict=True):
        enqueue(each_database, job_id, node_id=nodes[pair[0]], device_ids=pair)
    wanted = [(job_id, nodes[pair[0]]) for job_id, pair in zip(ids, pairs, strict=True)]
    got = claimants.claim_in_processes(each_database, wanted, number=3)
    assert got
    for job_id, cores in got.items():
        counted = collections.Counter(device_id for device_id, _ in cores)
        assert counted == dict.fromkeys(pairs[ids.index(job_id)], 5)
    assert {job_id: sorted(cores) for job_id, cores in got.items()} == held(each_database)
    free = {
        device: number - sum(d == device for cores in got.values() for d, _ in cores)
        for device, number in zip(host.device_ids, (16, 16, 14), strict=True)
    }
    assert sum(number >= 5 for number in free.values()) < 2, "two devices had room, and a job was refused"
    invariants.check(each_database)


def test_the_cores_of_all_devices_drain_and_come_back_together(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    (job_id,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=12, num_devices=2))
    lost = testing.claim(
        each_database, job_id, node_id=host.device_nodes[1], device_ids=host.device_ids[::-1], lease_s=-1
    )
    assert [(grant.qid, len(grant.cores)) for grant in lost.grants] == [(1, 12), (0, 12)]
    with each_database.write() as connection:
        reaping.lose(connection, job_id, lost.attempt, reason="silent", term=None)
    with each_database.read() as connection:
        assert collections.Counter(connection.scalars(sa.select(core_leases.c.state))) == {"draining": 24}
        assert leases.draining(connection, host_id=host.host_id) == [(job_id, 1)]
        placed_on = connection.scalar(sa.select(tries.c.placed_on))
    assert [(place["qid"], place["cores"]) for place in placed_on] == [(1, list(range(12))), (0, list(range(12)))]
    with each_database.write() as connection:
        attempts.confirm_gone(connection, host_id=host.host_id, job_id=job_id, attempt=lost.attempt)
    assert held(each_database) == {}


def test_a_claim_of_two_devices_takes_nothing_when_one_of_them_has_too_few_cores(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    first, second = ready_jobs(each_database, runs(num_jobs=2, num_cores=9, num_devices=2))
    testing.claim(each_database, first, node_id=host.device_nodes[0], device_ids=host.device_ids)
    with pytest.raises(NoCapacity, match="Device 1 has 7 cores free, 9 are needed"):
        testing.claim(each_database, second, node_id=host.device_nodes[1], device_ids=host.device_ids[::-1])
    assert list(held(each_database)) == [first]


def test_devices_of_two_hosts_are_refused(each_database: Database) -> None:
    here, there = testing.add_host(each_database, name="a"), testing.add_host(each_database, name="b")
    (job_id,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=8, num_devices=2))
    with pytest.raises(NoCapacity, match="is not one of the node's host"):
        testing.claim(
            each_database,
            job_id,
            node_id=here.device_nodes[0],
            device_ids=(here.device_ids[0], there.device_ids[0]),
        )


def test_a_node_whose_number_is_another_device_now_takes_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    (job_id,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=8))
    with pytest.raises(NoCapacity, match="not those of the node"):
        testing.claim(each_database, job_id, node_id=host.device_nodes[0], device_ids=host.device_ids[1:])


@pytest.mark.parametrize("table", [devices, hosts])
def test_a_drained_place_gives_nothing(each_database: Database, table: sa.Table) -> None:
    host = testing.add_host(each_database)
    with each_database.write() as connection:
        connection.execute(sa.update(table).values(drained="new fans"))
    (job_id,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=8) if table is devices else compiles(1))
    with pytest.raises(NoCapacity, match="is drained"):
        testing.claim(each_database, job_id, node_id=host.device_nodes[0] if table is devices else host.host_node)


def test_an_exclusive_run_has_its_device_alone(each_database: Database) -> None:
    host = testing.add_host(each_database)
    plain, alone = ready_jobs(each_database, runs(num_jobs=2, num_cores=4))
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == alone).values(exclusive=True))
    claimed = testing.claim(each_database, plain, node_id=host.device_nodes[0])
    with pytest.raises(NoCapacity, match=f"Device 0 is not empty: j{plain}"):
        testing.claim(each_database, alone, node_id=host.device_nodes[0])
    testing.finish(each_database, claimed)
    (grant,) = claim_again(each_database, alone, node_id=host.device_nodes[0]).grants
    assert len(grant.cores) == 16
    (late,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=1))
    with pytest.raises(NoCapacity, match="Device 0 has 0 cores free"):
        testing.claim(each_database, late, node_id=host.device_nodes[0])
    invariants.check(each_database)


def test_processes_never_reserve_more_memory_than_a_host_has(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=8)  # 16 GiB, of which 14.4 may be reserved
    ids = ready_jobs(each_database, compiles(9), ram_bytes=4 << 30)
    for job_id in ids:
        enqueue(each_database, job_id, node_id=host.host_node)
    claimants.claim_in_processes(each_database, [(job_id, host.host_node) for job_id in ids], number=3)
    with each_database.read() as connection:
        assert list(connection.scalars(sa.select(host_leases.c.ram_bytes))) == [4 << 30] * 3
        assert set(connection.scalars(sa.select(tries.c.ram_bytes))) == {4 << 30}
    invariants.check(each_database)


def ram_held(database: Database) -> int:
    """Memory that attempts have which hold cores or slots, each once."""
    with database.read() as connection:
        slots = connection.execute(sa.select(host_leases.c.job_id, host_leases.c.attempt)).all()
        cores = connection.execute(sa.select(core_leases.c.job_id, core_leases.c.attempt)).all()
        known = {
            (row.job_id, row.number): row.ram_bytes
            for row in connection.execute(sa.select(tries.c.job_id, tries.c.number, tries.c.ram_bytes))
        }
    return sum(known[row.job_id, row.attempt] for row in {*slots, *cores})


def test_runs_and_compiles_claimed_at_once_never_reserve_more_memory_than_their_host_has(
    each_database: Database,
) -> None:
    host = testing.add_host(each_database, cores=(16, 16), num_slots=8)  # 14.4 GiB may be reserved
    nodes = dict(zip(host.device_ids, host.device_nodes, strict=True))
    stages = ready_jobs(each_database, compiles(6), ram_bytes=3 << 30)
    narrow = ready_jobs(each_database, runs(num_jobs=6, num_cores=2), ram_bytes=3 << 30)
    wide = ready_jobs(each_database, runs(num_jobs=4, num_cores=2, num_devices=2), ram_bytes=3 << 30)
    wanted = [(job_id, (), host.host_node) for job_id in stages]
    for jobs_of_kind, places in (
        (narrow, [(device_id,) for device_id in host.device_ids]),
        (wide, [host.device_ids, host.device_ids[::-1]]),
    ):
        wanted += [
            (job_id, places[number % 2], nodes[places[number % 2][0]]) for number, job_id in enumerate(jobs_of_kind)
        ]
    wanted.sort(key=lambda one: one[0] % 5)  # the kinds mixed
    for job_id, place, node_id in wanted:
        enqueue(each_database, job_id, node_id=node_id, device_ids=place)
    claimants.claim_in_processes(each_database, [(job_id, node_id) for job_id, _, node_id in wanted], number=3)
    assert ram_held(each_database) == 12 << 30, "four have room, whichever they are"
    invariants.check(each_database)


def test_a_run_of_two_devices_has_its_memory_once_until_its_host_says_that_it_is_gone(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    wide, narrow, unknown = (
        ready_jobs(each_database, runs(num_jobs=1, num_cores=4, num_devices=2), ram_bytes=10 << 30)[0],
        ready_jobs(each_database, runs(num_jobs=1, num_cores=5), ram_bytes=5 << 30)[0],
        ready_jobs(each_database, runs(num_jobs=1, num_cores=6))[0],
    )
    lost = testing.claim(each_database, wide, node_id=host.device_nodes[0], device_ids=host.device_ids, lease_s=-1)
    assert (lost.ram_bytes, ram_held(each_database)) == (10 << 30, 10 << 30)
    with pytest.raises(NoCapacity, match="4505 MiB of memory left for stages and runs, 5120 MiB are needed"):
        testing.claim(each_database, narrow, node_id=host.device_nodes[1])
    assert list(held(each_database)) == [wide], "cores were taken without memory"
    assert testing.claim(each_database, unknown, node_id=host.device_nodes[1]).ram_bytes == 0
    with each_database.write() as connection:
        reaping.lose(connection, wide, lost.attempt, reason="silent", term=None)
    assert ram_held(each_database) == 10 << 30, "its processes may still be there"
    with each_database.write() as connection:
        attempts.confirm_gone(connection, host_id=host.host_id, job_id=wide, attempt=lost.attempt)
    assert claim_again(each_database, narrow, node_id=host.device_nodes[1]).ram_bytes == 5 << 30
    invariants.check(each_database)


def test_a_compile_waits_for_the_memory_of_a_run_that_wants_more_than_there_is(each_database: Database) -> None:
    host = testing.add_host(each_database)
    (huge,) = ready_jobs(each_database, runs(num_jobs=1, num_cores=4), ram_bytes=1 << 40)
    (small,) = ready_jobs(each_database, compiles(1), ram_bytes=1 << 30)
    claimed = testing.claim(each_database, huge, node_id=host.device_nodes[0])
    assert claimed.ram_bytes == leases.ram_budget(1 << 34)
    with pytest.raises(NoCapacity, match="has 0 MiB of memory left for stages and runs"):
        testing.claim(each_database, small, node_id=host.host_node)
    testing.finish(each_database, claimed)
    assert claim_again(each_database, small, node_id=host.host_node).job_id == small


def test_a_stage_that_wants_more_memory_than_the_host_has_runs_alone(each_database: Database) -> None:
    host = testing.add_host(each_database)
    huge, small = ready_jobs(each_database, compiles(2), ram_bytes=1 << 40)
    claimed = testing.claim(each_database, huge, node_id=host.host_node)
    with each_database.read() as connection:
        assert connection.scalar(sa.select(host_leases.c.ram_bytes)) == leases.ram_budget(1 << 34)
    with pytest.raises(NoCapacity, match="has 0 MiB of memory left for stages"):
        testing.claim(each_database, small, node_id=host.host_node)
    testing.finish(each_database, claimed)
    assert claim_again(each_database, small, node_id=host.host_node).job_id == small


def test_stages_of_unknown_appetite_fill_all_slots(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=3)
    for job_id in ready_jobs(each_database, compiles(3)):
        testing.claim(each_database, job_id, node_id=host.host_node)
    with each_database.read() as connection:
        reserved = list(connection.scalars(sa.select(host_leases.c.ram_bytes)))
    assert reserved == [leases.ram_of_slot(ram_bytes=1 << 34, num_slots=3)] * 3
