"""From the commit of a cancellation to the death of the stage's last process.

Once for a stage with a child that both listen to SIGTERM, once for one that ignores it and whose child is a daemon.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import measure
from farm import db
from farm import settings as farm_settings
from farm.home import local
from farm.lifecycle import jobs
from farm.plan import Plan, PlannedJob, PlannedPoint
from qeff_engine import spec

_GOAL_S = 2.0
_POLL_S = 0.005
_LIMIT_S = 60.0


def plan(source: str) -> Plan:
    """One job that needs a host slot."""
    stage_spec = spec.ResolveSpec(source=source, kind="directory", fingerprint=str(time.time_ns()))
    job = PlannedJob(plan_key="0", stage=stage_spec.STAGE, spec=stage_spec.to_json(), label="endless", inputs={})
    return Plan(jobs=(job,), points=(PlannedPoint(axes={}, plan_keys=("0",)),))


def end_s(database: db.Database, *, how: str, pids_file: Path) -> float:
    """Seconds from the cancellation of a new job to the end of its processes."""
    with database.write() as connection:
        source = f"{how}:{pids_file}"
        submission_id = jobs.submit(connection, plan(source), name="endless", owner="bench", request={})
    deadline = time.monotonic() + _LIMIT_S
    while not pids_file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("the stage did not start")
        time.sleep(_POLL_S)
    pids = [int(pid) for pid in pids_file.read_text().split()]
    pids_file.unlink()
    began = time.monotonic()
    with database.write() as connection:
        jobs.cancel_submission(connection, submission_id)
    while any(map(_lives, pids)):
        time.sleep(_POLL_S)
    return time.monotonic() - began


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def measure_all(runs: int) -> list[measure.Figure]:
    """Both figures; medians of at least seven cancellations, which fall anywhere between two looks of a node."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = farm_settings.load(home=str(Path(name) / "home"), environ={"HOME": name})
        local.start(settings, node_module="benchmarks.stubborn_node")
        database = db.open_database(settings.database_url)
        try:
            for how, words in (("polite", "a stage and its child"), ("stubborn", "one that ignores it, and a daemon")):
                took = [
                    end_s(database, how=how, pids_file=Path(name) / f"{how}{number}") for number in range(max(runs, 7))
                ]
                figures.append(
                    measure.Figure(
                        name=f"cancel to last death, {words}", ours=statistics.median(took), unit="s", goal=_GOAL_S
                    )
                )
                figures.append(
                    measure.Figure(name=f"the same, the slowest of {len(took)}", ours=max(took), unit="s", goal=_GOAL_S)
                )
        finally:
            database.dispose()
            local.stop(settings)
    return figures


if __name__ == "__main__":
    measure.main(measure_all, runs=7)
