"""A program that spans two devices: its cores on both are taken and given back together."""

from __future__ import annotations

from pathlib import Path

import psutil
import sqlalchemy as sa

from farm.models import core_leases, devices
from farm.states import JobState
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, kill, running_farm


def held(farm: RunningFarm) -> dict[int, tuple[int, int, int]]:
    """By number of a device, what is held of it: job, attempt, how many cores."""
    of = (devices.c.qid, core_leases.c.job_id, core_leases.c.attempt)
    query = sa.select(*of, sa.func.count()).join(devices, devices.c.id == core_leases.c.device_id).group_by(*of)
    with farm.database.read() as connection:
        found = connection.execute(query).all()
    assert len({row.qid for row in found}) == len(found), f"two attempts hold cores of one device: {found}"
    return {row[0]: (row[1], row[2], row[3]) for row in found}


def test_its_cores_on_both_are_held_freed_when_its_node_dies_and_taken_again(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with running_farm(tmp_path / "home") as farm:
        submission_id = farm.submit(small_sweep.plan("x", cores=(8,), prompt=f"wait={flag}", num_devices=2))
        farm.wait_until(flag.exists, what="the run")
        run = farm.jobs(submission_id)[-1].id
        assert held(farm) == {0: (run, 1, 8), 1: (run, 1, 8)}
        # Enough cores are left on the larger device only: this one gets both or none.
        rival = farm.submit(small_sweep.plan("y", cores=(8,), prompt="rival", num_devices=2))
        farm.wait_until(lambda: farm.states(rival)[JobState.SUCCEEDED] == 3, what="all of the other but its run")
        first = flag.read_text()
        kill(farm.node_of(run))
        farm.wait_until(lambda: flag.read_text() not in ("", first), what="the run again")
        assert not psutil.pid_exists(int(first))
        assert held(farm) == {0: (run, 2, 8), 1: (run, 2, 8)}
        assert farm.jobs(rival)[-1].state is JobState.READY
        flag.unlink()
        farm.wait_for_end(submission_id)
        farm.wait_for_end(rival)
        farm.assert_sound(submission_id)
        farm.assert_sound(rival)
        tried = [attempt.state for attempt in farm.attempts(submission_id) if attempt.job_id == run]
        assert tried == ["lost", "succeeded"]
        assert farm.starts()[run] == 2
