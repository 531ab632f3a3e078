"""The clock of a farm's host is set by an hour while it works; with PostgreSQL the database keeps its own time."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm.models import attempts
from farm.views import queries
from tests import moved_clock, small_sweep
from tests.acceptance.running_farm import RunningFarm, processes_of, running_farm
from tests.databases import empty_postgresql

LEASE_S = 6.0
HOUR_S = 3600.0


class Clock:
    """The clock of all processes of the farm, but not of this one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.move(0.0)

    def move(self, seconds: float) -> None:
        """Let it be wrong by so much from now on."""
        draft = self.file.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("QEFF_TEST_CLOCK", str(clock.file))
    monkeypatch.setenv("PYTHONPATH", str(Path(moved_clock.__file__).parent))
    return clock


@pytest.fixture(params=["sqlite", "postgresql"])
def farm(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[RunningFarm]:
    changes = {"lease_s": LEASE_S, "heartbeat_s": 0.3}
    if request.param == "postgresql":
        changes["database_url"] = empty_postgresql(request.getfixturevalue("postgresql_url"))
    with running_farm(tmp_path / "home", **changes) as found:
        yield found


def lease_until(farm: RunningFarm, job_id: int) -> float:
    query = sa.select(attempts.c.lease_until).where(attempts.c.job_id == job_id)
    with farm.database.read() as connection:
        return float(connection.execute(query).scalar_one())


def renewed(farm: RunningFarm, job_id: int) -> Callable[[], bool]:
    """Whether the lease of a running job was renewed since now."""
    before = lease_until(farm, job_id)
    return lambda: lease_until(farm, job_id) != before


def command(farm: RunningFarm, *words: str) -> dict[str, object]:
    """What a command says on the host whose clock is wrong."""
    environ = {**os.environ, **farm_settings.to_environ(farm.settings)}
    command = [sys.executable, "-m", "farm", *words, "--json"]
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def test_what_runs_goes_on_and_what_is_new_is_done_and_the_farm_is_known_as_its_home_s(
    farm: RunningFarm, clock: Clock, tmp_path: Path
) -> None:
    began = time.time()
    before = farm.children
    submissions = []
    for moved_s in (HOUR_S, -HOUR_S):
        flag = tmp_path / f"flag{moved_s}"
        submissions.append(farm.submit(small_sweep.plan(str(flag), cores=(8,), prompt=f"wait={flag}")))
        farm.wait_until(flag.exists, what="the run")
        run, stage = farm.jobs(submissions[-1])[-1].id, int(flag.read_text())
        clock.move(moved_s)
        submissions.append(farm.submit(small_sweep.plan(f"new{moved_s}", prompt=f"new{moved_s}")))
        moved_at = time.monotonic()
        farm.wait_for_end(submissions[-1])
        while time.monotonic() < moved_at + LEASE_S:  # the lease that it had then is over
            farm.wait_until(renewed(farm, run), what="a renewal")
        assert psutil.pid_exists(stage)
        flag.unlink()
        farm.wait_for_end(submissions[-2])
    for submission_id in submissions:
        farm.assert_sound(submission_id)
    starts = farm.starts()
    assert {starts[job.id] for submission_id in submissions for job in farm.jobs(submission_id)} == {1}
    assert farm.children == before, "a process of the farm was started again"
    if farm.database.dialect == "postgresql":
        assert_no_time_travel(farm, submissions, began=began)
    assert command(farm, "down")["was_up"] is True
    assert processes_of(farm.settings.home) == []


def assert_no_time_travel(farm: RunningFarm, submissions: list[int], *, began: float) -> None:
    """All that happened has the database's time, whoever wrote it."""
    with farm.database.read() as connection:
        for job in itertools.chain.from_iterable(map(farm.jobs, submissions)):
            times = [event.at for event in queries.event_list(connection, job_id=job.id)]
            assert times == sorted(times)
            assert began <= times[0]
            assert times[-1] <= time.time()
            for attempt in queries.attempt_list(connection, job.id):
                assert attempt.finished_at is not None
                assert times[0] <= attempt.started_at <= attempt.finished_at <= times[-1]
