"""Schedulers that die, or stand still, exactly between what they decided and what they tell the broker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm.home import local
from farm.models import leader, outbox
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, running_farm

NUM_MODELS = 3


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    with running_farm(tmp_path_factory.mktemp("schedulers") / "home") as found:
        yield found


@contextlib.contextmanager
def without_scheduler(farm: RunningFarm) -> Iterator[None]:
    """A farm whose keeper starts its scheduler again only when the block ends."""
    keeper = local.running(farm.settings)
    assert keeper is not None
    scheduler = psutil.Process(farm.children["scheduler"])
    keeper.keeper.send(signal.SIGSTOP)
    try:
        scheduler.terminate()
        farm.wait_until(lambda: scheduler.status() == psutil.STATUS_ZOMBIE, what="the end of the scheduler")
        yield
    finally:
        keeper.keeper.send(signal.SIGCONT)


@contextlib.contextmanager
def halted_scheduler(farm: RunningFarm, *, when: str, flag: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A scheduler that leads, and stands still ``before`` or ``after`` it sends what it has committed; and its log."""
    log = flag.with_suffix(".log")
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.halting_scheduler", when, flag],
            env={**os.environ, **farm_settings.to_environ(farm.settings)},
            stderr=stderr,
        ) as process,
    ):
        try:
            farm.wait_until(
                lambda: flag.exists() and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED,
                what="a scheduler that stands still",
            )
            yield process, log
        finally:
            process.kill()


def to_be_sent(farm: RunningFarm) -> set[int]:
    """Jobs whose messages are in the outbox."""
    with farm.database.read() as connection:
        return set(connection.scalars(sa.select(outbox.c.job_id)))


def term(farm: RunningFarm) -> int:
    with farm.database.read() as connection:
        return connection.execute(sa.select(leader.c.term)).scalar_one()


def submit(farm: RunningFarm, tag: str) -> int:
    return farm.submit(small_sweep.plan(*(f"{tag}{number}" for number in range(NUM_MODELS)), prompt=tag))


def assert_each_ran_once(farm: RunningFarm, submission_id: int) -> None:
    farm.assert_sound(submission_id)
    starts = farm.starts()
    assert {starts[job.id] for job in farm.jobs(submission_id)} == {1}
    assert to_be_sent(farm) == set()


@pytest.mark.parametrize("when", ["before", "after"])
def test_each_job_runs_once_when_the_scheduler_is_killed_right_when_sending(
    when: str, farm: RunningFarm, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    with without_scheduler(farm):
        submission_id = submit(farm, f"killed {when}")
        with halted_scheduler(farm, when=when, flag=flag) as (process, _):
            assert flag.read_text() == str(sorted(to_be_sent(farm)))
            if when == "after":  # what the successor will send again is being done, or has been
                farm.wait_until(lambda: to_be_sent(farm) <= set(farm.starts()), what="the stages")
            else:
                assert not to_be_sent(farm) & set(farm.starts())
            process.kill()
            assert process.wait() == -signal.SIGKILL
    farm.wait_for_end(submission_id)
    assert_each_ran_once(farm, submission_id)


def test_each_job_runs_once_when_a_frozen_scheduler_sends_after_another_has(farm: RunningFarm, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with contextlib.ExitStack() as stack:
        with without_scheduler(farm):
            submission_id = submit(farm, "frozen")
            process, log = stack.enter_context(halted_scheduler(farm, when="before", flag=flag))
            first = term(farm)
            late = to_be_sent(farm)
            assert flag.read_text() == str(sorted(late))
        farm.wait_until(lambda: late <= set(farm.starts()), what="what the next leader sends")
        assert term(farm) == first + 1
        process.send_signal(signal.SIGCONT)
        farm.wait_until(lambda: f"Term {first} is over" in log.read_text(), what="a scheduler that stops leading")
        farm.wait_for_end(submission_id)
        assert term(farm) == first + 1
    assert_each_ran_once(farm, submission_id)
