"""How the nodes of a home end their work: they claim nothing more, and what they cannot finish is given back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from farm.db import Database, now
from farm.errors import StaleTransition
from farm.lifecycle import attempts as node_side
from farm.lifecycle import claims
from farm.lifecycle.transitions import hold_graph
from farm.models import attempts, hosts, jobs, literal, nodes
from farm.states import JobState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """An attempt that a node carries out.

    Attributes:
        fraction: how far it is; None when it does not say.
    """

    job_id: int
    attempt: int
    label: str
    fraction: float | None


def nodes_of(connection: sa.Connection, *, host: str, pids: Collection[int]) -> list[int]:
    """The nodes of some processes of a host."""
    query = (
        sa.select(nodes.c.id)
        .join(hosts, hosts.c.id == nodes.c.host_id)
        .where(hosts.c.name == host, nodes.c.stopped_at.is_(None), nodes.c.pid.in_(list(pids)))
        .order_by(nodes.c.id)
    )
    return list(connection.scalars(query))


def close_nodes(connection: sa.Connection, node_ids: Sequence[int]) -> None:
    """Let nodes claim nothing more; what is on its way to them is placed elsewhere, or later."""
    hold_graph(connection)
    queued = connection.scalars(
        sa.select(jobs.c.id)
        .where(jobs.c.state == literal(JobState.QUEUED), jobs.c.node_id.in_(node_ids))
        .order_by(jobs.c.id)
        .with_for_update()
    )
    claims.give_back_all(connection, list(queued), reason="its node shuts down")
    connection.execute(sa.update(nodes).where(nodes.c.id.in_(node_ids)).values(closing_at=now(connection)))


def running_on(connection: sa.Connection, node_ids: Sequence[int]) -> list[Running]:
    """The attempts that nodes carry out, by job."""
    query = (
        sa.select(attempts.c.job_id, attempts.c.number.label("attempt"), jobs.c.label, attempts.c.fraction)
        .join(jobs, jobs.c.id == attempts.c.job_id)
        .where(attempts.c.state == literal("running"), attempts.c.node_id.in_(node_ids))
        .order_by(attempts.c.job_id)
    )
    return [Running(**row) for row in connection.execute(query).mappings()]


def interrupted(connection: sa.Connection, found: Sequence[Running]) -> list[int]:
    """The jobs of those attempts that were interrupted."""
    query = (
        sa.select(attempts.c.job_id)
        .where(
            sa.tuple_(attempts.c.job_id, attempts.c.number).in_([(one.job_id, one.attempt) for one in found]),
            attempts.c.state == "interrupted",
        )
        .order_by(attempts.c.job_id)
    )
    return list(connection.scalars(query))


def interrupt_all(database: Database, found: Sequence[Running], *, reason: str) -> None:
    """Give back the jobs of attempts whose nodes and processes are gone."""
    for one in found:
        with contextlib.suppress(StaleTransition), database.write() as connection:
            node_side.interrupt(connection, one.job_id, one.attempt, reason=reason)
