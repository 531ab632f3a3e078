"""What must be true of a farm that has become quiet, whatever happened to it."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import sqlalchemy as sa

from farm import settings as farm_settings
from farm.models import attempts, core_leases, host_leases, jobs, outbox
from farm.states import FINAL
from farm.views import queries
from tests.acceptance.running_farm import RunningFarm

_MADE = ("succeeded", "cached")
_HELD = {
    "core leases": sa.select(sa.func.count()).select_from(core_leases),
    "host leases": sa.select(sa.func.count()).select_from(host_leases),
    "outbox rows": sa.select(sa.func.count()).select_from(outbox),
    "running attempts": sa.select(sa.func.count()).where(attempts.c.state == "running"),
}


def held(connection: sa.Connection) -> dict[str, int]:
    """What is not free: counts that are not zero."""
    counts = {name: connection.execute(query).scalar_one() for name, query in _HELD.items()}
    return {name: count for name, count in counts.items() if count}


def is_quiet(farm: RunningFarm) -> bool:
    """Whether every job has ended and nothing is held or runs."""
    with farm.database.read() as connection:
        live = connection.scalar(sa.select(sa.func.count()).where(jobs.c.state.not_in(list(map(str, FINAL)))))
        return not live and not held(connection) and not farm.stage_pids()


def broken(farm: RunningFarm) -> list[str]:
    """A sentence for each law that a quiet farm breaks, with the events of the job."""
    with farm.database.read() as connection:
        found = [f"{count} {name} are left" for name, count in held(connection).items()]
        for job_id, words in itertools.chain(_of_jobs(connection), _of_actions(connection), _of_starts(farm)):
            found.append("\n".join([f"j{job_id} {words}", *_history(connection, job_id)]))
    return found + _of_bytes(farm)


def _of_jobs(connection: sa.Connection) -> Iterator[tuple[int, str]]:
    tried = collections.defaultdict(list)
    for attempt in connection.execute(sa.select(attempts).order_by(attempts.c.job_id, attempts.c.number)):
        tried[attempt.job_id].append(attempt)
    for job in connection.execute(sa.select(jobs).order_by(jobs.c.id)):
        if job.state not in FINAL:
            yield job.id, f"is {job.state}, which is not final"
        mine = tried[job.id]
        successes = [attempt for attempt in mine if attempt.state == "succeeded"]
        if job.state == "succeeded" and len(successes) != 1:
            yield job.id, f"succeeded with {len(successes)} succeeded attempts"
        if successes and mine[-1] is not successes[0]:
            yield job.id, "was tried again after it had succeeded"
        if (job.state in _MADE) != (job.artifact is not None):
            yield job.id, f"is {job.state} with the artifact {job.artifact}"
        for before, after in itertools.pairwise(mine):
            if before.finished_at is None or before.finished_at > after.started_at:
                yield job.id, f"ran its attempts {before.number} and {after.number} at the same time"


def _of_actions(connection: sa.Connection) -> Iterator[tuple[int, str]]:
    """The same work was not done twice: nobody asked to skip the cache."""
    query = (
        sa.select(jobs.c.action_key, sa.func.count().label("number"), sa.func.max(jobs.c.id).label("last"))
        .join(attempts, attempts.c.job_id == jobs.c.id)
        .where(attempts.c.state == "succeeded")
        .group_by(jobs.c.action_key)
        .having(sa.func.count() > 1)
    )
    for row in connection.execute(query):
        yield row.last, f"did work that had been done: {row.number} successes of one action"


def _of_starts(farm: RunningFarm) -> Iterator[tuple[int, str]]:
    """What the stages themselves say: none began twice for an attempt, none after its job had succeeded."""
    with farm.database.read() as connection:
        query = sa.select(attempts.c.job_id, attempts.c.finished_at).where(attempts.c.state == "succeeded")
        succeeded = {row.job_id: row.finished_at for row in connection.execute(query)}
    began: collections.Counter[tuple[int, int]] = collections.Counter()
    for path in farm.start_files():
        job_id, number = map(int, path.name.partition("-")[0].split("."))
        began[job_id, number] += 1
        if path.stat().st_mtime > succeeded.get(job_id, float("inf")):
            yield job_id, f"began attempt {number} after it had succeeded"
    for (job_id, number), count in began.items():
        if count > 1:
            yield job_id, f"began attempt {number} {count} times"


def _of_bytes(farm: RunningFarm) -> list[str]:
    """What ``farm fsck`` finds."""
    done = subprocess.run(
        [sys.executable, "-m", "farm", "fsck", "--deep", "--json"],
        env={**os.environ, **farm_settings.to_environ(farm.settings)},
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        findings = json.loads(done.stdout)
    except ValueError:
        return [f"farm fsck ended with {done.returncode}: {done.stderr}"]
    return [f"farm fsck finds: {finding}" for finding in findings]


def _history(connection: sa.Connection, job_id: int) -> list[str]:
    return [
        f"  {event.at:.3f} attempt {event.attempt}: {event.from_state} -> {event.to_state} {event.transition}: "
        f"{event.reason}"
        for event in queries.event_list(connection, job_id=job_id)
    ]


def processes_of(home: Path) -> list[str]:
    """Processes that the home's farm or an attempt started, also those that left with an empty environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            mine = process.environ().get("FARM_HOME") == str(home) or f"{home}/" in words
            if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {words}")
    return found
