"""The farm's SQL: tables, constraints, indexes. SQLite and PostgreSQL alike; Alembic compares with this.

Times are seconds since the epoch by the database's clock (:func:`farm.db.now`). JSON columns hold plain JSON.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from farm.states import FINAL, LIVE, JobState

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME: sa.Double[float] = sa.Double()

ATTEMPT_STATES = ("running", "succeeded", "failed", "cancelled", "interrupted", "lost")
HEALTH_STATES = ("ready", "draining", "quarantined", "lost")
NODE_KINDS = ("host", "device")

_WHERE = "where"  # key of an index's condition in its info
_URGENCY = (sa.text("priority DESC"), "ready_at", "id")


def literal(value: str | int) -> sa.BindParameter[str | int]:
    """A value that is written into the statement, for columns of partial indexes.

    With a parameter in its place neither database can know that the index covers the question.
    """
    return sa.literal(str(value) if isinstance(value, str) else value, literal_execute=True)


def literals(values: Iterable[str]) -> sa.BindParameter[list[str]]:
    """As :func:`literal`, for ``IN``; sorted, since SQLite compares the list with the index's word by word."""
    return sa.bindparam(None, sorted(str(value) for value in values), expanding=True, literal_execute=True)


def _one_of(column: str, values: tuple[str, ...] | list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in sorted(values))})"


def _partial_index(name: str, *columns: str | sa.TextClause, where: str, unique: bool = False) -> sa.Index:
    """An index over the rows that a condition holds for."""
    return sa.Index(name, *columns, unique=unique, sqlite_where=sa.text(where), info={_WHERE: where})


def speak_postgresql() -> None:
    """Give the partial indexes their condition for PostgreSQL, too: before schemas are compared or created.

    Not at import, since SQLAlchemy then loads its PostgreSQL drivers: a seventh of the CPU of ``farm list``.
    """
    for table in metadata.tables.values():
        for index in table.indexes:
            if _WHERE in index.info:
                index.dialect_options["postgresql"]["where"] = sa.text(index.info[_WHERE])


submissions = sa.Table(
    "submissions",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),  # higher is sooner
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),  # the sweep as it was asked
    sa.Column("token", sa.Text, unique=True),  # client's token: submitting twice with one token submits once
    sa.Column("created_at", TIME, nullable=False),
    sa.Index("ix_submissions_created_at", "created_at"),
)

