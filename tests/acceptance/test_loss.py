"""Loss of parts of a farm for a while, with real processes: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
import valkey

from farm import settings as farm_settings
from farm.models import attempts, leader, nodes
from farm.models import devices as device_rows
from farm.states import FINAL, JobState
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, running_farm

LEASE_S = 6.0


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    home = tmp_path_factory.mktemp("loss") / "home"
    with running_farm(home, lease_s=LEASE_S, heartbeat_s=0.3, device_check_s=0.5, quarantine_s=1.0) as found:
        yield found


def running_run(farm: RunningFarm, flag: Path) -> tuple[int, int]:
    """A submission whose run waits for the end of a file: its id, and the job's."""
    submission_id = farm.submit(small_sweep.plan(str(flag), cores=(8,), prompt=f"wait={flag}"))
    farm.wait_until(flag.exists, what="the run")
    return submission_id, farm.jobs(submission_id)[-1].id


def let_go(farm: RunningFarm, submission_id: int, flag: Path) -> None:
    """Let every attempt of the run end, also one that is yet to begin."""

    def ended() -> bool:
        flag.unlink(missing_ok=True)
        return all(job.state in FINAL for job in farm.jobs(submission_id))

    farm.wait_until(ended, what="the end of the run")


def attempt_states(farm: RunningFarm, job_id: int) -> list[tuple[str, str | None]]:
    """State and failure class of each attempt of a job."""
    with farm.database.read() as connection:
        columns = (attempts.c.state, attempts.c.failure_class)
        query = sa.select(*columns).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        return [tuple(row) for row in connection.execute(query)]


def test_a_node_that_was_frozen_past_its_lease_ends_its_stage_and_writes_nothing(
    farm: RunningFarm, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    submission_id, job_id = running_run(farm, flag)
    node, stage = farm.node_of(job_id), int(flag.read_text())
    os.kill(node, signal.SIGSTOP)
    try:
        farm.wait_until(lambda: len(attempt_states(farm, job_id)) == 2, what="another attempt")
        assert attempt_states(farm, job_id)[0] == ("lost", "worker_lost")
        assert psutil.pid_exists(stage)  # nobody could end it, so its cores drain
    finally:
        os.kill(node, signal.SIGCONT)
    farm.wait_until(lambda: not psutil.pid_exists(stage), what="the end of the stage")
    let_go(farm, submission_id, flag)
    farm.assert_sound(submission_id)
    assert [state for state, _ in attempt_states(farm, job_id)] == ["lost", "succeeded"]


def test_losing_every_key_of_the_broker_loses_nothing(farm: RunningFarm) -> None:
    submission_id = farm.submit(small_sweep.plan("sleep=0.2;flush", prompt="sleep=0.2;flush"))
    broker = valkey.Valkey(unix_socket_path=str(farm.settings.broker_socket))
    for done in (1, 3, 5):
        farm.wait_until(lambda done=done: farm.states(submission_id)[JobState.SUCCEEDED] >= done, what="progress")
        broker.flushall()
    broker.close()
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)


def test_a_database_that_is_held_for_longer_than_leases_last_costs_what_runs_and_not_what_is_done(
    farm: RunningFarm, tmp_path: Path
) -> None:
    flag, done = tmp_path / "flag", tmp_path / "done"
    submission_id, job_id = running_run(farm, flag)
    finished, finished_id = running_run(farm, done)
    stage = int(flag.read_text())
    other = sqlite3.connect(farm.settings.home / "farm.db", isolation_level=None, timeout=60)
    other.execute("BEGIN EXCLUSIVE")
    log = farm.settings.log_dir / "scheduler.log"
    before = log.stat().st_size
    try:
        done.unlink()
        farm.wait_until(
            lambda: "the database does not answer" in log.read_text()[before:], what="a scheduler that gave up waiting"
        )
        assert not psutil.pid_exists(stage), "a stage goes on whose lease its node could not renew"
    finally:
        other.execute("ROLLBACK")
        other.close()
    let_go(farm, submission_id, flag)
    farm.wait_for_end(finished)
    farm.assert_sound(submission_id)
    farm.assert_sound(finished)
    assert [state for state, _ in attempt_states(farm, job_id)] == ["lost", "succeeded"]
    assert attempt_states(farm, finished_id) == [("succeeded", None)]


