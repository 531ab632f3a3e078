"""The first schema: submissions, points, jobs, attempts, artifacts, devices, leases, nodes, outbox, leader."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Parents before children.
TABLES = (
    "artifacts",
    "hosts",
    "leader",
    "outbox",
    "submissions",
    "devices",
    "points",
    "cores",
    "nodes",
    "jobs",
    "actions",
    "attempts",
    "edges",
    "events",
    "point_jobs",
    "core_leases",
    "host_leases",
)


def upgrade() -> None:
    """Create all tables."""
    _create_artifacts()
    _create_hosts()
    _create_leader()
    _create_outbox()
    _create_submissions()
    _create_devices()
    _create_points()
    _create_cores()
    _create_nodes()
    _create_jobs()
    _create_actions()
    _create_attempts()
    _create_edges()
    _create_events()
    _create_point_jobs()
    _create_core_leases()
    _create_host_leases()


def downgrade() -> None:
    """Drop all tables."""
    for table in reversed(TABLES):
        op.drop_table(table)


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_files", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifacts")),
    )


def _create_hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("num_cpus", sa.Integer(), nullable=False),
        sa.Column("ram_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_slots", sa.Integer(), nullable=False),
        sa.Column("toolchain", sa.JSON(), nullable=False),
        sa.Column("registered_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hosts")),
        sa.UniqueConstraint("name", name=op.f("uq_hosts_name")),
    )


def _create_leader() -> None:
    op.create_table(
        "leader",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("term", ID, nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_leader_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leader")),
    )


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
    )


def _create_submissions() -> None:
    op.create_table(
        "submissions",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submissions")),
        sa.UniqueConstraint("token", name=op.f("uq_submissions_token")),
    )
    op.create_index("ix_submissions_created_at", "submissions", ["created_at"], unique=False)


def _create_devices() -> None:
    op.create_table(
        "devices",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("host_id", ID, nullable=False),
        sa.Column("board_serial", sa.Text(), nullable=False),
        sa.Column("pci_address", sa.Text(), nullable=False),
        sa.Column("qid", sa.Integer(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("num_cores", sa.Integer(), nullable=False),
        sa.Column("dram_mb", sa.Integer(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("health", sa.Text(), server_default="ready", nullable=False),
        sa.Column("health_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("faults", sa.Integer(), server_default="0", nullable=False),
        sa.Column("checked_at", sa.Double(), nullable=False),
        sa.CheckConstraint("health IN ('draining', 'lost', 'quarantined', 'ready')", name=op.f("ck_devices_health")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_devices_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
        sa.UniqueConstraint(
            "host_id", "board_serial", "pci_address", name=op.f("uq_devices_host_id_board_serial_pci_address")
        ),
    )


def _create_points() -> None:
    op.create_table(
        "points",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("submission_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("axes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"], name=op.f("fk_points_submission_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_points")),
        sa.UniqueConstraint("submission_id", "number", name=op.f("uq_points_submission_id_number")),
    )


def _create_cores() -> None:
    op.create_table(
        "cores",
        sa.Column("device_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("usable", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_cores_device_id")),
        sa.PrimaryKeyConstraint("device_id", "number", name=op.f("pk_cores")),
    )


def _create_nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("host_id", ID, nullable=False),
        sa.Column("device_id", ID, nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("stopped_at", sa.Double(), nullable=True),
        sa.CheckConstraint("(kind = 'device') = (device_id IS NOT NULL)", name=op.f("ck_nodes_pinned")),
        sa.CheckConstraint("kind IN ('device', 'host')", name=op.f("ck_nodes_kind")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_nodes_device_id")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_nodes_host_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    op.create_index("ix_nodes_queue", "nodes", ["queue"], unique=False)


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("submission_id", ID, nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("plan_key", sa.Text(), nullable=False),
        sa.Column("action_key", sa.Text(), nullable=True),
        sa.Column("key_parts", sa.JSON(), nullable=True),
        sa.Column("leader_id", ID, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("remaining", sa.Integer(), server_default="0", nullable=False),
        sa.Column("chain", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_cores", sa.Integer(), server_default="0", nullable=False),
        sa.Column("num_devices", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("not_before", sa.Double(), server_default="0", nullable=False),
        sa.Column("node_id", ID, nullable=True),
        sa.Column("artifact", sa.Text(), nullable=True),
        sa.Column("failure_class", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ready_at", sa.Double(), nullable=True),
        sa.Column("queued_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('blocked', 'cached', 'cancelled', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint(
            "(state IN ('cached', 'succeeded')) = (artifact IS NOT NULL)", name=op.f("ck_jobs_artifact")
        ),
        sa.CheckConstraint("leader_id IS NULL OR state = 'waiting'", name=op.f("ck_jobs_following")),
        sa.CheckConstraint(
            "state IN ('blocked', 'cached', 'cancelled', 'failed', "
            "'queued', 'ready', 'running', 'succeeded', 'waiting')",
            name=op.f("ck_jobs_state"),
        ),
        sa.CheckConstraint("state NOT IN ('queued', 'running') OR node_id IS NOT NULL", name=op.f("ck_jobs_placed")),
        sa.CheckConstraint("remaining >= 0", name=op.f("ck_jobs_remaining")),
        sa.ForeignKeyConstraint(["artifact"], ["artifacts.digest"], name=op.f("fk_jobs_artifact")),
        sa.ForeignKeyConstraint(["leader_id"], ["jobs.id"], name=op.f("fk_jobs_leader_id")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_jobs_node_id")),
        sa.ForeignKeyConstraint(["submission_id"], ["submissions.id"], name=op.f("fk_jobs_submission_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    _index_jobs()


def _index_jobs() -> None:
    op.create_index(
        "ix_jobs_admissible",
        "jobs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'waiting' AND remaining = 0 AND leader_id IS NULL"),
        postgresql_where=sa.text("state = 'waiting' AND remaining = 0 AND leader_id IS NULL"),
    )
    op.create_index(
        "ix_jobs_leader_id",
        "jobs",
        ["leader_id"],
        unique=False,
        sqlite_where=sa.text("leader_id IS NOT NULL"),
        postgresql_where=sa.text("leader_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["queued_at"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    for kind, wanted in (("cores", "num_cores > 0"), ("slots", "num_cores = 0")):
        op.create_index(
            f"ix_jobs_ready_for_{kind}",
            "jobs",
            [sa.text("priority DESC"), "ready_at", "id"],
            unique=False,
            sqlite_where=sa.text(f"state = 'ready' AND {wanted}"),
            postgresql_where=sa.text(f"state = 'ready' AND {wanted}"),
        )
    op.create_index("ix_jobs_submission_id", "jobs", ["submission_id"], unique=False)
    op.create_index(
        "ix_jobs_unfinished_plan_key",
        "jobs",
        ["plan_key"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NULL"),
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        "uq_jobs_live_action_key",
        "jobs",
        ["action_key"],
        unique=True,
        sqlite_where=sa.text("state IN ('queued', 'ready', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'ready', 'running')"),
    )


def _create_actions() -> None:
    op.create_table(
        "actions",
        sa.Column("action_key", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("artifact", sa.Text(), nullable=True),
        sa.Column("failure_class", sa.Text(), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint("(artifact IS NULL) = (failure_class IS NOT NULL)", name=op.f("ck_actions_outcome")),
        sa.ForeignKeyConstraint(["artifact"], ["artifacts.digest"], name=op.f("fk_actions_artifact")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_actions_job_id")),
        sa.PrimaryKeyConstraint("action_key", name=op.f("pk_actions")),
    )
    op.create_index("ix_actions_artifact", "actions", ["artifact"], unique=False)


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("node_id", ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("failure_class", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("fraction", sa.Double(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("cpu_s", sa.Double(), nullable=True),
        sa.Column("peak_rss_bytes", sa.BigInteger(), nullable=True),
        sa.Column("figures", sa.JSON(), nullable=True),
        sa.Column("log_path", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name=op.f("ck_attempts_finished")),
        sa.CheckConstraint(
            "state IN ('cancelled', 'failed', 'interrupted', 'lost', 'running', 'succeeded')",
            name=op.f("ck_attempts_state"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_attempts_node_id")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.create_index(
        "ix_attempts_lease",
        "attempts",
        ["lease_until"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "uq_attempts_running",
        "attempts",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "uq_attempts_succeeded",
        "attempts",
        ["job_id"],
        unique=True,
        sqlite_where=sa.text("state = 'succeeded'"),
        postgresql_where=sa.text("state = 'succeeded'"),
    )


def _create_edges() -> None:
    op.create_table(
        "edges",
        sa.Column("child_id", ID, nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("parent_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["child_id"], ["jobs.id"], name=op.f("fk_edges_child_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("fk_edges_parent_id")),
        sa.PrimaryKeyConstraint("child_id", "input", name=op.f("pk_edges")),
    )
    op.create_index("ix_edges_parent_id", "edges", ["parent_id"], unique=False)


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("transition", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_job_id", "events", ["job_id", "id"], unique=False)


def _create_point_jobs() -> None:
    op.create_table(
        "point_jobs",
        sa.Column("point_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_point_jobs_job_id")),
        sa.ForeignKeyConstraint(["point_id"], ["points.id"], name=op.f("fk_point_jobs_point_id")),
        sa.PrimaryKeyConstraint("point_id", "job_id", name=op.f("pk_point_jobs")),
    )
    op.create_index("ix_point_jobs_job_id", "point_jobs", ["job_id"], unique=False)


def _create_core_leases() -> None:
    op.create_table(
        "core_leases",
        sa.Column("device_id", ID, nullable=False),
        sa.Column("core", sa.Integer(), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="held", nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.CheckConstraint("state IN ('draining', 'held')", name=op.f("ck_core_leases_state")),
        sa.ForeignKeyConstraint(
            ["device_id", "core"], ["cores.device_id", "cores.number"], name=op.f("fk_core_leases_device_id_core")
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"], ["attempts.job_id", "attempts.number"], name=op.f("fk_core_leases_job_id_attempt")
        ),
        sa.PrimaryKeyConstraint("device_id", "core", name=op.f("pk_core_leases")),
    )
    op.create_index("ix_core_leases_job_id_attempt", "core_leases", ["job_id", "attempt"], unique=False)


def _create_host_leases() -> None:
    op.create_table(
        "host_leases",
        sa.Column("host_id", ID, nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.id"], name=op.f("fk_host_leases_host_id")),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"], ["attempts.job_id", "attempts.number"], name=op.f("fk_host_leases_job_id_attempt")
        ),
        sa.PrimaryKeyConstraint("host_id", "slot", name=op.f("pk_host_leases")),
    )
    op.create_index("ix_host_leases_job_id_attempt", "host_leases", ["job_id", "attempt"], unique=False)
