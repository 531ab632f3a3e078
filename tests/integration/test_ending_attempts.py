"""Ending a running stage with all that it started, whatever that did to get away: real processes, no broker."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm.lifecycle import jobs
from farm.models import attempts
from farm.states import JobState
from tests import small_sweep
from tests.integration.attempt_node import LIMIT_S, AttemptNode, attempt_node
from workers.groups import AttemptRecord, Group
from workers.steering import Steering

WAYS = ("flee=group:{}", "flee=session:{}", "flee=daemon:{}", "flee=clean:daemon:{}", "fork={}")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AttemptNode]:
    """Its leases are renewed so seldom that what a user asks comes by another way."""
    with attempt_node(tmp_path, heartbeat_s=20.0) as found:
        yield found


def stage(node: AttemptNode, *actions: str) -> int:
    """A resolve that does these things one after another."""
    return node.submit(small_sweep.plan(";".join(actions), cores=(8,)))[0]


def cancel(node: AttemptNode, job_id: int) -> None:
    with node.database.write() as connection:
        jobs.cancel(connection, job_id)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("way", WAYS)
def test_cancelling_reaches_what_left_the_stages_session(node: AttemptNode, tmp_path: Path, way: str) -> None:
    fled, flag = tmp_path / "fled", tmp_path / "flag"
    job_id = stage(node, way.format(fled), f"wait={flag}")
    with node.running(job_id, until=flag):
        pid = int(fled.read_text())
        assert alive(pid)
        cancel(node, job_id)
    assert node.job(job_id).state is JobState.CANCELLED
    assert not alive(pid)
    assert node.held() == (0, 0)
    assert node.leftovers() == []


@pytest.mark.parametrize(("end", "state"), [("exit=0", JobState.FAILED), ("nothing", JobState.SUCCEEDED)])
def test_a_stage_that_leaves_daemons_behind_ends_with_them(
    node: AttemptNode, tmp_path: Path, end: str, state: JobState
) -> None:
    fled, forked = tmp_path / "fled", tmp_path / "forked"
    job_id = stage(node, f"flee=daemon:{fled}", f"fork={forked}", end)
    assert node.run(job_id).state is state
    assert not alive(int(fled.read_text()))
    assert not alive(int(forked.read_text()))


def test_a_chain_of_processes_that_fork_and_exit_is_caught(node: AttemptNode, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    job_id = stage(node, "relay", f"wait={flag}")
    with node.running(job_id, until=flag):
        (record,) = AttemptRecord.read_all(node.workplace.records)
        cancel(node, job_id)
    assert node.job(job_id).state is JobState.CANCELLED
    assert record.group.members() == []


def test_a_killed_leader_takes_what_fled_along(node: AttemptNode, tmp_path: Path) -> None:
    fled, flag = tmp_path / "fled", tmp_path / "flag"
    job_id = stage(node, f"flee=daemon:{fled}", f"wait={flag}")
    with node.running(job_id, until=flag) as leader:
        os.kill(int(leader), signal.SIGKILL)
    assert node.job(job_id).state is JobState.READY
    assert not alive(int(fled.read_text()))


def test_a_stage_whose_leader_was_never_recorded_is_found_by_its_mark(node: AttemptNode, tmp_path: Path) -> None:
    fled, flag = tmp_path / "fled", tmp_path / "flag"
    job_id = stage(node, f"flee=daemon:{fled}", f"wait={flag}")
    with node.running(job_id, until=flag):
        (record,) = AttemptRecord.read_all(node.workplace.records)
        assert Group(mark=record.group.mark).kill()
    assert not alive(int(fled.read_text()))


def test_an_attempt_that_a_user_wants_handed_back_is_placed_again(node: AttemptNode, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    job_id = stage(node, f"wait={flag}")
    with node.running(job_id, until=flag), node.database.write() as connection:
        connection.execute(sa.update(attempts).where(attempts.c.job_id == job_id).values(hand_back="ada wants it"))
    job = node.job(job_id)
    assert (job.state, job.reason, job.failures) == (JobState.READY, "ada wants it", 0)
    flag.unlink()


def test_a_node_asks_once_for_all_its_attempts_and_not_at_all_when_it_has_none(node: AttemptNode) -> None:
    asked: list[str] = []
    sa.event.listen(node.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    steering = Steering(node.database, poll_s=LIMIT_S)
    with steering.attempt(1, 1), steering.attempt(2, 1):
        steering.look()
        assert sum("SELECT" in statement for statement in asked) == 1
    asked.clear()
    steering.look()
    assert asked == []
