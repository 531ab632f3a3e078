"""One life of a farm: work, strikes at random moments, and a look at what is left."""

from __future__ import annotations

import collections
import dataclasses
import random
import time
from pathlib import Path

import sqlalchemy as sa

from farm.models import attempts, jobs
from farm.states import FINAL
from tests.acceptance.running_farm import RunningFarm, running_farm
from tests.chaos import laws, strikes
from tests.chaos.work import Work

LEASE_S, HEARTBEAT_S = 3.0, 0.5
_LEAST_SUBMISSIONS = 6  # that have not ended: each has a job that could run, so there is always something to be lost
_LONGEST_PAUSE_S = 0.8
_KILLS = 0.6  # share of the strikes
_WHEN_BUSY = 0.7  # share of the strikes that wait for a running job; the others may meet a farm that is recovering
_LIMIT_S = 240.0  # for becoming quiet; a deadline, not a measurement
_POLL_S = 0.05


class LawBroken(AssertionError):
    """The farm did what it must never do."""


@dataclasses.dataclass
class Tally:
    """What happened.

    Attributes:
        seed: what the order of events was chosen with; the processes themselves add chance of their own.
        kills: deaths by kind of process.
        others: other strikes by name.
        busy: kills and other strikes at a moment in which attempts ran.
        states: jobs by their final state.
        attempts: attempts by how they ended.
    """

    seed: int
    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    others: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    busy: int = 0
    states: dict[str, int] = dataclasses.field(default_factory=dict)
    attempts: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        parts = {"kills": self.kills, "other strikes": self.others, "jobs": self.states, "attempts": self.attempts}
        lines = [
            f"seed {self.seed}, {self.busy} of {self.kills.total() + self.others.total()} strikes met running jobs"
        ]
        for name, counts in parts.items():
            told = ", ".join(f"{counts[key]} {key}" for key in sorted(counts))
            lines.append(f"{sum(counts.values())} {name}: {told}")
        return "\n".join(lines)


def live_through(home: Path, *, tally: Tally, num_kills: int, database_url: str | None = None) -> None:
    """A farm's life with that many deaths; ``tally`` is filled on the way.

    Args:
        home: of the farm.
        tally: is filled.
        num_kills: how many processes.
        database_url: of an empty database; None for the home's own SQLite file.

    Raises:
        LawBroken: with a sentence for each law and the events of its job.
    """
    rng = random.Random(tally.seed)
    fled = home / "fled"
    fled.mkdir(parents=True)
    changes = {"lease_s": LEASE_S, "heartbeat_s": HEARTBEAT_S, "quarantine_s": 1.0}
    with running_farm(home, **changes, **({"database_url": database_url} if database_url else {})) as farm:
        _strike(farm, rng=rng, work=Work(fled, rng=rng), tally=tally, num_kills=num_kills)
        _await_quiet(farm)
        tally.states = _counts(farm, jobs.c.state)
        tally.attempts = _counts(farm, attempts.c.state)
        _judge(laws.broken(farm))
    _judge([f"a process is left: {words}" for words in laws.processes_of(home)])


def _strike(farm: RunningFarm, *, rng: random.Random, work: Work, tally: Tally, num_kills: int) -> None:
    harm = strikes.Harm(farm, rng=rng)
    try:
        while tally.kills.total() < num_kills:
            while _num_live(farm) < _LEAST_SUBMISSIONS:
                farm.submit(work.plan())
            time.sleep(rng.uniform(0.0, _LONGEST_PAUSE_S))  # the random moment
            if rng.random() < _WHEN_BUSY:
                farm.wait_until(lambda: _is_busy(farm, harm), what="a running job")
            if rng.random() < _KILLS:
                kind = rng.choices(list(strikes.KINDS), weights=list(strikes.KINDS.values()))[0]
                pid = rng.choice(harm.await_victims(kind))
                tally.busy += _is_busy(farm, harm)
                tally.kills[kind] += strikes.kill(farm, kind=kind, pid=pid)
            else:
                name = rng.choice(list(harm.ways))
                tally.busy += _is_busy(farm, harm)
                tally.others[name] += harm.ways[name]()
    finally:
        harm.thaw(all_of_them=True)


def _await_quiet(farm: RunningFarm) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not laws.is_quiet(farm):
        if time.monotonic() > deadline:
            raise LawBroken("\n".join(["the farm does not become quiet", *laws.broken(farm)]))
        time.sleep(_POLL_S)


def _num_live(farm: RunningFarm) -> int:
    """How many submissions have jobs that have not ended."""
    with farm.database.read() as connection:
        live = jobs.c.state.not_in(list(map(str, FINAL)))
        query = sa.select(sa.func.count(sa.distinct(jobs.c.submission_id))).where(live)
        return int(connection.execute(query).scalar_one())


def _is_busy(farm: RunningFarm, harm: strikes.Harm) -> bool:
    """Whether a job runs; frozen nodes whose time is over go on."""
    harm.thaw()
    with farm.database.read() as connection:
        return connection.execute(sa.select(attempts.c.job_id).where(attempts.c.state == "running")).first() is not None


def _counts(farm: RunningFarm, column: sa.Column[str]) -> dict[str, int]:
    with farm.database.read() as connection:
        rows = connection.execute(sa.select(column, sa.func.count()).group_by(column))
        return {row[0]: row[1] for row in rows}


def _judge(found: list[str]) -> None:
    if found:
        raise LawBroken("\n".join(found))
