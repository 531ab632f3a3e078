"""From ``farm submit`` to a running job on an idle farm, and what an idle farm costs.

The nodes end what they claim at once, so what is measured is submission, scheduler, broker and claim.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import sqlalchemy as sa

from benchmarks import measure
from benchmarks.noop_throughput import plan
from farm import db, testing
from farm import settings as farm_settings
from farm.fleet import devices
from farm.home import local
from farm.lifecycle import jobs
from farm.models import attempts, metadata
from farm.models import jobs as job_rows
from farm.scheduling import rounds

_LATENCY_GOAL_MS, _IDLE_GOAL_PERCENT = 100.0, 1.0
_QUIET_S = 4.0  # the scheduler looks more often for a while after something happened
_IDLE_S = 60.0  # two checks of the devices
_POLL_S = 0.02
_HOUR_S = 3600
_HEARTBEAT_S = 2


def latency_ms(database: db.Database) -> float:
    """Milliseconds from the submission's commit to the claim of its only job."""
    with database.write() as connection:
        submission_id = jobs.submit(connection, plan(1), name="one", owner="bench", request={"at": time.time_ns()})
    submitted = time.time()
    started = sa.select(attempts.c.started_at).join(job_rows, job_rows.c.id == attempts.c.job_id)
    started = started.where(job_rows.c.submission_id == submission_id, job_rows.c.finished_at.is_not(None))
    while True:
        with database.read() as connection:
            found = connection.scalar(started)
        if found is not None:
            return 1e3 * float(found - submitted)
        time.sleep(_POLL_S)


def cpu_s(processes: list[psutil.Process]) -> float:
    """CPU seconds of processes so far, with those of children that have ended, as the tool that looks at devices."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def running_figures(runs: int) -> list[measure.Figure]:
    """Latency and idle cost of a running farm."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        settings = farm_settings.load(home=str(Path(name) / "home"), environ={"HOME": name})
        found = local.start(settings, node_module="benchmarks.bare_node")
        database = db.open_database(settings.database_url)
        try:
            latency_ms(database)
            took = []
            for _ in range(runs):
                time.sleep(_QUIET_S)
                took.append(latency_ms(database))
            time.sleep(_QUIET_S)
            keeper = psutil.Process(found.pid)
            processes = [keeper, *keeper.children(recursive=True)]
            before = cpu_s(processes)
            time.sleep(_IDLE_S)
            percent = 100 * (cpu_s(processes) - before) / _IDLE_S
        finally:
            database.dispose()
            local.stop(settings)
    return [
        measure.Figure(
            name="submit to running, idle farm", ours=statistics.median(took), unit="ms", goal=_LATENCY_GOAL_MS
        ),
        measure.Figure(name="idle farm with three nodes, of a core", ours=percent, unit="%", goal=_IDLE_GOAL_PERCENT),
    ]


def idle_hour_figures() -> list[measure.Figure]:
    """Growth of rows and memory over the rounds and heartbeats of an idle hour."""
    with testing.fresh_database() as database:
        host = testing.add_host(database)
        testing.add_submission(database, plan(1))
        settings = farm_settings.load(environ={"HOME": tempfile.gettempdir()})

        def minutes(number: int) -> None:
            for second in range(60 * number):
                rounds.tick(database, settings=settings, term=None, sender=None, full=True)
                if second % _HEARTBEAT_S == 0:
                    with database.write() as connection:
                        for node_id in (host.host_node, *host.device_nodes):
                            devices.node_heartbeat(connection, node_id)

        minutes(5)
        memory, rows = psutil.Process().memory_info().rss, count_rows(database)
        minutes(_HOUR_S // 60)
        grown_mb = (psutil.Process().memory_info().rss - memory) / 1e6
        grown_rows = count_rows(database) - rows
    return [
        measure.Figure(name="idle hour, rows more", ours=grown_rows, unit="rows", goal=0),
        measure.Figure(name="idle hour, scheduler's memory more", ours=grown_mb, unit="MB", goal=1.0),
    ]


def count_rows(database: db.Database) -> int:
    """Rows of all tables."""
    with database.read() as connection:
        counts = (
            connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in metadata.tables.values()
        )
        return sum(count or 0 for count in counts)


def measure_all(runs: int) -> list[measure.Figure]:
    """All figures; at least seven submissions."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return running_figures(max(runs, 7)) + idle_hour_figures()


if __name__ == "__main__":
    measure.main(measure_all, runs=7)
