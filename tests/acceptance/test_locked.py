"""A database that another program holds for 20 s while everybody wants to write."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from farm import settings as farm_settings
from farm.errors import DatabaseBusy
from farm.views import queries
from tests import small_sweep
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.farm_home import write_checkpoint

LOCKED_S = 20.0  # twice as long as a writer waits
_HOLD = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
database.execute("ROLLBACK")
"""


@contextlib.contextmanager
def locked(farm: RunningFarm) -> Iterator[subprocess.Popen[str]]:
    """The process that holds the database from now on; it has let go when the block ends."""
    command = [sys.executable, "-c", _HOLD, farm.settings.home / "farm.db", str(LOCKED_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        assert holder.wait() == 0


def command(farm: RunningFarm, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """What a command of ``farm`` says."""
    return subprocess.run(
        [sys.executable, "-m", "farm", *words],
        env={**os.environ, **farm_settings.to_environ(farm.settings)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_is_lost_or_done_twice_and_users_are_told_what_to_do(tmp_path: Path) -> None:
    going, ending = tmp_path / "going", tmp_path / "ending"
    submit = ("submit", "--model", write_checkpoint(tmp_path / "model"), "--cores", "8", "--prompt", "x", "--json")
    with running_farm(tmp_path / "home", lease_s=2 * LOCKED_S) as farm:
        ids = [farm.submit(small_sweep.plan(str(flag), cores=(8,), prompt=f"wait={flag}")) for flag in (going, ending)]
        farm.wait_until(lambda: going.exists() and ending.exists(), what="both runs")
        before = farm.children
        with locked(farm) as holder:
            ending.unlink()
            listed = command(farm, "list", "--json")
            assert (listed.returncode, listed.stderr) == (0, "")
            assert [row["id"] for row in json.loads(listed.stdout)["rows"]] == ids[::-1]
            refused = command(farm, *submit)
            assert holder.poll() is None
            assert (refused.returncode, refused.stdout) == (DatabaseBusy.exit_code, "")
            assert refused.stderr.endswith("has held it for 10 s. Nothing was written; try again.\n")
            assert "Traceback" not in refused.stderr
            taken = command(farm, *submit)  # waits for the rest
            assert taken.returncode == 0, taken.stderr
        ids.append(int(str(json.loads(taken.stdout)["submission"]).removeprefix("s")))
        with farm.database.read() as connection:
            assert [found.id for found in queries.submission_list(connection)] == ids[::-1]
        going.unlink()
        for submission_id in ids:
            farm.wait_for_end(submission_id)
        for submission_id in ids:
            farm.assert_sound(submission_id)
        starts = farm.starts()
        assert {starts[job.id] for submission_id in ids for job in farm.jobs(submission_id)} == {1}
        assert farm.children == before, "a process of the farm was started again"
        for log in farm.settings.log_dir.glob("*.log"):
            assert "Traceback" not in log.read_text(), f"{log.name}: {log.read_text()}"
