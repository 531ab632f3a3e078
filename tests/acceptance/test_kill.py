"""SIGKILL of any process of the farm while a sweep runs: it ends, with every job done once and nothing leaked."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm.home import local
from farm.models import attempts, hosts, nodes
from farm.states import DONE, JobState
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, kill, running_farm

NUM_MODELS = 2


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    with running_farm(tmp_path_factory.mktemp("kill") / "home") as found:
        yield found


def child(name: str) -> Callable[[RunningFarm], int | None]:
    return lambda farm: farm.children[name]


def busy_node(name: str) -> Callable[[RunningFarm], int | None]:
    """A node while it carries out an attempt."""

    def pid(farm: RunningFarm) -> int | None:
        node = farm.children[name]
        with farm.database.read() as connection:
            running = sa.select(attempts.c.job_id).join(nodes, nodes.c.id == attempts.c.node_id)
            found = connection.execute(running.where(attempts.c.state == "running", nodes.c.pid == node)).first()
        return node if found is not None else None

    return pid


def stage_process(farm: RunningFarm) -> int | None:
    return next(iter(farm.stage_pids()), None)


def fork_server(farm: RunningFarm) -> int | None:
    for process in psutil.Process(farm.children["host"]).children():
        if any("fork_server" in word for word in process.cmdline()):
            return process.pid
    return None


VICTIMS: dict[str, Callable[[RunningFarm], int | None]] = {
    "device node": busy_node("device-0"),
    "host node": busy_node("host"),
    "scheduler": child("scheduler"),
    "valkey": child("valkey"),
    "stage process": stage_process,
    "fork server": fork_server,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_the_death_of_its(victim: str, farm: RunningFarm) -> None:
    # The host's node has nothing to do towards the end.
    moment = 0 if victim == "host node" else random.Random(victim).randrange(1, 5 * NUM_MODELS)
    sources = [f"sleep=0.4;{victim}{number}" for number in range(NUM_MODELS)]
    submission_id = farm.submit(small_sweep.plan(*sources, prompt=f"sleep=0.4;{victim}"))

    def done() -> set[int]:
        return {job.id for job in farm.jobs(submission_id) if job.state in DONE}

    farm.wait_until(lambda: len(done()) >= moment, what=f"the end of {moment} jobs")
    finished: set[int] = set()
    before: dict[int, int] = {}

    def strike() -> bool:
        pid = VICTIMS[victim](farm)
        if pid is None:
            return False
        finished.update(done())
        before.update(farm.starts())
        try:
            kill(pid)
        except ProcessLookupError:  # it has just ended by itself: the next one, then
            return False
        return True

    farm.wait_until(strike, what=f"a {victim}")
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)
    after = farm.starts()
    assert {job_id: after[job_id] for job_id in finished} == {job_id: before[job_id] for job_id in finished}


def test_nodes_whose_work_ends_while_the_broker_is_away_hear_it_again(farm: RunningFarm, tmp_path: Path) -> None:
    """All slots are busy when the broker dies, and free before it is back: the case in which credit can get lost."""
    with farm.database.read() as connection:
        num_slots = connection.scalar(sa.select(hosts.c.num_slots))
    flags = [tmp_path / f"flag{number}" for number in range(num_slots)]
    submission_id = farm.submit(small_sweep.plan(*(f"wait={flag}" for flag in flags), cores=(8,)))
    farm.wait_until(lambda: all(flag.exists() for flag in flags), what="a stage in every slot")
    keeper = local.running(farm.settings)
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGSTOP)  # so that the broker stays away
    try:
        kill(farm.children["valkey"])
        for flag in flags:
            flag.unlink()
        farm.wait_until(
            lambda: farm.states(submission_id)[JobState.SUCCEEDED] >= num_slots, what="the end of these stages"
        )
    finally:
        os.kill(keeper.pid, signal.SIGCONT)
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)
