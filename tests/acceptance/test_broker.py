"""The broker restarted, flushed and cut off while a sweep runs: nothing is lost, nothing done twice, no node goes deaf.

A Valkey server of its own behind a wire that can be harmed. A node that its keeper had to start again would be another
process, so the tests compare pids: it is the node itself that has to hear again.
"""

from __future__ import annotations

import dataclasses
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
from farm.lifecycle import jobs, steering
from farm.models import attempts, outbox
from farm.states import DONE, JobState
from tests import small_sweep, valkey
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.farm_home import write_checkpoint
from tests.valkey import Server, Wire

OUTAGE_S = float(os.environ.get("FARM_TEST_OUTAGE_S", "3"))  # longer: make faults


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey.server(tmp_path_factory.mktemp("valkey")) as found:
        yield found


@pytest.fixture(scope="module")
def wire(server: Server) -> Iterator[Wire]:
    with valkey.wire(server.port) as found:
        yield found


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory, wire: Wire) -> Iterator[RunningFarm]:
    # Messages are sent again so late that a deaf node would be noticed only after all of this.
    home = tmp_path_factory.mktemp("broker") / "home"
    with running_farm(home, broker_url=f"redis://127.0.0.1:{wire.port}/0", queued_resend_s=6.0) as found:
        yield found


@dataclasses.dataclass(frozen=True)
class Scene:
    """A farm, its broker and the wire between them."""

    farm: RunningFarm
    server: Server
    wire: Wire

    def wait_until_all_waits(self) -> None:
        """Return when the broker's absence is felt: nothing runs any more, and a message cannot be sent."""

        def stands() -> bool:
            with self.farm.database.read() as connection:
                running = connection.scalar(sa.select(sa.func.count()).where(attempts.c.state == "running"))
                waiting = connection.scalar(sa.select(sa.func.count()).select_from(outbox))
            return bool(not running and waiting)

        self.farm.wait_until(stands, what="a message that waits for the broker")


def restarted(scene: Scene) -> None:
    scene.server.kill()
    scene.wait_until_all_waits()
    scene.server.start()


def flushed(scene: Scene) -> None:
    assert scene.server.ask("FLUSHALL").startswith("+OK")


def stalled(scene: Scene) -> None:
    scene.wire.stall()
    scene.wait_until_all_waits()
    scene.wire.heal()


def cut_off(scene: Scene) -> None:
    scene.wire.cut()
    scene.wait_until_all_waits()
    scene.wire.heal()


def half_open(scene: Scene) -> None:
    scene.wire.lose()


@pytest.mark.parametrize("harm", [restarted, flushed, stalled, cut_off, half_open])
def test_a_sweep_survives_a_broker_that_is(
    harm: Callable[[Scene], None], farm: RunningFarm, server: Server, wire: Wire
) -> None:
    before = farm.children
    name = harm.__name__
    submission_id = farm.submit(
        small_sweep.plan(*(f"sleep=0.3;{name}{n}" for n in range(2)), prompt=f"sleep=0.3;{name}")
    )
    farm.wait_until(lambda: any(job.state in DONE for job in farm.jobs(submission_id)), what="the first result")
    harm(Scene(farm=farm, server=server, wire=wire))
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)
    starts = farm.starts()
    assert {starts[job.id] for job in farm.jobs(submission_id)} == {1}, "a stage was started twice"
    after = farm.submit(small_sweep.plan(f"after {name}"))
    farm.wait_for_end(after)
    assert farm.children == before, "a node or the scheduler was started again"


def test_submissions_are_taken_while_the_broker_is_away_and_start_when_it_is_back(
    farm: RunningFarm, server: Server, tmp_path: Path
) -> None:
    before = farm.children
    model = write_checkpoint(tmp_path / "model")
    server.kill()
    back_at = time.monotonic() + OUTAGE_S
    ids = [farm.submit(small_sweep.plan("away first", prompt="away first"))]
    said = subprocess.run(
        [sys.executable, "-m", "farm", "submit", "--model", model, "--cores", "8,14", "--prompt", "away", "--json"],
        env={**os.environ, **farm_settings.to_environ(farm.settings)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stderr == ""
    ids.append(int(str(json.loads(said.stdout)["submission"]).removeprefix("s")))
    farm.wait_until(lambda: time.monotonic() >= back_at, what="the end of the outage")
    ids.append(farm.submit(small_sweep.plan("away last", prompt="away last")))
    started = farm.starts()
    mine = [job.id for submission_id in ids for job in farm.jobs(submission_id)]
    assert not set(started) & set(mine), "a stage began without a message"
    server.start()
    for submission_id in ids:
        farm.wait_for_end(submission_id)
    for submission_id in ids:
        farm.assert_sound(submission_id)
    assert {farm.starts()[job_id] for job_id in mine} == {1}
    assert farm.children == before, "a node or the scheduler was started again"


def test_cancelling_and_draining_need_no_broker(farm: RunningFarm, wire: Wire, tmp_path: Path) -> None:
    fled, flag = tmp_path / "fled", tmp_path / "flag"
    submission_id = farm.submit(small_sweep.plan("x", cores=(8,), prompt=f"deaf;flee=daemon:{fled};tool={flag}"))
    farm.wait_until(flag.exists, what="a run")
    flag.unlink()
    (device,) = [attempt.device for attempt in farm.attempts(submission_id) if attempt.state == "running"]
    with farm.database.write() as connection:
        (place,) = [found for found in steering.places(connection) if found.name == device]
        steering.drain(connection, place, by="ann", reason="")
        steering.hand_back(connection, place, reason="drained")
    farm.wait_until(flag.exists, what="the run elsewhere")
    (other,) = [attempt.device for attempt in farm.attempts(submission_id) if attempt.state == "running"]
    assert other != device
    wire.cut()
    pids = farm.stage_pids()
    with farm.database.write() as connection:
        steering.undrain(connection, place)
        assert jobs.cancel_submission(connection, submission_id)["stopping"] == 1
    farm.wait_for_end(submission_id)
    wire.heal()
    assert farm.jobs(submission_id)[-1].state is JobState.CANCELLED
    ended = (*pids, int(fled.read_text()))
    farm.wait_until(lambda: not any(map(psutil.pid_exists, ended)), what="the end of its processes")
