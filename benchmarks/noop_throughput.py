"""No-op jobs per second through the whole farm, beside plain Celery with the same broker.

Ours: submitted rows, scheduler, outbox, broker, node, claim, a process group of its own for each job, artifact
published, settled. Plain Celery: the same node settings, a task that returns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa
from celery import Celery

from benchmarks import measure
from farm import db, jobs, local, wire
from farm import settings as farm_settings
from farm.models import jobs as job_rows
from farm.plan import Plan, PlannedJob, PlannedPoint
from qeff_engine import spec

NUM_JOBS = 200
NUM_TASKS = 2000
_QUEUE = "bench"
_POLL_S = 0.02

app = Celery("bench")
app.conf.update(
    broker_url=os.environ.get("BENCH_BROKER_URL", "memory://"),
    broker_transport_options=wire.BROKER_TRANSPORT,
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_pool="threads",
    task_default_queue=_QUEUE,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
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
        stage_spec = spec.ResolveSpec(source=f"/noop/{index}", kind="directory", fingerprint=str(index))
        planned.append(
            PlannedJob(
                plan_key=str(index), stage=stage_spec.STAGE, spec=stage_spec.to_json(), label=f"noop {index}", inputs={}
            )
        )
    return Plan(jobs=tuple(planned), points=tuple(PlannedPoint(axes={}, plan_keys=(job.plan_key,)) for job in planned))


def farm_rate(settings: farm_settings.Settings) -> float:
    """Jobs per second of a running farm, from the first claim to the last settlement."""
    database = db.open_database(settings.database_url)
    with database.write() as connection:
        jobs.submit(connection, plan(NUM_JOBS), name="noop", owner="bench", request={})
    done = sa.select(sa.func.count()).where(job_rows.c.state == "succeeded")
    while True:
        with database.read() as connection:
            if connection.scalar(done) == NUM_JOBS:
                break
        time.sleep(_POLL_S)
    with database.read() as connection:
        first, last = connection.execute(
            sa.select(sa.func.min(job_rows.c.created_at), sa.func.max(job_rows.c.finished_at))
        ).one()
    database.dispose()
    return float(NUM_JOBS / (last - first))


def celery_rate(broker_url: str, directory: Path) -> float:
    """Tasks per second of plain Celery, from the first send to the last byte."""
    counted = directory / "counted"
    counted.touch()
    environ = {**os.environ, "BENCH_BROKER_URL": broker_url}
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.noop_throughput", "worker", "-c", "4", "-l", "ERROR"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.conf.broker_url = broker_url
    with subprocess.Popen(command, env=environ) as worker:
        try:
            count.delay(str(counted))
            while counted.stat().st_size < 1:
                time.sleep(_POLL_S)
            began = time.perf_counter()
            for _ in range(NUM_TASKS):
                count.delay(str(counted))
            while counted.stat().st_size < NUM_TASKS + 1:
                time.sleep(_POLL_S)
            return NUM_TASKS / (time.perf_counter() - began)
        finally:
            worker.terminate()


def measure_all(runs: int) -> list[measure.Figure]:
    """Jobs per second; one run of each, since a run is long."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = farm_settings.load(home=str(Path(name) / "home"), environ={"HOME": name})
        local.start(settings, node_module="benchmarks.noop_node")
        try:
            ours = farm_rate(settings)
            peer = celery_rate(settings.broker_url, Path(name))
        finally:
            local.stop(settings)
    return [
        measure.Figure(
            name="no-op jobs through the farm beside plain Celery",
            ours=ours,
            peer=peer,
            unit="jobs/s",
            goal=0.5,
            at_most=False,
            goal_is_ratio=True,
        )
    ]


if __name__ == "__main__":
    measure.main(measure_all, runs=1)
