"""A model of the hub that brings its own code, through the whole farm: refused, then with consent to a commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farm import settings as farm_settings
from farm.states import JobState
from farm.store.artifacts import Store
from tests import fake_hub
from tests.acceptance.running_farm import RunningFarm, running_farm

NAME, TOKEN, MARKER = "tiny-people/twist", "hf_very_secret", "QEFF_TEST_TWIST"


@pytest.fixture(scope="module")
def twist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, made in a process of its own: this one needs no torch, and shall not run its code."""
    directory = tmp_path_factory.mktemp("hub") / "twist"
    program = "import sys, pathlib; from tests import twist; twist.save(pathlib.Path(sys.argv[1]), own_tokenizer=True)"
    subprocess.run([sys.executable, "-c", program, directory], check=True, capture_output=True)
    return directory


def command(farm: RunningFarm, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "farm", *arguments],
        env={**os.environ, **farm_settings.to_environ(farm.settings)},
        check=False,
        capture_output=True,
        text=True,
    )


def submitted(farm: RunningFarm, *options: str) -> int:
    """The id of a submission that has ended."""
    what = ("--model", NAME, "--cores", "8", "--ctx-len", "32", "--prompt", "Once upon", "--generation-len", "5")
    found = command(farm, "submit", *what, "--json", *options)
    assert found.returncode == 0, found.stderr
    submission_id = int(str(json.loads(found.stdout)["submission"]).removeprefix("s"))
    farm.wait_for_end(submission_id)
    return submission_id


def test_its_code_runs_in_stages_alone_and_only_with_consent(
    tmp_path: Path, twist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    with fake_hub.running() as hub:
        hub.repositories[NAME] = twist
        for name, value in (
            ("HF_ENDPOINT", hub.url),
            ("HF_HOME", str(tmp_path / "hf")),
            ("HF_TOKEN", TOKEN),
            (MARKER, str(marker)),
        ):
            monkeypatch.setenv(name, value)
        with running_farm(tmp_path / "home", node_module="workers") as farm:
            refused = submitted(farm)
            resolve = farm.jobs(refused)[0]
            assert (resolve.state, resolve.failure_class) == (JobState.FAILED, "invalid_input")
            assert f"--trust-remote-code {fake_hub.COMMIT}" in str(resolve.failure_advice)
            branch = command(farm, "submit", "--model", NAME, "--trust-remote-code", "main")
            assert branch.returncode == 2
            assert f"it was at {fake_hub.COMMIT}" in branch.stderr
            assert not marker.exists()

            done = submitted(farm, "--trust-remote-code", fake_hub.COMMIT)
            farm.assert_sound(done)
            for thing in (f"s{done}", f"j{farm.jobs(done)[1].id}"):
                shown = command(farm, "show", thing)
                assert any("runs code" in line and fake_hub.COMMIT in line for line in shown.stdout.splitlines()), shown
            run = next(job for job in farm.jobs(done) if job.stage == "run")
            directory = Store(farm.settings.store).path(run.artifact or "")
            assert json.loads((directory / "measurement.json").read_text())["metrics"]["tokens_equal"] is True
            runs = [line.split() for line in marker.read_text().splitlines()]
            long_lived = {psutil.Process(pid).pid for pid in farm.children.values()} | {os.getpid()}
    # Export and run, each in its own process, and no secret in sight; the stage that downloads had the token.
    pids = {int(pid) for _, pid, *_ in runs}
    assert len(pids) == 2
    assert not pids & long_lived
    assert not [names for _, _, *names in runs if names]
    assert hub.tokens == {f"Bearer {TOKEN}"}
