"""What is expected of a job that has not ended: how long it takes, when it starts, when it ends. Reads only."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import sqlalchemy as sa

from farm import durations
from farm.models import attempts, jobs, literal
from farm.needs import sdk_of
from farm.placement import estimates
from farm.placement.estimates import Estimate
from farm.scheduling import history
from farm.states import FINAL, JobState
from farm.views import inventory, queries

_UNKNOWN = "nobody has run the like"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is expected of a job.

    Attributes:
        prediction: what the farm would predict now, and from which attempts.
        ahead: of a ready job: how many for the same kind of place come before it by priority and age.
        starts_at: when a ready job is expected to start; None when nobody can tell.
        ends_at: when a running job is expected to end, put off when that has passed.
        reserved_bytes: of a running job: what it has of its host's memory.
    """

    prediction: Estimate
    ahead: int | None = None
    starts_at: float | None = None
    ends_at: float | None = None
    reserved_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        found = dataclasses.asdict(self)
        return {**found.pop("prediction"), **found}

    def sentences(self, *, now: float) -> list[str]:
        """The same for people."""
        said = []
        if self.starts_at is not None:
            said.append(f"It is expected to start {_when(self.starts_at, now=now)}.")
        if self.ahead:
            come = "job for the same kind of place comes" if self.ahead == 1 else "jobs for the same kind of place come"
            said.append(f"{self.ahead} ready {come} before it by priority and age; shares and what fits count, too.")
        if self.ends_at is not None:
            said.append(f"It is expected to end {_when(self.ends_at, now=now)}.")
        prediction = self.prediction
        took, reserved = _about(prediction.expected_s), _about(prediction.reserved_s)
        said.append(f"Such a job is predicted to run {took}, and reserves {reserved}: {_basis(prediction)}.")
        if self.reserved_bytes:
            said.append(f"It has {self.reserved_bytes / 2**30:.1f} GiB of its host's memory to itself.")
        elif prediction.ram_bytes and self.ends_at is None:
            said.append(f"It will reserve {prediction.ram_bytes / 2**30:.1f} GiB of its host's memory.")
        return said


def of(connection: sa.Connection, job: queries.Job, *, now: float) -> Outlook | None:
    """What is expected of a job; None when it has ended."""
    if job.state in FINAL:
        return None
    sdk = sdk_of(inventory.toolchain(connection))
    prediction = history.predict(connection, [job.id], sdk=sdk)[job.id]
    if job.state == JobState.READY:
        return Outlook(prediction=prediction, ahead=_ahead(connection, job), starts_at=job.forecast_at)
    if job.state != JobState.RUNNING:
        return Outlook(prediction=prediction)
    row = connection.execute(
        sa.select(attempts.c.started_at, attempts.c.ram_bytes).where(
            attempts.c.job_id == job.id, attempts.c.number == job.attempt
        )
    ).one()
    expected_s = job.expected_s if job.expected_s is not None else prediction.expected_s
    ends_at = estimates.ends_at(started_at=row.started_at, reserved_s=expected_s, now=now)
    return Outlook(prediction=prediction, ends_at=ends_at, reserved_bytes=row.ram_bytes)


def _ahead(connection: sa.Connection, job: queries.Job) -> int:
    place = jobs.c.num_cores > literal(0) if job.num_cores else jobs.c.num_cores == literal(0)
    earlier = sa.and_(jobs.c.priority == job.priority, jobs.c.ready_at < job.ready_at)
    query = sa.select(sa.func.count()).where(
        jobs.c.state == literal(JobState.READY),
        jobs.c.held == literal(0),
        place,
        sa.or_(jobs.c.priority > job.priority, earlier),
    )
    return connection.execute(query).scalar_one()


def _when(at: float, *, now: float) -> str:
    if at <= now:
        return "at any moment"
    return f"in about {_about(at - now)}, at {time.strftime('%H:%M:%S', time.localtime(at))}"


def _about(seconds: float) -> str:
    """A duration without figures that nobody can know."""
    return durations.words(round(seconds) if seconds >= 1 else round(seconds, 1))


def _basis(prediction: Estimate) -> str:
    """Where a prediction comes from, in words."""
    key = prediction.from_key
    if key is None:
        return _UNKNOWN
    what = "this very work" if "/spec=" in key else "this model" if "/model=" in key else "this stage"
    width = " on as many cores" if "/cores=" in key and "/spec=" not in key else ""
    times = "once" if prediction.num_samples == 1 else f"{prediction.num_samples} times"
    return f"{what}{width} was done {times}"
