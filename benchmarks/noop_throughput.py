"""No-op jobs per second through the whole farm, beside plain Celery with the same broker.

Ours: submitted rows, scheduler, outbox, broker, node, claim, finish; once with nodes that end what they claim at once,
and once with a stage process and a published artifact for each job. Plain Celery: a task that adds a byte to a file,
with Celery's defaults and two processes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa
from celery import Celery

from benchmarks import measure
from farm import db
from farm import settings as farm_settings
from farm.home import local
from farm.lifecycle import jobs
from farm.models import jobs as job_rows
from farm.plan import Plan, PlannedJob, PlannedPoint
from qeff_engine import spec

NUM_JOBS = 2000
NUM_WITH_PROCESS = 200
NUM_TASKS = 2000
_QUEUE = "bench"
_POLL_S = 0.05
_LEARNT_S = 3.0  # the farm learns how short such jobs are a moment after the first have ended

app = Celery("bench")
app.conf.update(
    broker_url=os.environ.get("BENCH_BROKER_URL", "memory://"),
    task_ignore_result=True,
    task_default_queue=_QUEUE,
    broker_connection_retry_on_startup=True,
)


@app.task(name="bench.count")  # type: ignore[untyped-decorator, unused-ignore]
def count(path: str) -> None:
    """Add a byte to a file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b".")
    os.close(descriptor)


def plan(number: int) -> Plan:
    """Independent jobs that need a host slot each."""
    planned = []
    for index in range(number):
        stage_spec = spec.ResolveSpec(
            source=f"/noop/{index}", kind="directory", fingerprint=f"{time.time_ns()}-{index}"
        )
        planned.append(
            PlannedJob(
                plan_key=str(index), stage=stage_spec.STAGE, spec=stage_spec.to_json(), label=f"noop {index}", inputs={}
            )
        )
    return Plan(jobs=tuple(planned), points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def farm_rate(database: db.Database, number: int) -> float:
    """Jobs per second of a running farm, from the commit of their submission to the last that has ended."""
    with database.write() as connection:
        submission_id = jobs.submit(connection, plan(number), name="noop", owner="bench", request={})
    began = time.time()
    mine = job_rows.c.submission_id == submission_id
    while True:
        with database.read() as connection:
            ended = connection.scalar(sa.select(sa.func.count()).where(mine, job_rows.c.state == "succeeded"))
            last = connection.scalar(sa.select(sa.func.max(job_rows.c.finished_at)).where(mine))
        if ended == number:
            return float(number / (last - began))
        time.sleep(_POLL_S)


def celery_rate(broker_url: str, directory: Path) -> float:
    """Tasks per second of plain Celery, from the first send to the last byte."""
    counted = directory / f"counted-{time.time_ns()}"
    counted.touch()
    environ = {**os.environ, "BENCH_BROKER_URL": broker_url}
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.noop_throughput", "worker", "-c", "2", "-l", "ERROR"]
    sender = Celery("bench-sender", broker=broker_url, set_as_current=False)
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as worker:
        try:
            sender.send_task(count.name, args=[str(counted)], queue=_QUEUE, ignore_result=True)
            while counted.stat().st_size < 1:
                time.sleep(_POLL_S)
            began = time.perf_counter()
            for _ in range(NUM_TASKS):
                sender.send_task(count.name, args=[str(counted)], queue=_QUEUE, ignore_result=True)
            while counted.stat().st_size < NUM_TASKS + 1:
                time.sleep(_POLL_S)
            return NUM_TASKS / (time.perf_counter() - began)
        finally:
            worker.terminate()
            sender.close()


def rates(node_module: str, number: int, *, runs: int) -> tuple[list[float], list[float]]:
    """Rates of a farm, and of plain Celery with its broker, in turn."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = farm_settings.load(home=str(Path(name) / "home"), environ={"HOME": name})
        local.start(settings, node_module=node_module)
        database = db.open_database(settings.database_url)
        try:
            farm_rate(database, number // 10)
            time.sleep(_LEARNT_S)
            ours, peer = [], []
            for _ in range(runs):
                ours.append(farm_rate(database, number))
                peer.append(celery_rate(settings.broker_url, Path(name)))
        finally:
            database.dispose()
            local.stop(settings)
    return ours, peer


def measure_all(runs: int) -> list[measure.Figure]:
    """Jobs per second; at least five runs of each, in turn."""
    figures = []
    for name, module, number, goal in (
        ("no-op jobs: SQL, outbox, broker, claim, finish", "benchmarks.bare_node", NUM_JOBS, 0.5),
        ("no-op jobs with a stage process and an artifact", "benchmarks.noop_node", NUM_WITH_PROCESS, None),
    ):
        ours, peer = rates(module, number, runs=max(runs, 5))
        figures.append(
            measure.Figure(
                name=name,
                ours=statistics.median(ours),
                peer=statistics.median(peer),
                unit="jobs/s",
                goal=goal,
                at_most=False,
                goal_is_ratio=True,
            )
        )
    return figures


if __name__ == "__main__":
    measure.main(measure_all, runs=5)