points = sa.Table(
    "points",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("submission_id", ID, sa.ForeignKey("submissions.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("axes", sa.JSON, nullable=False),  # {"model": ..., "cores": 8, ...}
    sa.UniqueConstraint("submission_id", "number"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("submission_id", ID, sa.ForeignKey("submissions.id"), nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),  # for people: "compile 14 cores fp16"
    sa.Column("spec", sa.JSON, nullable=False),  # qeff_engine.spec, JSON form
    sa.Column("plan_key", sa.Text, nullable=False),  # digest of spec and plan keys of inputs: known at submit
    sa.Column("action_key", sa.Text),  # digest by content: known once the inputs are done
    sa.Column("key_parts", sa.JSON),  # what the action key was made of
    sa.Column("leader_id", ID, sa.ForeignKey("jobs.id")),  # live job with the same action key
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),  # why it is in this state, for people
    sa.Column(
        "priority", sa.Integer, nullable=False, server_default="0"
    ),  # the submission's, or a follower's if higher
    sa.Column("remaining", sa.Integer, nullable=False, server_default="0"),  # inputs not done
    sa.Column("chain", sa.Integer, nullable=False, server_default="0"),  # longest chain of jobs behind it
    sa.Column("num_cores", sa.Integer, nullable=False, server_default="0"),  # per device; 0: needs a host slot
    sa.Column("num_devices", sa.Integer, nullable=False, server_default="0"),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),  # the fence: only grows
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # what limits are checked against
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("not_before", TIME, nullable=False, server_default="0"),
    sa.Column("node_id", ID, sa.ForeignKey("nodes.id")),  # where it is placed while queued or running
    sa.Column("artifact", sa.Text, sa.ForeignKey("artifacts.digest")),
    sa.Column("failure_class", sa.Text),
    sa.Column("failure_message", sa.Text),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("ready_at", TIME),
    sa.Column("queued_at", TIME),
    sa.Column("finished_at", TIME),
    sa.CheckConstraint(_one_of("state", list(JobState)), name="state"),
    sa.CheckConstraint(f"({_one_of('state', list(FINAL))}) = (finished_at IS NOT NULL)", name="finished"),
    sa.CheckConstraint(f"({_one_of('state', ['succeeded', 'cached'])}) = (artifact IS NOT NULL)", name="artifact"),
    sa.CheckConstraint("state NOT IN ('queued', 'running') OR node_id IS NOT NULL", name="placed"),
    sa.CheckConstraint("leader_id IS NULL OR state = 'waiting'", name="following"),
    sa.CheckConstraint("remaining >= 0", name="remaining"),
    sa.Index("ix_jobs_submission_id", "submission_id"),
    _partial_index("uq_jobs_live_action_key", "action_key", unique=True, where=_one_of("state", list(LIVE))),
    # One for each kind of place, in the order in which places are given: no line is searched for the other's jobs.
    _partial_index("ix_jobs_ready_for_cores", *_URGENCY, where="state = 'ready' AND num_cores > 0"),
    _partial_index("ix_jobs_ready_for_slots", *_URGENCY, where="state = 'ready' AND num_cores = 0"),
    _partial_index("ix_jobs_admissible", "id", where="state = 'waiting' AND remaining = 0 AND leader_id IS NULL"),
    _partial_index("ix_jobs_queued", "queued_at", where="state = 'queued'"),
    _partial_index("ix_jobs_leader_id", "leader_id", where="leader_id IS NOT NULL"),
    _partial_index("ix_jobs_unfinished_plan_key", "plan_key", where="finished_at IS NULL"),
)

point_jobs = sa.Table(
    "point_jobs",
    metadata,
    sa.Column("point_id", ID, sa.ForeignKey("points.id"), primary_key=True),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Index("ix_point_jobs_job_id", "job_id"),
)

edges = sa.Table(
    "edges",
    metadata,
    sa.Column("child_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("input", sa.Text, primary_key=True),  # name of the child's input: snapshot, onnx, program ...
    sa.Column("parent_id", ID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Index("ix_edges_parent_id", "parent_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("node_id", ID, sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("lease_until", TIME, nullable=False),
    sa.Column("started_at", TIME, nullable=False),
    sa.Column("finished_at", TIME),
    sa.Column("failure_class", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("progress", sa.Text),  # last sentence of the stage
    sa.Column("fraction", sa.Double),
    sa.Column("exit_code", sa.Integer),
    sa.Column("cpu_s", sa.Double),
    sa.Column("peak_rss_bytes", sa.BigInteger),
    sa.Column("figures", sa.JSON),
    sa.Column("log_path", sa.Text),  # relative to the log directory
    sa.CheckConstraint(_one_of("state", ATTEMPT_STATES), name="state"),
    sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
    _partial_index("uq_attempts_running", "job_id", unique=True, where="state = 'running'"),
    _partial_index("ix_attempts_lease", "lease_until", where="state = 'running'"),
    _partial_index("uq_attempts_succeeded", "job_id", unique=True, where="state = 'succeeded'"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at", TIME, nullable=False),
    sa.Column("transition", sa.Text, nullable=False),
    sa.Column("from_state", sa.Text),
    sa.Column("to_state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Index("ix_events_job_id", "job_id", "id"),
)

actions = sa.Table(
    "actions",
    metadata,
    sa.Column("action_key", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("parts", sa.JSON, nullable=False),  # what the key was made of, to explain a miss
    sa.Column("artifact", sa.Text, sa.ForeignKey("artifacts.digest")),
    sa.Column("failure_class", sa.Text),  # deterministic failures only
    sa.Column("failure_message", sa.Text),
    sa.Column("job_id", ID, sa.ForeignKey("jobs.id"), nullable=False),  # who did it
    sa.Column("figures", sa.JSON, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.CheckConstraint("(artifact IS NULL) = (failure_class IS NOT NULL)", name="outcome"),
    sa.Index("ix_actions_artifact", "artifact"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_files", sa.Integer, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("num_cpus", sa.Integer, nullable=False),
    sa.Column("ram_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_slots", sa.Integer, nullable=False),
    sa.Column("toolchain", sa.JSON, nullable=False),  # versions by name
    sa.Column("registered_at", TIME, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("host_id", ID, sa.ForeignKey("hosts.id"), nullable=False),
    sa.Column("board_serial", sa.Text, nullable=False),  # identity is serial + PCI address, never the qid alone
    sa.Column("pci_address", sa.Text, nullable=False),
    sa.Column("qid", sa.Integer, nullable=False),
    sa.Column("sku", sa.Text, nullable=False),
    sa.Column("num_cores", sa.Integer, nullable=False),
    sa.Column("dram_mb", sa.Integer, nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("health", sa.Text, nullable=False, server_default="ready"),
    sa.Column("health_reason", sa.Text, nullable=False, server_default=""),
    sa.Column("faults", sa.Integer, nullable=False, server_default="0"),
    sa.Column("checked_at", TIME, nullable=False),
    sa.CheckConstraint(_one_of("health", HEALTH_STATES), name="health"),
    sa.UniqueConstraint("host_id", "board_serial", "pci_address"),
)

cores = sa.Table(
    "cores",
    metadata,
    sa.Column("device_id", ID, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("usable", sa.Boolean, nullable=False, server_default=sa.true()),
)

core_leases = sa.Table(
    "core_leases",
    metadata,
    # The primary key is what makes a double allocation impossible, in both databases.
    sa.Column("device_id", ID, primary_key=True),
    sa.Column("core", sa.Integer, primary_key=True),
    sa.Column("job_id", ID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="held"),
    sa.Column("since", TIME, nullable=False),
    sa.ForeignKeyConstraint(["device_id", "core"], ["cores.device_id", "cores.number"]),
    sa.ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"]),
    sa.CheckConstraint("state IN ('draining', 'held')", name="state"),
    sa.Index("ix_core_leases_job_id_attempt", "job_id", "attempt"),
)

host_leases = sa.Table(
    "host_leases",
    metadata,
    sa.Column("host_id", ID, sa.ForeignKey("hosts.id"), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("job_id", ID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("since", TIME, nullable=False),
    sa.ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.number"]),
    sa.Index("ix_host_leases_job_id_attempt", "job_id", "attempt"),
)

nodes = sa.Table(
    "nodes",
    metadata,
    # A node is one Celery process tree; a restart is a new node.
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("host_id", ID, sa.ForeignKey("hosts.id"), nullable=False),
    sa.Column("device_id", ID, sa.ForeignKey("devices.id")),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", TIME, nullable=False),
    sa.Column("heartbeat_at", TIME, nullable=False),
    sa.Column("stopped_at", TIME),
    sa.CheckConstraint(_one_of("kind", NODE_KINDS), name="kind"),
    sa.CheckConstraint("(kind = 'device') = (device_id IS NOT NULL)", name="pinned"),
    sa.Index("ix_nodes_queue", "queue"),
)

outbox = sa.Table(
    "outbox",
    metadata,
    # A row is a message not yet handed to the broker; it is deleted once sent.
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("job_id", ID, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
)

leader = sa.Table(
    "leader",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # always 1
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("term", ID, nullable=False),  # grows with each change of holder; all writes of a scheduler carry it
    sa.Column("lease_until", TIME, nullable=False),
    sa.CheckConstraint("id = 1", name="single"),
)
