"""Pausing submissions and draining devices and hosts, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database
from farm.errors import NoCapacity, NotFound, Refused
from farm.lifecycle import admission, claims, holds, jobs, steering
from farm.lifecycle.steering import Halt, Place
from farm.models import attempts
from farm.models import jobs as job_rows
from farm.scheduling import candidates, capacity
from farm.states import JobState
from farm.views import inventory, queries

KEY = "the same work"
AGE_S = 60.0


def submit(database: Database, *, tag: str = "") -> tuple[int, int]:
    """A submission and its first job."""
    submission_id = testing.add_submission(database, testing.small_plan(tag=tag))
    with database.read() as connection:
        found = queries.job_list(connection, submission_id=submission_id, stage="resolve")
    return submission_id, found[0].id


def job(database: Database, job_id: int) -> queries.Job:
    with database.read() as connection:
        return queries.job(connection, job_id)


def ready(database: Database) -> set[int]:
    with database.read() as connection:
        return {found.id for found in candidates.ready(connection, limit=100)}


def pause(database: Database, submission_id: int) -> Halt:
    with database.write() as connection:
        return steering.pause(connection, submission_id, by="ann")


def resume(database: Database, submission_id: int) -> bool:
    with database.write() as connection:
        return steering.resume(connection, submission_id)


def follower_of(database: Database) -> tuple[int, int, int, int]:
    """A leader and a follower of two submissions: submission and job of each."""
    first, leader = submit(database, tag="a")
    second, follower = submit(database, tag="b")
    testing.admit_all(database, keys={leader: KEY, follower: KEY})
    assert job(database, follower).leader_id == leader
    return first, leader, second, follower


def test_nothing_of_a_paused_submission_is_placed_until_it_is_resumed(each_database: Database) -> None:
    submission_id, first = submit(each_database)
    other, second = submit(each_database, tag="other")
    testing.admit_all(each_database)
    assert pause(each_database, submission_id) == Halt(already=False, running=(), given_back=())
    assert ready(each_database) == {second}
    assert resume(each_database, submission_id)
    assert not resume(each_database, other)
    assert ready(each_database) == {first, second}


def test_what_becomes_ready_while_its_submission_is_paused_is_held(each_database: Database) -> None:
    submission_id, first = submit(each_database)
    pause(each_database, submission_id)
    testing.admit_all(each_database)
    assert job(each_database, first).state is JobState.READY
    assert ready(each_database) == set()


def test_running_work_of_a_paused_submission_goes_on_and_its_children_are_held(each_database: Database) -> None:
    host = testing.add_host(each_database)
    submission_id, first = submit(each_database)
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, first, node_id=host.host_node)
    assert pause(each_database, submission_id).running == (first,)
    testing.finish(each_database, claimed)
    assert job(each_database, first).state is JobState.SUCCEEDED
    assert len(testing.admit_all(each_database)) == 1
    assert ready(each_database) == set()


def test_what_was_on_its_way_to_a_node_comes_back(each_database: Database) -> None:
    host = testing.add_host(each_database)
    submission_id, first = submit(each_database)
    testing.admit_all(each_database)
    with each_database.write() as connection:
        admission.enqueue(connection, first, node_id=host.host_node, queue="q", reason="test", term=None)
    assert pause(each_database, submission_id).given_back == (first,)
    assert (job(each_database, first).state, job(each_database, first).reason) == (JobState.READY, "paused by ann")


def test_a_claim_that_a_pause_was_faster_than_is_refused(each_database: Database) -> None:
    host = testing.add_host(each_database)
    submission_id, first = submit(each_database)
    testing.admit_all(each_database)
    pause(each_database, submission_id)
    with each_database.write() as connection:  # the scheduler decided before
        number = admission.enqueue(connection, first, node_id=host.host_node, queue="q", reason="test", term=None)
    with pytest.raises(NoCapacity, match="paused"), each_database.write() as connection:
        claims.claim(connection, first, number, node_id=host.host_node, lease_s=60.0)


def test_a_paused_leader_of_others_work_is_not_held(each_database: Database) -> None:
    first, leader, second, _ = follower_of(each_database)
    pause(each_database, first)
    assert ready(each_database) == {leader}
    pause(each_database, second)
    assert ready(each_database) == set()
    resume(each_database, second)
    assert ready(each_database) == {leader}


def test_a_held_job_is_let_go_by_a_follower_and_held_again_without_it(each_database: Database) -> None:
    first, leader = submit(each_database, tag="a")
    pause(each_database, first)
    _, follower = submit(each_database, tag="b")
    testing.admit_all(each_database, keys={leader: KEY, follower: KEY})
    assert ready(each_database) == {leader}
    with each_database.write() as connection:
        jobs.cancel(connection, follower)
    assert ready(each_database) == set()


def test_held_jobs_are_cancelled_at_once_and_stay_held_when_tried_again(each_database: Database) -> None:
    submission_id, first = submit(each_database)
    testing.admit_all(each_database)
    pause(each_database, submission_id)
    with each_database.write() as connection:
        jobs.cancel(connection, first)
    assert job(each_database, first).state is JobState.CANCELLED
    resume(each_database, submission_id)
    with each_database.write() as connection:
        jobs.retry(connection, first)
    pause(each_database, submission_id)
    with each_database.write() as connection:
        jobs.cancel(connection, first)
        jobs.retry(connection, first)
    testing.admit_all(each_database)
    assert (job(each_database, first).state, ready(each_database)) == (JobState.READY, set())


def test_what_works_on_for_paused_followers_alone_is_held(each_database: Database) -> None:
    _, leader, second, _ = follower_of(each_database)
    with each_database.write() as connection:
        connection.execute(sa.update(job_rows).where(job_rows.c.id == leader).values(unsubscribed_at=1.0))
        holds.settle(connection, [leader])
    assert ready(each_database) == {leader}
    pause(each_database, second)
    assert ready(each_database) == set()


def test_only_what_has_not_ended_can_be_paused(each_database: Database) -> None:
    submission_id, _ = submit(each_database)
    assert not pause(each_database, submission_id).already
    assert pause(each_database, submission_id).already
    with each_database.write() as connection:
        jobs.cancel_submission(connection, submission_id)
    with pytest.raises(Refused, match="has ended"):
        pause(each_database, submission_id)
    for act in (pause, resume):
        with pytest.raises(NotFound, match="no submission s99"):
            act(each_database, 99)


def place(database: Database, name: str) -> Place:
    with database.read() as connection:
        return next(found for found in steering.places(connection) if found.name == name)


def drain(database: Database, name: str) -> Halt:
    with database.write() as connection:
        return steering.drain(connection, place(database, name), by="ann", reason="firmware")


def free(database: Database) -> tuple[list[str], list[str]]:
    """Hosts and devices that get work."""
    with database.read() as connection:
        found = capacity.capacity(connection, max_age_s=AGE_S)
    return [host.host for host in found.hosts], [device.name for device in found.devices]


def run_job(database: Database, host: testing.FakeHost, *, tag: str = "") -> int:
    """A run of 8 cores that is ready."""
    submission_id, _ = submit(database, tag=tag)
    while testing.admit_all(database):
        with database.read() as connection:
            found = queries.job_list(connection, submission_id=submission_id, states=["ready"])
        for one in found:
            if not one.num_cores:
                testing.finish(database, testing.claim(database, one.id, node_id=host.host_node))
    with database.read() as connection:
        runs = queries.job_list(connection, submission_id=submission_id, states=["ready"])
    return next(one.id for one in runs if one.num_cores == 8)


def test_a_drained_device_gets_nothing_new_and_what_runs_there_goes_on(each_database: Database) -> None:
    host = testing.add_host(each_database)
    running, queued, late = (run_job(each_database, host, tag=tag) for tag in ("a", "b", "c"))
    node = host.device_nodes[0]
    claimed = testing.claim(each_database, running, node_id=node)
    with each_database.write() as connection:
        admission.enqueue(connection, queued, node_id=node, queue="q", reason="test", term=None)
    assert drain(each_database, "ultra/0") == Halt(already=False, running=(running,), given_back=(queued,))
    assert job(each_database, queued).reason == "ultra/0 is drained by ann: firmware"
    assert free(each_database) == (["box"], ["standard/1"])
    with each_database.write() as connection:
        number = admission.enqueue(connection, late, node_id=node, queue="q", reason="test", term=None)
    with pytest.raises(NoCapacity, match="drained"), each_database.write() as connection:
        claims.claim(connection, late, number, node_id=node, lease_s=60.0)
    testing.finish(each_database, claimed)
    assert drain(each_database, "ultra/0").already
    with each_database.write() as connection:
        assert steering.undrain(connection, place(each_database, "ultra/0"))
        assert not steering.undrain(connection, place(each_database, "ultra/0"))
    assert free(each_database) == (["box"], ["ultra/0", "standard/1"])


def test_a_drained_host_keeps_all_of_its_devices_from_work(each_database: Database) -> None:
    box, rack = testing.add_host(each_database), testing.add_host(each_database, name="rack", cores=(16,))
    _, first = submit(each_database)
    testing.admit_all(each_database)
    testing.claim(each_database, first, node_id=box.host_node)
    assert drain(each_database, "box").running == (first,)
    assert free(each_database) == (["rack"], ["ultra/0"])
    with each_database.read() as connection:
        found = {device.host: device.drained for device in inventory.device_list(connection, heard_since=0.0)}
    assert found["rack"] is None
    assert found["box"] is not None
    assert (found["box"].by, found["box"].reason, found["box"].host) == ("ann", "firmware", True)
    other = run_job(each_database, rack, tag="other")
    with each_database.write() as connection:
        number = admission.enqueue(connection, other, node_id=box.device_nodes[0], queue="q", reason="test", term=None)
    with pytest.raises(NoCapacity, match="drained"), each_database.write() as connection:
        claims.claim(connection, other, number, node_id=box.device_nodes[0], lease_s=60.0)


def test_a_drain_outlives_the_nodes(each_database: Database) -> None:
    testing.add_host(each_database)
    drain(each_database, "ultra/0")
    testing.add_host(each_database)
    assert "ultra/0" not in free(each_database)[1]


def test_what_runs_at_a_place_is_asked_to_be_handed_back(each_database: Database) -> None:
    host = testing.add_host(each_database)
    here, elsewhere = run_job(each_database, host, tag="a"), run_job(each_database, host, tag="b")
    first = testing.claim(each_database, here, node_id=host.device_nodes[0])
    second = testing.claim(each_database, elsewhere, node_id=host.device_nodes[1])
    with each_database.write() as connection:
        assert steering.hand_back(connection, place(each_database, "ultra/0"), reason="now") == (here,)
    with each_database.write() as connection:
        jobs.cancel(connection, elsewhere)
    keys = [(claimed.job_id, claimed.attempt) for claimed in (first, second)]
    with each_database.read() as connection:
        found = steering.wishes(connection, keys)
        assert found[keys[0]] == steering.Wish(cancel=False, reason="now")
        assert found[keys[1]].cancel
        assert steering.wishes(connection, [(here, 2)]) == {}
        assert connection.scalar(sa.select(sa.func.count()).where(attempts.c.hand_back.is_not(None))) == 1


def test_devices_of_one_name_are_told_apart_by_their_host(each_database: Database) -> None:
    for name in ("box", "rack"):
        testing.add_host(each_database, name=name, cores=(16,))
    testing.add_host(each_database, name="third", cores=(14,))
    with each_database.read() as connection:
        names = [found.name for found in steering.places(connection)]
    assert names == ["box", "rack", "third", "box/ultra/0", "rack/ultra/0", "standard/0"]
