"""How long a loss costs, on a real farm of small stages: figures beside the length of the lease that decides.

A node's process is frozen or killed while it carries out a run, and the time is taken until the run's next attempt is
claimed elsewhere; the leading scheduler is killed, and the time is taken until the other one leads.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from benchmarks import measure
from farm import db
from farm import settings as farm_settings
from farm.db import Database
from farm.home import local
from farm.lifecycle import jobs
from farm.models import attempts, leader, nodes
from farm.settings import Settings
from tests import small_sweep

LEASE_S = 10.0
LEADER_LEASE_S = 5.0  # as farm.scheduler has it
_POLL_S = 0.01
_LIMIT_S = 120.0


def wait_until(condition: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _LIMIT_S:
            sys.exit("what was waited for did not come")
        time.sleep(_POLL_S)
    return time.monotonic() - began


def time_of_loss(database: Database, flag: Path, *, number: signal.Signals) -> float:
    """Seconds from a signal to a run's node until the run is claimed elsewhere."""
    with database.write() as connection:
        plan = small_sweep.plan(f"model{flag.name}", cores=(8,), prompt=f"wait={flag}")
        submission_id = jobs.submit(connection, plan, name="loss", owner="bench", request={})
    wait_until(flag.exists)
    running = (
        sa.select(nodes.c.pid, attempts.c.job_id)
        .join(attempts, attempts.c.node_id == nodes.c.id)
        .where(attempts.c.state == "running")
    )
    with database.read() as connection:
        pid, job_id = connection.execute(running).one()
    count = sa.select(sa.func.count()).where(attempts.c.job_id == job_id)

    def again() -> bool:
        with database.read() as connection:
            return bool(connection.scalar(count) == 2)

    os.kill(pid, number)
    took_s = wait_until(again)
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    unfinished = sa.select(jobs.jobs.c.id).where(
        jobs.jobs.c.submission_id == submission_id, jobs.jobs.c.finished_at.is_(None)
    )

    def ended() -> bool:
        flag.unlink(missing_ok=True)
        with database.read() as connection:
            return connection.execute(unfinished).first() is None

    wait_until(ended)
    return took_s


def time_of_failover(database: Database, settings: Settings) -> float:
    """Seconds from SIGKILL to the leading scheduler until another that runs leads."""

    def holder() -> str:
        with database.read() as connection:
            return str(connection.scalar(sa.select(leader.c.holder)))

    environ = {**os.environ, **farm_settings.to_environ(settings)}
    command = [sys.executable, "-m", "farm.scheduler"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as second:
        try:
            # Until the second one has waited for the lead at least once: it is up when it has opened the database.
            wait_until(lambda: any(Path(path).samefile(settings.home / "farm.db") for path in _open_files(second.pid)))
            # The one of the last run has ended, and is still named until the next one leads.
            wait_until(lambda: _lives(holder()))
            first = holder()
            os.kill(_pid(first), signal.SIGKILL)
            return wait_until(lambda: holder() != first)
        finally:
            second.terminate()


def _pid(holder: str) -> int:
    return int(holder.split(":")[1])


def _lives(holder: str) -> bool:
    import psutil

    return bool(psutil.pid_exists(_pid(holder)))


def _open_files(pid: int) -> list[str]:
    import psutil

    return [found.path for found in psutil.Process(pid).open_files()]


def measure_all(runs: int) -> list[measure.Figure]:
    """Median seconds of each loss."""
    with tempfile.TemporaryDirectory(prefix="bench-loss-") as name:
        settings = dataclasses.replace(
            farm_settings.load(home=str(Path(name) / "home"), environ={"HOME": name, "PATH": os.environ["PATH"]}),
            lease_s=LEASE_S,
        )
        local.start(settings, node_module="tests.small_node")
        database = db.open_database(settings.database_url)
        try:
            killed, frozen = (
                [time_of_loss(database, Path(name) / f"{number}{run}", number=number) for run in range(runs)]
                for number in (signal.SIGKILL, signal.SIGSTOP)
            )
            led = [time_of_failover(database, settings) for _ in range(runs)]
        finally:
            database.dispose()
            local.stop(settings)
    return [
        measure.Figure(
            name="SIGKILL of a node until its job runs again, beside the lease",
            ours=statistics.median(killed),
            peer=LEASE_S,
            unit="s",
            goal=LEASE_S + 5,
        ),
        measure.Figure(
            name="a node frozen until its job runs elsewhere, beside the lease",
            ours=statistics.median(frozen),
            peer=LEASE_S,
            unit="s",
            goal=LEASE_S + 5,
        ),
        measure.Figure(
            name="SIGKILL of the leading scheduler until another leads",
            ours=statistics.median(led),
            peer=LEADER_LEASE_S,
            unit="s",
            goal=LEADER_LEASE_S + 1,
        ),
    ]


if __name__ == "__main__":
    measure.main(measure_all, runs=3)
