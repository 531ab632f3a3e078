"""``python -m farm.replay record`` of a farm that has really worked, and the replay of what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farm import settings as farm_settings
from farm.replay.ladder import LADDER
from farm.settings import Settings
from farm.states import JobState
from tests import small_sweep
from tests.acceptance.running_farm import running_farm
from tests.databases import empty_postgresql


def replay(settings: Settings, *arguments: str) -> str:
    """What the program writes."""
    done = subprocess.run(
        [sys.executable, "-m", "farm.replay", *arguments],
        env={**os.environ, **farm_settings.to_environ(settings)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_trace_of_a_farms_work_is_recorded_and_replayed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    changes: dict[str, str] = {}
    if kind == "postgresql":
        changes["database_url"] = empty_postgresql(request.getfixturevalue("postgresql_url"))
    with running_farm(tmp_path / "home", **changes) as farm:
        sweep = farm.submit(small_sweep.plan("one", "two", cores=(8, 14), prompt="sleep=0.2"))
        farm.wait_for_end(sweep)
        failed = farm.submit(small_sweep.plan("raise=invalid", cores=(8,)))
        farm.wait_for_end(failed)
        again = farm.submit(small_sweep.plan("one", cores=(8,), prompt="sleep=0.2"))
        farm.wait_for_end(again)
        # The recorder needs no processes of the farm, and nothing changes while it reads.
        farm.stop()
        succeeded = {job.id: job for job in farm.jobs(sweep) if job.state is JobState.SUCCEEDED}
        assert len(succeeded) == len(farm.jobs(sweep)) == 12
        recorded = tmp_path / "trace.jsonl"
        recorded.write_text(replay(farm.settings, "record"))
        head, *tasks = (json.loads(line) for line in recorded.read_text().splitlines())
        assert {(device["sku"], device["num_cores"]) for device in head["devices"]} == {
            ("PCIe Ultra", 16),
            ("PCIe", 14),
        }
        assert {task["id"] for task in tasks} == succeeded.keys()
        for task in tasks:
            (attempt,) = (one for one in farm.attempts(sweep) if one.job_id == task["id"])
            assert attempt.finished_at is not None
            assert task["seconds"] == pytest.approx(attempt.finished_at - attempt.started_at, abs=1e-3)
            assert task["peak_rss_bytes"] == (attempt.peak_rss_bytes or 0) > 0
        figures = [json.loads(line) for line in replay(farm.settings, "run", str(recorded), "--json").splitlines()]
        assert [row["policy"] for row in figures] == list(LADDER)
        for row in figures:
            assert row["unplaceable"] == 0
            assert 0 < row["bound_s"] <= row["makespan_s"] * (1 + 1e-9)
