"""A tiny random llama through the whole farm: real stages, real nodes, the simulated SDK, tokens checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from farm import settings as farm_settings
from farm.states import DONE, JobState
from farm.store.artifacts import Store
from tests.acceptance.running_farm import RunningFarm, kill, running_farm


def submit(farm: RunningFarm, model: Path, *options: str) -> int:
    """The id of what ``farm submit`` submits."""
    submitted = subprocess.run(
        [sys.executable, "-m", "farm", "submit", "--model", model, "--json", *options],
        env={**os.environ, **farm_settings.to_environ(farm.settings)},
        check=True,
        capture_output=True,
    )
    return int(str(json.loads(submitted.stdout)["submission"]).removeprefix("s"))


def measured(farm: RunningFarm, submission_id: int) -> list[dict[str, Any]]:
    """What the runs of a submission have measured."""
    artifacts = [job.artifact for job in farm.jobs(submission_id) if job.stage == "run"]
    store = Store(farm.settings.store)
    return [json.loads((store.path(artifact or "") / "measurement.json").read_text()) for artifact in artifacts]


def test_a_model_runs_on_three_widths_and_on_two_devices_and_a_killed_stage_changes_nothing(
    tmp_path: Path, model: Path, fp32_arithmetic: None
) -> None:
    with running_farm(tmp_path / "home", node_module="workers") as farm:
        submission_id = submit(farm, model, "--cores", "8,14,16")
        farm.wait_until(
            lambda: (
                any(job.stage == "export" and job.state is JobState.RUNNING for job in farm.jobs(submission_id))
                and bool(farm.stage_pids())
            ),
            what="the export",
        )
        node = psutil.Process(farm.children["host"])
        assert not [path for path in node.memory_maps() if "/torch/" in path.path], "a node has loaded torch"
        kill(farm.stage_pids()[0])
        farm.wait_for_end(submission_id)
        farm.assert_sound(submission_id)
        found = farm.jobs(submission_id)
        assert len(found) == 8
        assert {job.state for job in found} <= DONE
        spanning = submit(
            farm, model, *("--cores", "8", "--devices", "2", "--mos", "2", "--compiler-option", "mdts-mos=2")
        )
        farm.wait_for_end(spanning)
        farm.assert_sound(spanning)
        runs = measured(farm, submission_id) + measured(farm, spanning)
        assert len(runs) == 4
        assert all(run["metrics"]["tokens_equal"] is True for run in runs)
        assert len({json.dumps(run["tokens"]) for run in runs}) == 1, (
            "the number of cores or devices changed the tokens"
        )
