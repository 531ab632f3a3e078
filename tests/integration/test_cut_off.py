"""Nodes that cannot reach the database: real processes, no broker."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from farm.db import now
from farm.models import attempts as attempt_rows
from farm.states import JobState
from tests.integration.attempt_node import AttemptNode, alive, attempt_node, cut_off, run_job, wait_until


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_a_node_that_is_cut_off_ends_its_stage_before_the_lease_ends(tmp_path: Path, hangs: bool) -> None:
    with attempt_node(tmp_path, lease_s=2.0) as node:
        database = cut_off(node, hangs=hangs)
        pids_file = tmp_path / "pids"
        job_id = run_job(node, f"tool={pids_file}")
        with node.running(job_id, until=pids_file) as said:
            database.away = True
            pids = [int(word) for word in said.split()]
            wait_until(lambda: alive(*pids) == [], what="the end of the stage")
            with node.database.read() as connection:
                left_s = lease_until(node, job_id) - now(connection)
            assert node.job(job_id).state is JobState.RUNNING
            database.away = False
        assert left_s > 0
        # It does not wait for the reaper to find out what it knows.
        assert node.job(job_id).state is JobState.READY
        (attempt,) = node.attempts(job_id)
        assert (attempt.state, attempt.failure_class) == ("lost", "worker_lost")
        assert node.held() == (0, 0)
        assert node.leftovers() == []


def test_a_short_absence_of_the_database_ends_no_stage(tmp_path: Path) -> None:
    with attempt_node(tmp_path) as node:
        database = cut_off(node)
        flag = tmp_path / "flag"
        job_id = run_job(node, f"wait={flag}")
        with node.running(job_id, until=flag):
            database.away = True
            before = lease_until(node, job_id)
            wait_until(lambda: database.refused > 0, what="a renewal that is refused")
            database.away = False
            wait_until(lambda: lease_until(node, job_id) > before, what="a renewal")
            flag.unlink()
        assert node.job(job_id).state is JobState.SUCCEEDED


def lease_until(node: AttemptNode, job_id: int) -> float:
    with node.database.read() as connection:
        query = sa.select(attempt_rows.c.lease_until).where(attempt_rows.c.job_id == job_id)
        return float(connection.execute(query).scalar_one())


def test_a_result_is_kept_until_the_database_answers_again(tmp_path: Path) -> None:
    with attempt_node(tmp_path) as node:
        database = cut_off(node)
        flag = tmp_path / "flag"
        job_id = run_job(node, f"wait={flag}")
        with node.running(job_id, until=flag):
            database.away = True
            flag.unlink()
            wait_until(lambda: not node.leftovers(), what="the end of the stage")
            database.away = False
        assert node.job(job_id).state is JobState.SUCCEEDED
        assert len(node.attempts(job_id)) == 1
