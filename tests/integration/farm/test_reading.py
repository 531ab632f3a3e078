"""The read side on a real database, filled by the real transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from farm import db, plan, records
from farm.errors import NoCapacity, NotFound
from farm.lifecycle import jobs
from farm.states import JobState
from farm.sweep import Sweep, SweepModel
from farm.views import explain, inventory, prediction, queries, reports, sweeps
from farm.views.prediction import Fate
from qeff_engine import spec
from tests import farm_driver


def sweep(*, cores: tuple[int, ...] = (8, 14, 16), fingerprint: str = "f1", **axes: Any) -> plan.Plan:
    source = spec.ResolveSpec(source=f"/models/{fingerprint}", kind="directory", fingerprint=fingerprint)
    model = SweepModel(name="tiny", source=source)
    return plan.expand(Sweep(models=(model,), cores=cores, **axes))


def submit(database: db.Database, planned: plan.Plan, *, name: str = "n", owner: str = "o") -> int:
    with database.write() as connection:
        return jobs.submit(connection, planned, name=name, owner=owner, request={})


def predict(database: db.Database, planned: plan.Plan) -> dict[str, dict[Fate, int]]:
    with database.read() as connection:
        found = prediction.predict(connection, planned, toolchain=inventory.toolchain(connection))
    table = found.table(planned)
    return {stage: {fate: count for fate, count in row.items() if count} for stage, row in table.items()}


def test_before_anything_is_done_everything_is_new(database: db.Database, driver: farm_driver.Driver) -> None:
    new = {"resolve": 1, "export": 1, "compile": 3, "run": 3}
    assert predict(database, sweep()) == {stage: {Fate.NEW: count} for stage, count in new.items()}


def test_what_is_done_is_predicted_cached_and_comes_out_cached(
    database: db.Database, driver: farm_driver.Driver
) -> None:
    submit(database, sweep(cores=(8, 14)))
    driver.work()
    again = sweep(cores=(8, 14, 16))
    assert predict(database, again) == {
        "resolve": {Fate.CACHED: 1},
        "export": {Fate.CACHED: 1},
        "compile": {Fate.CACHED: 2, Fate.NEW: 1},
        "run": {Fate.CACHED: 2, Fate.NEW: 1},
    }
    second = submit(database, again)
    driver.work()
    with database.read() as connection:
        counts = queries.submission(connection, second).counts
    assert counts == {JobState.CACHED: 6, JobState.SUCCEEDED: 2}


def test_work_of_a_live_submission_is_predicted_shared(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8,)))
    driver.admit()
    assert predict(database, sweep(cores=(8, 16))) == {
        "resolve": {Fate.SHARED: 1},
        "export": {Fate.SHARED: 1},
        "compile": {Fate.SHARED: 1, Fate.NEW: 1},
        "run": {Fate.SHARED: 1, Fate.NEW: 1},
    }


def test_a_remembered_failure_is_predicted(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8,)))
    driver.work(lambda claim: driver.fail(claim, failure_class="unsupported", message="no"))
    assert predict(database, sweep(cores=(8,)))["resolve"] == {Fate.FAILS: 1}


def test_another_toolchain_is_not_cached(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8,)))
    driver.work()
    planned = sweep(cores=(8,))
    with database.read() as connection:
        newer = {**farm_driver.TOOLCHAIN, "sdk_apps": "1.21.0-simulated"}
        found = prediction.predict(connection, planned, toolchain=newer)
    by_stage = {str(job.stage): found.fates[job.plan_key] for job in planned.jobs}
    assert by_stage == {"resolve": "cached", "export": "cached", "compile": "new", "run": "new"}


def test_pages_follow_one_another_without_gap_or_overlap(database: db.Database, driver: farm_driver.Driver) -> None:
    ids = [submit(database, sweep(cores=(8,)), owner="ann" if number % 2 else "bob") for number in range(5)]
    with database.read() as connection:
        first = queries.submission_list(connection, limit=2)
        second = queries.submission_list(connection, limit=9, before=first[-1].id)
        of_ann = queries.submission_list(connection, owner="ann")
        jobs_page = queries.job_list(connection, limit=3)
        jobs_rest = queries.job_list(connection, limit=None, before=jobs_page[-1].id)
        exports = queries.job_list(connection, stage="export", states=[JobState.WAITING])
    assert [row.id for row in (*first, *second)] == ids[::-1]
    assert [row.id for row in of_ann] == [ids[3], ids[1]]
    assert [row.id for row in (*jobs_page, *jobs_rest)] == list(range(20, 0, -1))
    assert len(exports) == 5


def test_points_carry_the_figures_of_whoever_did_the_work(database: db.Database, driver: farm_driver.Driver) -> None:
    first = submit(database, sweep(cores=(8, 14)))
    driver.work()
    second = submit(database, sweep(cores=(14,)))
    driver.work()
    with database.read() as connection:
        made = reports.build(sweeps.point_list(connection, first))
        reused = reports.build(sweeps.point_list(connection, second))
    assert [(row.axes["cores"], row.device, row.decode_tok_s, row.reused) for row in made.rows] == [
        (8, "ultra/0", 64.0, False),
        (14, "ultra/0", 112.0, False),
    ]
    assert [(row.axes["cores"], row.device, row.decode_tok_s, row.reused) for row in reused.rows] == [
        (14, "ultra/0", 112.0, True)
    ]
    assert (made.rows[0].host, made.rows[0].compile_s, made.rows[0].parity) == ("h1", 12.5, "yes")


def test_submissions_are_summed_up_in_one_word(database: db.Database, driver: farm_driver.Driver) -> None:
    submission_id = submit(database, sweep(cores=(8, 14)))

    def finish(claim: records.Claim) -> None:
        if claim.stage == "run" and len(claim.grants[0].cores) == 14:
            driver.fail(claim, failure_class="numerics", message="Not finite.\nAt all.")
        else:
            driver.succeed(claim)

    with database.read() as connection:
        before = queries.submission(connection, submission_id)
    driver.work(finish)
    with database.read() as connection:
        after = queries.submission(connection, submission_id)
        report = reports.build(sweeps.point_list(connection, submission_id))
    assert (before.state, before.finished_at) == ("waiting", None)
    assert after.state == "failed"
    assert after.finished_at is not None
    (failure,) = report.failures
    assert (failure.failure_class, failure.message, failure.points) == ("numerics", "Not finite.", (1,))


def test_devices_name_who_holds_their_cores(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8,)))
    claims = []

    def finish(claim: records.Claim) -> None:
        if claim.stage == "run":
            claims.append(claim)
        else:
            driver.succeed(claim)

    driver.work(finish)
    with database.read() as connection:
        now = db.now(connection)
        ultra, standard = inventory.device_list(connection, heard_since=now - 60)
        later = inventory.device_list(connection, heard_since=now + 60)
        hosts = inventory.host_list(connection, heard_since=now - 60)
        known = inventory.known_devices(connection)
    (holder,) = ultra.holders
    assert (holder.job_id, holder.num_cores, holder.draining) == (claims[0].job_id, 8, False)
    assert (ultra.free, standard.free, ultra.alive) == (8, 14, True)
    assert [device.alive for device in later] == [False, False]
    assert [(host.name, host.busy_slots, host.alive) for host in hosts] == [("h1", 0, True)]
    assert [(device.name, device.num_cores) for device in known] == [("ultra/0", 16), ("standard/1", 14)]


def why(database: db.Database, job_id: int) -> explain.Explanation:
    with database.read() as connection:
        now = db.now(connection)
        return explain.explain(connection, job_id, now=now, heard_since=now - 60)


def test_reasons_say_what_a_job_waits_for(database: db.Database, driver: farm_driver.Driver) -> None:
    first = submit(database, sweep(cores=(16,)))
    second = submit(database, sweep(cores=(16,)))
    driver.admit()
    resolve, follower = 1, 5
    assert why(database, follower).waits_for == (resolve,)
    assert "follows j1 of s1" in why(database, follower).reason
    assert why(database, 2).waits_for == (1,)
    assert "wants a slot" in why(database, resolve).reason
    claim = driver.claim(resolve, 0)
    assert "Attempt 1 has run on h1" in why(database, resolve).reason
    driver.succeed(claim)
    driver.work(lambda claim: None if claim.stage == "run" else driver.succeed(claim))
    assert "has been done" in why(database, follower).reason or "had been done by j1" in why(database, follower).reason
    assert (first, second) == (1, 2)


def test_a_wide_job_is_told_who_holds_the_cores(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8, 16)))
    held = []

    def finish(claim: records.Claim) -> None:
        if claim.stage == "run" and len(claim.grants[0].cores) == 8:
            held.append(claim.job_id)
        else:
            driver.succeed(claim)

    with pytest.raises(NoCapacity):
        driver.work(finish)
    with database.read() as connection:
        (wide,) = queries.job_list(connection, states=[JobState.READY])
    found = why(database, wide.id)
    assert "wants 16 cores of one device; 1 device has as many" in found.reason
    assert f"ultra/0: 8 of 16 cores free, j{held[0]} holds 8." in found.details
    assert found.waits_for == tuple(held)


def test_a_blocked_job_names_the_culprit(database: db.Database, driver: farm_driver.Driver) -> None:
    submit(database, sweep(cores=(8,)))
    driver.work(lambda claim: driver.fail(claim, failure_class="invalid_input", message="It is broken."))
    assert why(database, 1).reason == "invalid_input: It is broken."
    assert why(database, 2).waits_for == (1,)
    assert why(database, 4).reason.startswith("An input failed.")


@pytest.mark.parametrize("read", [queries.job, queries.submission])
def test_what_does_not_exist_is_not_found(read: Callable[[sa.Connection, int], object], database: db.Database) -> None:
    with database.read() as connection, pytest.raises(NotFound, match=r"There is no (job j|submission s)77"):
        read(connection, 77)
