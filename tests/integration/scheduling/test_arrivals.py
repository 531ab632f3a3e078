"""When submissions are expected to be done, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from farm import testing
from farm.db import Database, now
from farm.lifecycle import jobs, steering
from farm.models import attempts, history
from farm.models import jobs as job_rows
from farm.scheduling import rounds
from farm.views import arrivals, queries

TOOK_S = {"resolve": 10.0, "export": 20.0, "compile": 100.0, "run": 60.0}
CORES = 16 + 14


def teach(database: Database, **took_s: float) -> None:
    """Let stages have taken so long, a few times."""
    rows = [{"key": stage, "samples": [[seconds, 0]] * 5, "updated_at": 1.0} for stage, seconds in took_s.items()]
    with database.write() as connection:
        connection.execute(sa.insert(history), rows)


def left_s(database: Database, submission_id: int) -> Any:
    """Seconds until a submission is expected to be done, None when nobody can tell, ``ended`` when it has."""
    with database.read() as connection:
        at = now(connection)
        one = queries.submission(connection, submission_id)
        found = arrivals.expected(connection, [one], now=at, heard_since=at - 60.0)
    expected_at = found.get(submission_id, "ended")
    return expected_at - at if isinstance(expected_at, float) else expected_at


def change(database: Database, stage: str, **values: Any) -> None:
    with database.write() as connection:
        connection.execute(sa.update(job_rows).where(job_rows.c.stage == stage).values(**values))


def round_of(database: Database) -> None:
    """Admit, and let placement place and forecast."""
    testing.admit_all(database)
    rounds.place(database, term=None, max_age_s=60.0, half_life_s=86_400.0, learnt=True)


def finish_all(database: Database, host: testing.FakeHost, *stages: str) -> None:
    """Let the queued jobs of stages succeed."""
    queued = sa.select(job_rows).where(job_rows.c.state == "queued", job_rows.c.stage.in_(stages))
    with database.read() as connection:
        found = connection.execute(queued).all()
    for row in found:
        claimed = testing.claim_queued(database, row.id, row.attempt, node_id=row.node_id)
        testing.finish(database, claimed)


def test_what_the_farm_has_never_done_has_no_time(each_database: Database) -> None:
    testing.add_host(each_database)
    submission_id = testing.add_submission(each_database)
    assert left_s(each_database, submission_id) is None
    teach(each_database, resolve=10.0, export=20.0, compile=100.0)
    assert left_s(each_database, submission_id) is None, "no run was ever done"


def test_a_sweep_takes_its_chain_or_its_work_whichever_is_longer(each_database: Database) -> None:
    testing.add_host(each_database, num_slots=2)
    teach(each_database, **TOOK_S)
    narrow = testing.add_submission(each_database, testing.small_plan(cores=(8,), tag="narrow"))
    assert left_s(each_database, narrow) == pytest.approx(sum(TOOK_S.values()))
    wide = testing.add_submission(each_database, testing.small_plan(cores=tuple(range(1, 15)), tag="wide"))
    of_slots_s = (10.0 + 20.0 + 14 * 100.0) / 2
    assert left_s(each_database, wide) == pytest.approx(max(of_slots_s, 60.0 * sum(range(1, 15)) / CORES))


def test_the_time_moves_on_as_the_work_does(each_database: Database) -> None:
    host = testing.add_host(each_database, num_slots=2)
    teach(each_database, **TOOK_S)
    submission_id = testing.add_submission(each_database, testing.small_plan(cores=(8,)))
    round_of(each_database)
    assert left_s(each_database, submission_id) == pytest.approx(190.0, abs=1.0), "the first is queued"
    for stage, rest_s in (("resolve", 180.0), ("export", 160.0), ("compile", 60.0)):
        finish_all(each_database, host, stage)
        round_of(each_database)
        assert left_s(each_database, submission_id) == pytest.approx(rest_s, abs=1.0)
    with each_database.read() as connection:
        run = connection.execute(sa.select(job_rows).where(job_rows.c.stage == "run")).one()
    claimed = testing.claim_queued(each_database, run.id, run.attempt, node_id=run.node_id)
    with each_database.write() as connection:
        connection.execute(
            sa.update(attempts).where(attempts.c.job_id == run.id).values(started_at=attempts.c.started_at - 45.0)
        )
    assert left_s(each_database, submission_id) == pytest.approx(15.0, abs=1.0)
    testing.finish(each_database, claimed)
    assert left_s(each_database, submission_id) == "ended"


def test_a_ready_job_ends_as_long_after_its_forecast_as_it_runs(each_database: Database) -> None:
    host = testing.add_host(each_database, cores=(16,), num_slots=2)
    teach(each_database, **TOOK_S)
    busy = testing.add_submission(each_database, testing.small_plan(cores=(16,), tag="busy"))
    behind = testing.add_submission(each_database, testing.small_plan(cores=(16,), tag="behind"))
    for stages in (("resolve",), ("export",), ("compile",)):
        round_of(each_database)
        finish_all(each_database, host, *stages)
    round_of(each_database)
    with each_database.read() as connection:
        waits = connection.execute(sa.select(job_rows).where(job_rows.c.state == "ready")).one()
        at = now(connection)
    assert waits.submission_id == behind
    assert waits.forecast_at > at + 50.0
    assert left_s(each_database, busy) == pytest.approx(60.0, abs=1.0)
    assert left_s(each_database, behind) == pytest.approx(waits.forecast_at - at + 60.0, abs=1.0)


def test_nobody_can_tell_without_a_place_or_while_it_is_paused(each_database: Database) -> None:
    testing.add_host(each_database)
    teach(each_database, **TOOK_S)
    too_wide = testing.add_submission(each_database, testing.small_plan(cores=(8,), tag="wide"))
    round_of(each_database)
    change(each_database, "run", state="ready", ready_at=1.0, remaining=0, num_cores=17)
    round_of(each_database)
    assert left_s(each_database, too_wide) is None
    paused = testing.add_submission(each_database, testing.small_plan(cores=(8,), tag="paused"))
    assert left_s(each_database, paused) is not None
    with each_database.write() as connection:
        steering.pause(connection, paused, by="ada")
    assert left_s(each_database, paused) is None


def test_nobody_can_tell_when_no_machine_is_there_for_what_waits(each_database: Database) -> None:
    teach(each_database, **TOOK_S)
    submission_id = testing.add_submission(each_database)
    assert left_s(each_database, submission_id) is None
    testing.add_host(each_database, cores=())
    assert left_s(each_database, submission_id) is None, "there is no device"


def test_what_its_user_has_cancelled_is_not_waited_for(each_database: Database) -> None:
    testing.add_host(each_database)
    teach(each_database, **TOOK_S)
    submission_id = testing.add_submission(each_database)
    with each_database.write() as connection:
        jobs.cancel_submission(connection, submission_id)
    assert left_s(each_database, submission_id) == "ended"