def leader_row(farm: RunningFarm) -> tuple[str, int]:
    with farm.database.read() as connection:
        return tuple(connection.execute(sa.select(leader.c.holder, leader.c.term)).one())


def test_a_second_scheduler_takes_over_and_the_frozen_one_writes_nothing_when_it_wakes(farm: RunningFarm) -> None:
    environ = {**os.environ, **farm_settings.to_environ(farm.settings)}
    first = farm.children["scheduler"]
    _, term = leader_row(farm)
    with (
        (farm.settings.log_dir / "second.log").open("wb") as log,
        subprocess.Popen([sys.executable, "-m", "farm.scheduler"], env=environ, stderr=log) as second,
    ):
        try:
            submission_id = farm.submit(small_sweep.plan("sleep=0.1;lead", prompt="sleep=0.1;lead"))
            farm.wait_until(lambda: farm.states(submission_id)[JobState.SUCCEEDED] >= 1, what="progress")
            farm.freeze(first)
            farm.wait_until(lambda: leader_row(farm)[1] > term, what="another leader")
            assert f":{second.pid}:" in leader_row(farm)[0]
            farm.wait_until(lambda: farm.states(submission_id)[JobState.SUCCEEDED] >= 3, what="progress")
            os.kill(first, signal.SIGCONT)
            farm.wait_for_end(submission_id)
            farm.assert_sound(submission_id)
            assert leader_row(farm)[1] == term + 1
            said = (farm.settings.log_dir / "scheduler.log").read_text()
            assert "another scheduler leads" in said or f"Term {term} is over" in said
        finally:
            os.kill(first, signal.SIGCONT)
            second.terminate()
    farm.wait_until(lambda: leader_row(farm)[1] > term + 1, what="the first to lead again")


def test_a_device_that_vanishes_costs_a_device_lost_and_comes_back_under_another_number(
    farm: RunningFarm, tmp_path: Path
) -> None:
    listed = farm.settings.home / "sdk" / "devices.json"
    all_devices = json.loads(listed.read_text())["devices"]
    flag = tmp_path / "flag"
    submission_id, job_id = running_run(farm, flag)
    with farm.database.read() as connection:
        placed = connection.scalar(sa.select(attempts.c.placed_on).where(attempts.c.job_id == job_id))
    qid = placed[0]["qid"]
    listed.write_text(json.dumps({"devices": [device for device in all_devices if device["qid"] != qid]}))
    farm.wait_until(lambda: len(attempt_states(farm, job_id)) >= 2, what="another attempt, elsewhere")
    assert attempt_states(farm, job_id)[0] == ("failed", "device_lost")
    let_go(farm, submission_id, flag)
    farm.assert_sound(submission_id)
    mirrored = [{**device, "qid": len(all_devices) - 1 - device["qid"]} for device in all_devices]
    listed.write_text(json.dumps({"devices": mirrored}))

    def served() -> set[str]:
        with farm.database.read() as connection:
            columns = (nodes.c.queue, device_rows.c.qid, device_rows.c.health)
            alive = sa.select(*columns).join(device_rows, device_rows.c.id == nodes.c.device_id)
            return {
                str(row.qid)
                for row in connection.execute(alive.where(nodes.c.stopped_at.is_(None)))
                if row.queue.endswith(f".{row.qid}") and row.health == "ready"
            }

    farm.wait_until(lambda: served() == {"0", "1"}, what="nodes of both devices under their new numbers")
    again = farm.submit(small_sweep.plan("again", prompt="again"))
    farm.wait_for_end(again)
    farm.assert_sound(again)
