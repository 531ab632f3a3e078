"""What the leader learns from attempts that have ended, on real databases."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from farm import settings as farm_settings
from farm import testing
from farm.db import Database
from farm.errors import StaleTransition
from farm.lifecycle import admission, leadership
from farm.lifecycle import attempts as running
from farm.models import attempts, devices, jobs, owners
from farm.models import history as samples
from farm.placement import estimates
from farm.plan import Plan, PlannedJob, PlannedPoint
from farm.scheduling import candidates, capacity, history, maintenance, rounds
from qeff_engine.spec import Stage

DAY_S = 86_400.0


def runs(number: int, *, num_devices: int = 1, tag: str = "") -> Plan:
    """Runs of four cores without inputs."""
    planned = tuple(
        PlannedJob(
            plan_key=f"run{n}{tag}",
            stage=Stage.RUN,
            spec={"n": n, "tag": tag},
            label=f"run {n}",
            inputs={},
            num_cores=4,
            num_devices=num_devices,
            model="tiny",
        )
        for n in range(number)
    )
    return Plan(jobs=planned, points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def finish_runs(
    database: Database,
    plan: Plan,
    *,
    host: testing.FakeHost,
    seconds: float = 100.0,
    peak_rss_bytes: int = 1 << 30,
    owner: str = "ada",
) -> list[int]:
    """Let the runs of a plan succeed, each after so many seconds."""
    testing.add_submission(database, plan, owner=owner)
    ids = testing.admit_all(database)
    for job_id in ids:
        device_ids = host.device_ids[: plan.jobs[0].num_devices]
        claimed = testing.claim(database, job_id, node_id=host.device_nodes[0], device_ids=device_ids)
        with database.write() as connection:
            connection.execute(
                sa.update(attempts)
                .where(attempts.c.job_id == job_id)
                .values(started_at=attempts.c.started_at - seconds, peak_rss_bytes=peak_rss_bytes)
            )
        testing.finish(database, claimed)
    with database.write() as connection:  # the usage that a node would have sent
        connection.execute(sa.update(attempts).values(peak_rss_bytes=peak_rss_bytes))
    return ids


def learn(database: Database, *, term: int | None = None, limit: int = 1000) -> int:
    with database.write() as connection:
        return history.learn(connection, limit=limit, half_life_s=DAY_S, term=term)


def account(database: Database, owner: str) -> Any:
    with database.read() as connection:
        return connection.execute(sa.select(owners).where(owners.c.name == owner)).one()


def test_each_attempt_is_learnt_once_under_all_its_keys(each_database: Database) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(3), host=host, seconds=10_000.0)
    assert [learn(each_database, limit=2), learn(each_database, limit=2), learn(each_database)] == [2, 1, 0]
    with each_database.read() as connection:
        counts = {row.key: len(row.samples) for row in connection.execute(sa.select(samples))}
    assert counts["run"] == 3
    assert sorted(number for key, number in counts.items() if "/spec=" in key) == [1, 1, 1]
    assert account(each_database, "ada").core_seconds == pytest.approx(3 * 4 * 10_000.0, rel=0.01)


def test_two_learners_at_once_count_nothing_twice(each_database: Database) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(8), host=host, seconds=10_000.0)
    barrier = threading.Barrier(3)

    def work(_: int) -> int:
        barrier.wait()
        return sum(learn(each_database, limit=3) for _ in range(4))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(work, range(3))) == 8
    with each_database.read() as connection:
        assert len(connection.scalar(sa.select(samples.c.samples).where(samples.c.key == "run"))) == 8
    assert account(each_database, "ada").core_seconds == pytest.approx(8 * 4 * 10_000.0, rel=0.01)


def test_a_scheduler_whose_term_is_over_learns_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(1), host=host)
    with each_database.write() as connection:
        term = leadership.acquire(connection, holder="a", lease_s=60)
    assert term is not None
    with pytest.raises(StaleTransition):
        learn(each_database, term=term - 1)
    assert learn(each_database, term=term) == 1


def test_a_job_is_admitted_with_what_it_is_predicted_to_take(each_database: Database) -> None:
    host = testing.add_host(each_database)
    first = runs(1)
    finish_runs(each_database, first, host=host, seconds=10_000.0, peak_rss_bytes=1 << 30)
    learn(each_database)
    testing.add_submission(each_database, runs(1, tag="another spec of the same model"))
    assert rounds.admit(each_database, term=None, max_age_s=60.0) == 1
    with each_database.read() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.state == "ready")).one()
        found = history.predict(connection, [row.id], sdk="")[row.id]
    assert row.expected_s == pytest.approx(10_000.0, rel=0.01)
    assert row.reserved_s > row.expected_s
    assert row.ram_bytes > 1 << 30
    assert (found.from_key, found.num_samples) == ("run/model=tiny/cores=4x1", 1)
    assert (found.expected_s, found.ram_bytes) == (row.expected_s, row.ram_bytes)


def test_a_stage_that_nobody_has_run_gets_its_default(each_database: Database) -> None:
    testing.add_host(each_database)
    testing.add_submission(each_database, runs(1))
    rounds.admit(each_database, term=None, max_age_s=60.0)
    with each_database.read() as connection:
        row = connection.execute(sa.select(jobs)).one()
    default = estimates.estimate({}, ("run",))
    assert (row.expected_s, row.reserved_s, row.ram_bytes) == (default.expected_s, default.reserved_s, 0)


def test_failed_attempts_are_charged_but_teach_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database, runs(1))
    (job_id,) = testing.admit_all(each_database)
    testing.claim(each_database, job_id, node_id=host.device_nodes[0])
    with each_database.write() as connection:
        connection.execute(
            sa.update(attempts).values(
                started_at=attempts.c.started_at - 50.0, state="lost", finished_at=attempts.c.started_at
            )
        )
    assert learn(each_database) == 1
    with each_database.read() as connection:
        assert connection.scalars(sa.select(samples.c.key)).all() == []
    assert account(each_database, "ada").core_seconds == pytest.approx(200.0, rel=0.01)


def test_use_counts_every_device_and_halves_with_the_half_life(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16, 16))
    finish_runs(each_database, runs(1, num_devices=2), host=host, seconds=10_000.0)
    learn(each_database)
    with each_database.write() as connection:
        connection.execute(sa.update(owners).values(updated_at=owners.c.updated_at - DAY_S))
    with each_database.read() as connection:
        assert history.shares(connection, half_life_s=DAY_S)["ada"] == pytest.approx(40_000.0, rel=0.01)
    finish_runs(each_database, runs(1, num_devices=2, tag="next"), host=host, seconds=10_000.0)
    learn(each_database)
    assert account(each_database, "ada").core_seconds == pytest.approx(40_000.0 + 80_000.0, rel=0.02)


def test_what_runs_counts_before_it_has_ended(each_database: Database) -> None:
    host = testing.add_host(each_database)
    testing.add_submission(each_database, runs(1), owner="bob")
    (job_id,) = testing.admit_all(each_database)
    testing.claim(each_database, job_id, node_id=host.device_nodes[0])
    with each_database.write() as connection:
        connection.execute(sa.update(attempts).values(started_at=attempts.c.started_at - 10_000.0))
    with each_database.read() as connection:
        assert history.shares(connection, half_life_s=DAY_S) == {"bob": pytest.approx(40_000.0, rel=0.01)}


def test_a_device_remembers_the_models_that_it_ran_last(each_database: Database) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(2), host=host)
    learn(each_database)
    with each_database.read() as connection:
        assert dict(connection.execute(sa.select(devices.c.id, devices.c.models)).all()) == {
            host.device_ids[0]: ["tiny"],
            host.device_ids[1]: None,
        }


def num_predicted_anew(database: Database) -> int:
    """Note what ready runs are predicted to take by all that is known; how many rows changed."""
    with database.write() as connection:
        rows = candidates.heads(connection, limit=100, of_device=True)
        predicted = history.predict(connection, [row.id for row in rows], sdk="")
        return admission.predict_anew(connection, rows, predicted, term=None)


def test_jobs_that_were_ready_before_are_predicted_anew(each_database: Database) -> None:
    host = testing.add_host(each_database)
    waiting, failed = runs(1, tag="waits"), runs(1, tag="has failed")
    for plan in (waiting, failed):
        testing.add_submission(each_database, plan)
    rounds.admit(each_database, term=None, max_age_s=60.0)
    with each_database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == 2).values(failures=1, ram_bytes=1 << 40))
    assert num_predicted_anew(each_database) == 0, "nothing was learnt yet"
    finish_runs(each_database, runs(1), host=host, seconds=10_000.0, peak_rss_bytes=1 << 30)
    learn(each_database)
    rounds.place(each_database, term=None, max_age_s=60.0, half_life_s=DAY_S, learnt=True)
    with each_database.read() as connection:
        rows = connection.execute(sa.select(jobs).where(jobs.c.id <= 2).order_by(jobs.c.id)).all()
    assert [row.expected_s for row in rows] == pytest.approx([10_000.0] * 2, rel=0.01)
    assert rows[0].ram_bytes > 1 << 30
    assert rows[1].ram_bytes == 1 << 40, "raised for the next try"


@pytest.mark.parametrize(("known_s", "number"), [(1.04, 0), (0.96, 0), (1.06, 1), (0.94, 1), (None, 1)])
def test_a_prediction_that_hardly_differs_is_left_as_it_is(
    each_database: Database, known_s: float | None, number: int
) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(1, tag="before"), host=host)
    learn(each_database)
    testing.add_submission(each_database, runs(1, tag="waits"))
    rounds.admit(each_database, term=None, max_age_s=60.0)
    assert num_predicted_anew(each_database) == 0
    with each_database.write() as connection:
        factor = sa.literal(known_s, sa.Float)  # of what would be predicted; None when nothing is noted
        connection.execute(sa.update(jobs).where(jobs.c.state == "ready").values(expected_s=jobs.c.expected_s / factor))
    assert num_predicted_anew(each_database) == number
    assert num_predicted_anew(each_database) == 0, "what was written is right"


def test_a_guess_at_memory_is_what_the_claim_reserves(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=4)
    testing.add_submission(each_database, testing.small_plan(cores=(8, 14, 16)))
    testing.admit_all(each_database)
    rounds.place(each_database, term=None, max_age_s=60.0, half_life_s=DAY_S)
    with each_database.read() as connection:
        (placed,) = connection.execute(sa.select(jobs).where(jobs.c.state == "queued")).all()
        (room,) = capacity.capacity(connection, max_age_s=60.0).hosts
    assert (placed.stage, placed.ram_bytes) == ("resolve", room.ram_bytes // 4)
    assert room.free_ram_bytes == room.ram_bytes - placed.ram_bytes
    with each_database.write() as connection:
        running.claim(connection, placed.id, placed.attempt, node_id=host.host_node, lease_s=60.0)
        assert connection.scalar(sa.select(attempts.c.ram_bytes)) == placed.ram_bytes


def test_what_was_done_long_ago_is_forgotten_and_predicted_from_what_is_like_it(each_database: Database) -> None:
    host = testing.add_host(each_database)
    for number in range(6):
        finish_runs(each_database, runs(1, tag=f"{number}"), host=host, seconds=1000.0 * (number + 1))
        learn(each_database)
    with each_database.read() as connection:
        before = dict(connection.execute(sa.select(samples.c.key, samples.c.samples)).all())
    exact = {key for key in before if "/spec=" in key}
    coarse = before.keys() - exact
    assert (len(exact), len(coarse)) == (6, 4)
    assert maintenance.forget(each_database, num_keys=len(before), term=None) == 0
    assert maintenance.forget(each_database, num_keys=len(coarse) + 2, term=None) == 4
    with each_database.read() as connection:
        after = dict(connection.execute(sa.select(samples.c.key, samples.c.samples)).all())
        newest, oldest = max(before[key] for key in exact), min(before[key] for key in exact)
        found = history.predict(connection, [1], sdk="")[1]
    assert after == {key: before[key] for key in after}, "what stays keeps all its samples"
    assert coarse <= after.keys()
    assert newest in after.values()
    assert oldest not in [after[key] for key in after if key in exact]
    assert found.from_key in coarse
    assert found.expected_s == pytest.approx(4000.0, rel=0.01), "the median of the last five"


def test_a_scheduler_whose_term_is_over_forgets_nothing(each_database: Database) -> None:
    host = testing.add_host(each_database)
    finish_runs(each_database, runs(3), host=host)
    learn(each_database)
    with each_database.write() as connection:
        term = leadership.acquire(connection, holder="a", lease_s=60)
    assert term is not None
    with pytest.raises(StaleTransition):
        maintenance.forget(each_database, num_keys=1, term=term - 1)
    assert maintenance.forget(each_database, num_keys=1, term=term) > 0


def test_the_scheduler_keeps_as_many_keys_as_it_is_set_to(each_database: Database, tmp_path: Path) -> None:
    host = testing.add_host(each_database)
    settings = farm_settings.load(home=str(tmp_path), environ={"FARM_HISTORY_KEYS": "5"})
    for number in range(9):
        finish_runs(each_database, runs(1, tag=f"{number}"), host=host)
        rounds.tick(each_database, settings=settings, term=None, sender=None)
    with each_database.read() as connection:
        keys = set(connection.scalars(sa.select(samples.c.key)))
    assert len(keys) == 5
    assert "run" in keys
