"""An embedded farm with real processes, for tests: start, submit, wait on state, kill, look."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from farm import db
from farm import settings as farm_settings
from farm.home import local
from farm.lifecycle import jobs
from farm.models import attempts, core_leases, host_leases, nodes
from farm.models import jobs as job_rows
from farm.plan import Plan
from farm.settings import Settings
from farm.states import FINAL, JobState
from farm.views import queries

LIMIT_S = 90.0  # a deadline, not a measurement: what takes so long hangs
_POLL_S = 0.05


class RunningFarm:
    """A farm of a home, whose stages leave a file per start in ``starts``."""

    def __init__(self, settings: Settings, *, starts: Path, node_module: str) -> None:
        self.settings = settings
        self.database = db.open_database(settings.database_url)
        self._starts = starts
        self._node_module = node_module

    def start(self) -> local.LocalFarm:
        """Bring it up."""
        return local.start(self.settings, node_module=self._node_module)

    def stop(self) -> None:
        """Bring it down."""
        local.stop(self.settings)

    @property
    def children(self) -> dict[str, int]:
        """Pids of its processes by name."""
        found = local.running(self.settings)
        assert found is not None, "the keeper does not run"
        return {name: child.pid for name, child in found.children.items()}

    def submit(self, plan: Plan) -> int:
        """Submit a plan; the submission's id."""
        with self.database.write() as connection:
            return jobs.submit(connection, plan, name="test", owner="test", request={})

    def jobs(self, submission_id: int) -> list[queries.Job]:
        """The jobs of a submission by id."""
        with self.database.read() as connection:
            return queries.job_list(connection, submission_id=submission_id, limit=None)[::-1]

    def attempts(self, submission_id: int) -> list[queries.Attempt]:
        """The attempts of a submission's jobs."""
        with self.database.read() as connection:
            return [found for job in self.jobs(submission_id) for found in queries.attempt_list(connection, job.id)]

    def states(self, submission_id: int) -> dict[JobState, int]:
        """How many jobs of a submission are in each state."""
        return collections.Counter(job.state for job in self.jobs(submission_id))

    def wait_until(self, condition: Callable[[], bool], *, what: str) -> None:
        """Wait for a state; fails the test after a deadline."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come; logs are in {self.settings.log_dir}"
            time.sleep(_POLL_S)

    def wait_for_end(self, submission_id: int) -> None:
        """Wait until every job of a submission has ended."""
        self.wait_until(
            lambda: all(job.state in FINAL for job in self.jobs(submission_id)),
            what=f"the end of s{submission_id} ({dict(self.states(submission_id))})",
        )

    def starts(self) -> collections.Counter[int]:
        """How often a stage was started, by job."""
        return collections.Counter(int(path.name.partition(".")[0]) for path in self.start_files())

    def start_files(self) -> list[Path]:
        """An empty file ``JOB.ATTEMPT-...`` per start of a stage, made when it began."""
        return sorted(self._starts.iterdir())

    def stage_pids(self) -> list[int]:
        """Leaders of the stages' process groups."""
        found = []
        for path in (self.settings.run_dir / "attempts").glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError):
                group = json.loads(path.read_text())["group"]
                if group is not None and psutil.pid_exists(group["pid"]):
                    found.append(group["pid"])
        return found

    def node_of(self, job_id: int) -> int:
        """The process that looks after a running job."""
        with self.database.read() as connection:
            query = (
                sa.select(nodes.c.pid)
                .join(attempts, attempts.c.node_id == nodes.c.id)
                .where(attempts.c.job_id == job_id, attempts.c.state == "running")
            )
            return int(connection.execute(query).scalar_one())

    def freeze(self, pid: int) -> None:
        """SIGSTOP, but not within a transaction of SQLite, which would let nobody else write until it goes on."""
        if self.database.dialect != "sqlite":
            os.kill(pid, signal.SIGSTOP)
            return

        def frozen() -> bool:
            os.kill(pid, signal.SIGSTOP)
            look = sqlite3.connect(self.settings.home / "farm.db", isolation_level=None, timeout=0.5)
            try:
                look.execute("BEGIN IMMEDIATE")
                look.execute("ROLLBACK")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False
            finally:
                look.close()
            return True

        self.wait_until(frozen, what="a moment outside of transactions")

    def assert_sound(self, submission_id: int) -> None:
        """Every job succeeded once, nothing is held, nothing runs, nothing is left over."""
        found = self.jobs(submission_id)
        assert {job.state for job in found} <= {JobState.SUCCEEDED, JobState.CACHED}, [
            (job.label, job.state, job.failure_message) for job in found
        ]
        with self.database.read() as connection:
            counted = connection.execute(
                sa.select(attempts.c.job_id, sa.func.count())
                .join(job_rows, job_rows.c.id == attempts.c.job_id)
                .where(attempts.c.state == "succeeded", job_rows.c.submission_id == submission_id)
                .group_by(attempts.c.job_id)
            )
            successes = {row[0]: row[1] for row in counted}
            assert connection.scalar(sa.select(sa.func.count()).select_from(core_leases)) == 0
            assert connection.scalar(sa.select(sa.func.count()).select_from(host_leases)) == 0
            assert connection.scalar(sa.select(sa.func.count()).where(attempts.c.state == "running")) == 0
        assert successes == {job.id: 1 for job in found if job.state is JobState.SUCCEEDED}
        self.wait_until(lambda: not self.stage_pids(), what="the end of all stage processes")
        self.wait_until(lambda: not leftovers(self.settings.home), what="the end of all temporary files")


def kill(pid: int) -> None:
    """SIGKILL, as an out-of-memory killer or an operator would."""
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_farm(home: Path, *, node_module: str = "tests.small_node", **changes: Any) -> Iterator[RunningFarm]:
    """A farm that is up, and down afterwards with nothing left of it."""
    starts = home / "starts"
    starts.mkdir(parents=True)
    settings = dataclasses.replace(
        farm_settings.load(home=str(home), environ={"PATH": os.environ["PATH"]}),
        **{"heartbeat_s": 0.5, "lease_s": 20.0, "queued_resend_s": 2.0, "cancel_grace_s": 1.0, **changes},
    )
    before = os.environ.get("QEFF_TEST_STARTS")
    os.environ["QEFF_TEST_STARTS"] = str(starts)
    farm = RunningFarm(settings, starts=starts, node_module=node_module)
    try:
        farm.start()
        yield farm
    finally:
        farm.stop()
        farm.database.dispose()
        os.environ.pop("QEFF_TEST_STARTS")
        if before is not None:
            os.environ["QEFF_TEST_STARTS"] = before
    assert_nothing_left(home)


def assert_nothing_left(home: Path) -> None:
    """No process of the farm, no socket, no temporary file."""
    deadline = time.monotonic() + 10
    while processes_of(home) and time.monotonic() < deadline:  # a killed fork server needs a moment to be reaped
        time.sleep(_POLL_S)
    assert processes_of(home) == []
    assert [path for path in home.rglob("*") if path.is_socket()] == []
    assert leftovers(home) == []


def leftovers(home: Path) -> list[Path]:
    """Files that belong to attempts which have ended."""
    return [path for folder in ("scratch", "store/tmp") for path in (home / folder).glob("*")]


def processes_of(home: Path) -> list[str]:
    """Command lines of processes whose environment names the home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("FARM_HOME") == str(home):
                found.append(" ".join(process.cmdline()))
    return found
