"""A tiny random llama through the whole farm: real stages, real nodes, the simulated SDK, tokens checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

from farm import settings as farm_settings
from farm.states import DONE, JobState
from farm.store.artifacts import Store
from tests.acceptance.running_farm import kill, running_farm


def test_a_model_runs_on_three_widths_and_a_killed_stage_changes_nothing(tmp_path: Path, model: Path) -> None:
    with running_farm(tmp_path / "home", node_module="workers") as farm:
        submitted = subprocess.run(
            [sys.executable, "-m", "farm", "submit", "--model", model, "--cores", "8,14,16", "--json"],
            env={**os.environ, **farm_settings.to_environ(farm.settings)},
            check=True,
            capture_output=True,
        )
        submission_id = int(str(json.loads(submitted.stdout)["submission"]).removeprefix("s"))
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
        tokens = set()
        for run in [job for job in found if job.stage == "run"]:
            assert run.artifact is not None
            measurement = json.loads((Store(farm.settings.store).path(run.artifact) / "measurement.json").read_text())
            assert measurement["metrics"]["tokens_equal"] is True
            tokens.add(json.dumps(measurement["tokens"]))
        assert len(tokens) == 1, "the number of cores changed the tokens"
