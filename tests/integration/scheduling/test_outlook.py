"""What ``farm why`` is told of jobs that have not ended, by real rounds of the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database, now
from farm.models import attempts, devices, history, jobs
from farm.plan import Plan, PlannedJob
from farm.scheduling import rounds
from farm.settings import Settings
from farm.views import explain
from farm.views.explain import Explanation
from qeff_engine.spec import Stage

Why = Callable[[int], Explanation]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return farm_settings.load(home=str(tmp_path), environ={})


@pytest.fixture
def why(each_database: Database) -> Why:
    def ask(job_id: int) -> Explanation:
        with each_database.read() as connection:
            at = now(connection)
            return explain.explain(connection, job_id, now=at, heard_since=at - 60)

    return ask


def add_run(database: Database, *, num_cores: int, tag: str, **more: object) -> int:
    run = PlannedJob(
        plan_key=tag,
        stage=Stage.RUN,
        spec={"tag": tag},
        label=tag,
        inputs={},
        num_cores=num_cores,
        num_devices=1,
        model="tiny",
        **more,  # type: ignore[arg-type]
    )
    testing.add_submission(database, Plan(jobs=(run,), points=()))
    with database.read() as connection:
        return int(connection.scalar(sa.select(jobs.c.id).where(jobs.c.label == tag)) or 0)


def tick(database: Database, settings: Settings) -> None:
    rounds.tick(database, settings=settings, term=None, sender=None)


def test_a_wide_job_is_told_when_the_one_before_it_is_expected_to_end(
    each_database: Database, settings: Settings, why: Why
) -> None:
    host = testing.add_host(each_database, cores=(16,))
    first = add_run(each_database, num_cores=8, tag="first")
    testing.admit_all(each_database)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(expected_s=200.0, reserved_s=300.0))
    testing.claim(each_database, first, node_id=host.device_nodes[0])
    wide = add_run(each_database, num_cores=16, tag="wide")
    tick(each_database, settings)
    with each_database.read() as connection:
        started = connection.scalar(sa.select(attempts.c.started_at))
    found = why(wide)
    assert found.outlook is not None
    assert started is not None
    assert found.outlook.starts_at is not None, found
    assert found.outlook.starts_at == pytest.approx(started + 300.0, abs=60.0)
    assert found.waits_for == (first,)
    assert any(f"until j{first} has ended" in line for line in found.details), found.details
    assert any(line.startswith("It is expected to start in about ") for line in found.details)
    running = why(first)
    assert running.outlook is not None
    assert running.outlook.ends_at == pytest.approx(started + 200.0, abs=1.0)
    assert running.outlook.starts_at is None


def test_a_prediction_says_where_it_comes_from(each_database: Database, settings: Settings, why: Why) -> None:
    host = testing.add_host(each_database)
    first = add_run(each_database, num_cores=8, tag="first")
    assert "nobody has run the like" in why(first).details[-1]
    testing.admit_all(each_database)
    claimed = testing.claim(each_database, first, node_id=host.device_nodes[0])
    with each_database.write() as connection:
        connection.execute(sa.update(attempts).values(started_at=attempts.c.started_at - 7200.0))
    testing.finish(each_database, claimed)
    assert why(first).outlook is None
    tick(each_database, settings)
    other = add_run(each_database, num_cores=8, tag="other")
    (said,) = why(other).details[-1:]
    assert said.startswith("Such a job is predicted to run 2h, and reserves ")
    assert said.endswith("this model on as many cores was done once.")


def test_a_run_reserves_memory_of_its_host_as_other_stages_do(
    each_database: Database, settings: Settings, why: Why
) -> None:
    host = testing.add_host(each_database)
    run, stage = (add_run(each_database, num_cores=cores, tag=f"of {cores}") for cores in (8, 0))
    samples = [[10.0, 1 << 30]]
    keys = ("run/model=tiny/cores=8x1", "run/model=tiny")
    with each_database.write() as connection:
        connection.execute(sa.insert(history), [{"key": key, "samples": samples, "updated_at": 1.0} for key in keys])
    testing.admit_all(each_database)
    for job_id in (stage, run):
        assert "It will reserve 1.2 GiB of its host's memory." in why(job_id).details
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).values(ram_bytes=5 << 28))
    testing.claim(each_database, run, node_id=host.device_nodes[0])
    assert "It has 1.2 GiB of its host's memory to itself." in why(run).details


def test_who_comes_before_is_counted_for_the_same_kind_of_place(
    each_database: Database, settings: Settings, why: Why
) -> None:
    testing.add_host(each_database, cores=(8,))
    ids = [add_run(each_database, num_cores=8, tag=f"run {number}") for number in range(3)]
    add_run(each_database, num_cores=0, tag="of a host")
    testing.admit_all(each_database)
    outlooks = [why(job_id).outlook for job_id in ids]
    assert [found.ahead for found in outlooks if found is not None] == [0, 1, 2]


def test_a_job_counts_only_the_devices_that_it_may_use(each_database: Database, settings: Settings, why: Why) -> None:
    testing.add_host(each_database, cores=(16, 16, 14))
    with each_database.write() as connection:
        connection.execute(sa.update(devices).where(devices.c.qid == 1).values(labels=["lab"]))
    job_id = add_run(each_database, num_cores=8, tag="run", needs={"labels": ["lab"]}, exclusive=True)
    testing.admit_all(each_database)
    assert why(job_id).reason == "It wants 8 cores of one device (labels lab, alone); 1 device has as many."
