"""The farm's SQL: tables, constraints, indexes. SQLite and PostgreSQL alike; Alembic compares with this.

Times are seconds since the epoch by the database's clock (:func:`farm.db.now`). JSON columns hold plain JSON.
"""

from farm.models._base import ID, TIME, literal, literals, metadata, speak_postgresql
from farm.models._control import history, leader, outbox, owners
from farm.models._fleet import HEALTH_STATES, NODE_KINDS, core_leases, cores, devices, host_leases, hosts, nodes
from farm.models._work import (
    ATTEMPT_STATES,
    KINDS,
    actions,
    artifacts,
    attempts,
    edges,
    events,
    jobs,
    point_jobs,
    points,
    submissions,
)

__all__ = [
    "ATTEMPT_STATES",
    "HEALTH_STATES",
    "ID",
    "KINDS",
    "NODE_KINDS",
    "TIME",
    "actions",
    "artifacts",
    "attempts",
    "core_leases",
    "cores",
    "devices",
    "edges",
    "events",
    "history",
    "host_leases",
    "hosts",
    "jobs",
    "leader",
    "literal",
    "literals",
    "metadata",
    "nodes",
    "outbox",
    "owners",
    "point_jobs",
    "points",
    "speak_postgresql",
    "submissions",
]
