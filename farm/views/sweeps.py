"""What jobs yielded and what points of a sweep are served by, whoever did the work. Reads only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from farm.models import attempts, devices, hosts, jobs, literal, nodes, point_jobs, points
from farm.views import queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """The device that a measurement was made on."""

    host: str
    qid: int
    sku: str
    simulated: bool

    @property
    def name(self) -> str:
        """For people, such as ``ultra/0``."""
        return f"{self.sku}/{self.qid}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A job with what its work yielded, whoever did it.

    Attributes:
        producer_id: job that did the work: itself, or the one whose result was reused; None when not done.
        figures: what the stage measured; empty when not done.
        device: where it ran; None for stages of a host.
    """

    job: queries.Job
    producer_id: int | None
    figures: dict[str, Any]
    device: Device | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a sweep and the jobs that serve it, in stage order."""

    number: int
    axes: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    def outcome(self, stage: str) -> Outcome | None:
        """The job of a stage; None when the point has none."""
        return next((outcome for outcome in self.outcomes if outcome.job.stage == stage), None)


def outcomes(connection: sa.Connection, job_ids: Iterable[int] | None = None, *, submission_id: int) -> list[Outcome]:
    """The jobs of a submission, or some of them, with what their work yielded, by id."""
    counts = sa.and_(attempts.c.state == literal("succeeded"), attempts.c.replaced_at.is_(None))
    query = (
        sa.select(
            *queries.JOB_COLUMNS,
            attempts.c.figures,
            devices.c.qid,
            devices.c.sku,
            devices.c.simulated,
            hosts.c.name.label("host"),
        )
        .outerjoin(attempts, sa.and_(attempts.c.job_id == jobs.c.done_by, counts))
        .outerjoin(nodes, nodes.c.id == attempts.c.node_id)
        .outerjoin(devices, devices.c.id == nodes.c.device_id)
        .outerjoin(hosts, hosts.c.id == devices.c.host_id)
        .where(jobs.c.submission_id == submission_id)
        .order_by(jobs.c.id)
    )
    if job_ids is not None:
        query = query.where(jobs.c.id.in_(list(job_ids)))
    return [_outcome(row) for row in connection.execute(query).mappings()]


def _outcome(row: sa.RowMapping) -> Outcome:
    device = None
    if row["qid"] is not None:
        device = Device(host=row["host"], qid=row["qid"], sku=row["sku"], simulated=row["simulated"])
    return Outcome(job=queries.job_of(row), producer_id=row["done_by"], figures=row["figures"] or {}, device=device)


def point_list(connection: sa.Connection, submission_id: int) -> list[Point]:
    """The points of a submission with the outcomes of their jobs, by number."""
    by_id = {outcome.job.id: outcome for outcome in outcomes(connection, submission_id=submission_id)}
    query = (
        sa.select(points.c.number, points.c.axes, point_jobs.c.job_id)
        .join(point_jobs, point_jobs.c.point_id == points.c.id)
        .where(points.c.submission_id == submission_id)
        .order_by(points.c.number, point_jobs.c.job_id)
    )
    grouped: dict[int, tuple[dict[str, Any], list[Outcome]]] = {}
    for number, axes, job_id in connection.execute(query):
        grouped.setdefault(number, (axes, []))[1].append(by_id[job_id])
    return [Point(number=number, axes=axes, outcomes=tuple(found)) for number, (axes, found) in grouped.items()]
