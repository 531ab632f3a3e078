"""SIGKILL of any process of the farm while a sweep runs: it ends, with every job done once and nothing leaked."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import psutil
import pytest

from farm.states import DONE
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, kill, running_farm

NUM_MODELS = 2


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    with running_farm(tmp_path_factory.mktemp("kill") / "home") as found:
        yield found


def child(name: str) -> Callable[[RunningFarm], int | None]:
    return lambda farm: farm.children[name]


def stage_process(farm: RunningFarm) -> int | None:
    return next(iter(farm.stage_pids()), None)


def fork_server(farm: RunningFarm) -> int | None:
    for process in psutil.Process(farm.children["host"]).children():
        if any("forkserver" in word for word in process.cmdline()):
            return process.pid
    return None


VICTIMS: dict[str, Callable[[RunningFarm], int | None]] = {
    "device node": child("device-0"),
    "host node": child("host"),
    "scheduler": child("scheduler"),
    "valkey": child("valkey"),
    "stage process": stage_process,
    "fork server": fork_server,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_the_death_of_its(victim: str, farm: RunningFarm) -> None:
    moment = random.Random(victim).randrange(1, 6 * NUM_MODELS)
    sources = [f"sleep=0.1;{victim}{number}" for number in range(NUM_MODELS)]
    submission_id = farm.submit(small_sweep.plan(*sources, prompt=f"sleep=0.4;{victim}"))

    def done() -> set[int]:
        return {job.id for job in farm.jobs(submission_id) if job.state in DONE}

    farm.wait_until(lambda: len(done()) >= moment, what=f"the end of {moment} jobs")
    pids: list[int] = []

    def strike() -> bool:
        pid = VICTIMS[victim](farm)
        if pid is not None:
            pids.append(pid)
        return pid is not None

    farm.wait_until(strike, what=f"a {victim}")
    finished = done()
    before = farm.starts()
    kill(pids[0])
    farm.wait_for_end(submission_id)
    farm.assert_sound(submission_id)
    after = farm.starts()
    assert {job_id: after[job_id] for job_id in finished} == {job_id: before[job_id] for job_id in finished}
