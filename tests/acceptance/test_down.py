"""Ways down: finish what runs, hand it back, kill; and a farm in the foreground of a service manager."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from farm import settings as farm_settings
from farm.home import local
from farm.states import JobState
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, assert_nothing_left, processes_of, running_farm


def environ(farm: RunningFarm) -> dict[str, str]:
    return {**os.environ, **farm_settings.to_environ(farm.settings)}


def down(farm: RunningFarm, *options: str) -> tuple[int, dict[str, object]]:
    """Exit code and document of ``farm down``."""
    done = subprocess.run(
        [sys.executable, "-m", "farm", "down", "--json", *options],
        env=environ(farm),
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_what_runs_is_waited_for_or_handed_back_and_nothing_new_begins(tmp_path: Path) -> None:
    with running_farm(tmp_path / "home") as farm:
        home, flag = str(farm.settings.home), tmp_path / "flag"
        submission_id = farm.submit(small_sweep.plan(f"wait={flag}", cores=(8,)))
        farm.wait_until(flag.exists, what="the stage")
        first = farm.jobs(submission_id)[0].id
        found = down(farm, "--finish", "--timeout", "1s")
        assert found == (1, {"home": home, "was_up": True, "finished": False, "handed_back": [first]})
        job = farm.jobs(submission_id)[0]
        assert (job.state, job.failures) == (JobState.READY, 0)
        assert_nothing_left(farm.settings.home)
        flag.unlink()
        farm.start()
        farm.wait_until(flag.exists, what="the stage again")
        with subprocess.Popen(
            [sys.executable, "-m", "farm", "down", "--finish"], env=environ(farm), stderr=subprocess.PIPE, text=True
        ) as command:
            assert command.stderr is not None
            assert "Waiting for j1 resolve" in command.stderr.readline()
            flag.unlink()
            assert command.wait() == 0
        assert [job.state for job in farm.jobs(submission_id)[:2]] == [JobState.SUCCEEDED, JobState.READY]
        assert farm.starts() == {first: 2}
        assert_nothing_left(farm.settings.home)
        assert down(farm) == (0, {"home": home, "was_up": False, "finished": True, "handed_back": []})


def test_the_first_interrupt_hands_back_and_the_second_kills_whatever_does_not_listen(tmp_path: Path) -> None:
    with running_farm(tmp_path / "home") as farm:
        fled, flag = tmp_path / "fled", tmp_path / "flag"
        submission_id = farm.submit(small_sweep.plan(f"deaf;flee=daemon:{fled};wait={flag}", cores=(8,)))
        farm.wait_until(flag.exists, what="the stage")
        os.kill(farm.children["host"], signal.SIGSTOP)
        with subprocess.Popen(
            [sys.executable, "-m", "farm", "down", "--finish"], env=environ(farm), stderr=subprocess.PIPE, text=True
        ) as command:
            assert command.stderr is not None
            assert "Waiting for" in command.stderr.readline()
            command.send_signal(signal.SIGINT)
            assert "handed back. Ctrl-C kills it." in command.stderr.readline()
            command.send_signal(signal.SIGINT)
            assert command.stderr.readline() == "Killing all processes.\n"
            assert command.wait() == 1
        assert "Restarting" not in (farm.settings.log_dir / "host.log").read_text()
        farm.wait_until(lambda: not psutil.pid_exists(int(fled.read_text())), what="the end of the daemon")
        assert_nothing_left(farm.settings.home)
        job = farm.jobs(submission_id)[0]
        assert (job.state, job.failures) == (JobState.READY, 0)
        with farm.database.read() as connection:
            from farm.views import queries

            assert [attempt.state for attempt in queries.attempt_list(connection, job.id)] == ["interrupted"]


@contextlib.contextmanager
def in_foreground(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], farm_settings.Settings]]:
    settings = farm_settings.load(home=str(home), environ={"PATH": os.environ["PATH"]})
    code = "from farm import settings\nfrom farm.home import local\n"
    code += "local.foreground(settings.load(), node_module='tests.small_node')"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **farm_settings.to_environ(settings)},
        stderr=subprocess.DEVNULL,
    ) as process:
        yield process, settings


def test_a_farm_in_the_foreground_is_its_own_first_process_and_ends_with_a_signal(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with in_foreground(home) as (process, settings):
        farm = RunningFarm(settings, starts=tmp_path, node_module="tests.small_node")

        def ready() -> bool:
            found = local.running(settings)
            return found is not None and found.phase == local.READY

        farm.wait_until(ready, what="the farm")
        found = local.running(settings)
        assert found is not None
        assert found.pid == process.pid
        groups = {os.getpgid(child.pid) for child in found.children.values()}
        assert os.getpgid(process.pid) not in groups, "a Ctrl-C at the terminal would reach them"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        farm.database.dispose()
    assert processes_of(home) == []
