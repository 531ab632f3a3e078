"""The embedded farm of a home: start, refuse, stop, come back."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farm import settings as farm_settings
from farm.errors import FarmError, Refused, StorageFault
from farm.home import local
from farm.states import JobState
from tests import small_sweep
from tests.acceptance.running_farm import assert_nothing_left, kill, processes_of, running_farm

COMMAND = [sys.executable, "-m", "farm"]


def test_a_farm_is_alone_in_its_home_and_leaves_nothing(tmp_path: Path) -> None:
    with running_farm(tmp_path / "home") as farm:
        keeper = local.running(farm.settings)
        assert keeper is not None
        assert sorted(keeper.children) == ["device-0", "device-1", "host", "scheduler", "valkey"]
        with pytest.raises(Refused, match=rf"{tmp_path}/home already \(process {keeper.pid}\)"):
            farm.start()
        assert stat.S_IMODE(farm.settings.run_dir.stat().st_mode) == 0o700
        assert psutil.Process(farm.children["valkey"]).net_connections("inet") == []
        farm.stop()
        assert local.running(farm.settings) is None
        assert_nothing_left(farm.settings.home)
        farm.start()
        submission_id = farm.submit(small_sweep.plan("again", cores=(8,)))
        farm.wait_for_end(submission_id)
        farm.assert_sound(submission_id)


def test_a_farm_that_stops_interrupts_what_runs_and_goes_on_later(tmp_path: Path) -> None:
    with running_farm(tmp_path / "home") as farm:
        flag = tmp_path / "flag"
        submission_id = farm.submit(small_sweep.plan("model", cores=(8,), prompt=f"wait={flag}"))
        farm.wait_until(flag.exists, what="the run")
        farm.stop()
        run = farm.jobs(submission_id)[-1]
        # Queued when the scheduler was the last to end: it had found another place.
        assert (run.state in (JobState.READY, JobState.QUEUED), run.failures) == (True, 0)
        assert processes_of(farm.settings.home) == []
        flag.unlink()
        farm.start()
        farm.wait_until(flag.exists, what="the run again")
        flag.unlink()
        farm.wait_for_end(submission_id)
        farm.assert_sound(submission_id)


def test_a_farm_whose_keeper_was_killed_ends_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with running_farm(tmp_path / "home") as farm:
        flag = tmp_path / "flag"
        submission_id = farm.submit(small_sweep.plan("model", cores=(8,), prompt=f"wait={flag}"))
        farm.wait_until(flag.exists, what="the run")
        keeper = local.running(farm.settings)
        assert keeper is not None
        kill(keeper.pid)
        farm.wait_until(lambda: not processes_of(farm.settings.home), what="the end of all processes")
        flag.unlink()
        farm.start()
        farm.wait_until(flag.exists, what="the run again")
        flag.unlink()
        farm.wait_for_end(submission_id)
        farm.assert_sound(submission_id)


def test_the_sweep_of_a_killed_client_ends(tmp_path: Path) -> None:
    from tests.farm_home import write_checkpoint

    model = write_checkpoint(tmp_path / "model")
    with running_farm(tmp_path / "home") as farm:
        client = subprocess.Popen(
            [*COMMAND, "submit", "--model", model, "--cores", "8,14,16", "--prompt", "sleep=0.3", "--wait"],
            env={**os.environ, **farm_settings.to_environ(farm.settings)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        farm.wait_until(lambda: any(state is JobState.SUCCEEDED for state in farm.states(1)), what="the first result")
        client.send_signal(signal.SIGKILL)
        assert client.wait() == -signal.SIGKILL
        farm.wait_for_end(1)
        farm.assert_sound(1)
        assert len(farm.jobs(1)) == 8


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    settings = farm_settings.load(home=str(tmp_path / "home"), environ={})

    def interrupt(doing: str) -> None:
        if doing == "starting the nodes":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        local.start(settings, node_module="tests.small_node", progress=interrupt)
    assert local.running(settings) is None
    assert processes_of(settings.home) == []


def test_a_node_that_does_not_start_is_named(tmp_path: Path) -> None:
    settings = farm_settings.load(home=str(tmp_path / "home"), environ={})
    with pytest.raises(FarmError, match=r"could not list devices: .*no_such_module"):
        local.start(settings, node_module="no_such_module")
    assert processes_of(settings.home) == []


def test_bad_simulated_devices_are_named(tmp_path: Path) -> None:
    settings = farm_settings.load(home=str(tmp_path / "home"), environ={})
    with pytest.raises(FarmError, match=r"could not install simulated devices: .*ultraa"):
        local.start(settings, devices="ultraa:1")
    assert processes_of(settings.home) == []


def test_a_home_that_cannot_be_written_is_a_storage_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = farm_settings.load(home=str(tmp_path / "file" / "home"), environ={})
    with pytest.raises(StorageFault, match=r"cannot write to its home .*choose another home with --home or FARM_HOME"):
        local.start(settings)
    read_only = dataclasses.replace(settings, home=Path("/proc/no-farm-here"))
    with pytest.raises(StorageFault, match=r"cannot write to its home /proc/no-farm-here"):
        local.start(read_only)
