"""What must be true of a farm's tables at any time, whatever has happened."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from farm.db import Database
from farm.models import attempts, core_leases, cores, edges, events, host_leases, jobs
from farm.states import DONE, FINAL, TRANSITIONS, JobState


def check(database: Database) -> None:
    """Assert that jobs, attempts, leases and events agree with each other."""
    with database.read() as connection:
        rows = connection.execute(sa.select(jobs)).all()
        tries = connection.execute(sa.select(attempts)).all()
        held = connection.execute(sa.select(core_leases)).all()
        slots = connection.execute(sa.select(host_leases)).all()
        told = connection.execute(sa.select(events).order_by(events.c.id)).all()
        links = connection.execute(sa.select(edges)).all()
        counted = connection.execute(sa.select(cores.c.device_id, sa.func.count()).group_by(cores.c.device_id))
        num_cores = {row[0]: row[1] for row in counted}
    by_id = {row.id: row for row in rows}
    running = {(row.job_id, row.number) for row in tries if row.state == "running"}
    assert running == {(row.id, row.attempt) for row in rows if row.state == "running"}
    succeeded = collections.Counter(row.job_id for row in tries if row.state == "succeeded")
    assert succeeded == {row.id: 1 for row in rows if row.state == "succeeded"}
    _check_leases(by_id, running=running, held=held, slots=slots, num_cores=num_cores)
    _check_relations(by_id, links=links)
    _check_history(by_id, told=told)


def _check_leases(
    by_id: Mapping[int, Any], *, running: set[tuple[int, int]], held: Any, slots: Any, num_cores: Mapping[int, int]
) -> None:
    for device_id, number in collections.Counter(row.device_id for row in held).items():
        assert number <= num_cores[device_id]
    holders = {(row.job_id, row.attempt) for row in held if row.state == "held"}
    assert holders | {(row.job_id, row.attempt) for row in slots} == running
    for key, number in collections.Counter((row.job_id, row.attempt) for row in held).items():
        job = by_id[key[0]]
        wanted = job.num_cores * job.num_devices
        assert number == wanted or (job.exclusive and number > wanted)


def _check_relations(by_id: Mapping[int, Any], *, links: Any) -> None:
    inputs: dict[int, list[JobState]] = collections.defaultdict(list)
    for link in links:
        inputs[link.child_id].append(JobState(by_id[link.parent_id].state))
    for row in by_id.values():
        assert row.remaining == sum(state not in DONE for state in inputs[row.id]), row
        if row.leader_id is not None:
            leader = by_id[row.leader_id]
            assert leader.state in ("ready", "queued", "running"), row
            assert leader.priority >= row.priority, row
        if row.state == "waiting":
            assert not {"failed", "cancelled", "blocked"} & set(inputs[row.id]), row
        if row.cancel_requested:
            assert row.state in ("running", "cancelled"), row


def _check_history(by_id: Mapping[int, Any], *, told: Any) -> None:
    state: dict[int, str] = {}
    for event in told:
        if event.transition != "submit":
            assert state[event.job_id] == event.from_state
            assert (JobState(event.from_state), event.transition, JobState(event.to_state)) in TRANSITIONS
        state[event.job_id] = event.to_state
    assert state == {row.id: row.state for row in by_id.values()}
    assert all((row.finished_at is not None) == (JobState(row.state) in FINAL) for row in by_id.values())
