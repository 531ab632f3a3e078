"""Clocks, pauses, places, predictions, fair shares, and what the garbage collection must know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KINDS = "kind IN ('interactive', 'nightly', 'sweep')"
_FALSE = sa.false()

# Table and column with a CHECK: written out, since only so SQLite adds it without making the table anew.
_CHECKED = (
    ("submissions", "kind", f"TEXT DEFAULT 'sweep' NOT NULL CONSTRAINT ck_submissions_kind CHECK ({_KINDS})"),
    ("jobs", "kind", f"TEXT DEFAULT 'sweep' NOT NULL CONSTRAINT ck_jobs_kind CHECK ({_KINDS})"),
    ("jobs", "held", "INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_jobs_held CHECK (held IN (0, 1))"),
)

_INDEXES = (
    ("ix_jobs_deadline_at", "deadline_at", "finished_at IS NULL AND deadline_at IS NOT NULL"),
    ("ix_jobs_wait_limit_s", "id", "state = 'ready' AND wait_limit_s IS NOT NULL"),
)


def _columns() -> dict[str, tuple[sa.Column[object], ...]]:
    """By table, the columns without a CHECK."""
    return {
        "submissions": (
            sa.Column("paused_at", sa.Double),
            sa.Column("paused_by", sa.Text),
            sa.Column("deadline_at", sa.Double),
        ),
        "jobs": (
            sa.Column("owner", sa.Text, nullable=False, server_default=""),
            sa.Column("exclusive", sa.Boolean, nullable=False, server_default=_FALSE),
            sa.Column("needs", sa.JSON),
            sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),
            sa.Column("expected_s", sa.Double),
            sa.Column("reserved_s", sa.Double),
            sa.Column("wait_limit_s", sa.Double),
            sa.Column("run_limit_s", sa.Double),
            sa.Column("deadline_at", sa.Double),
            sa.Column("skip_cache", sa.Boolean, nullable=False, server_default=_FALSE),
            sa.Column("unsubscribed", sa.Boolean, nullable=False, server_default=_FALSE),
            sa.Column("placed_on", sa.JSON),
            sa.Column("forecast_at", sa.Double),
            sa.Column("failure_line", sa.Text),
            sa.Column("failure_advice", sa.Text),
        ),
        "attempts": (
            sa.Column("run_until", sa.Double),
            sa.Column("hand_back", sa.Text),
            sa.Column("placed_on", sa.JSON),
            sa.Column("ram_bytes", sa.BigInteger),
            sa.Column("failure_line", sa.Text),
            sa.Column("failure_advice", sa.Text),
        ),
        "actions": (
            sa.Column("failure_line", sa.Text),
            sa.Column("failure_advice", sa.Text),
            sa.Column("expires_at", sa.Double),
        ),
        "artifacts": (
            sa.Column("used_at", sa.Double),
            sa.Column("pinned", sa.Text),
            sa.Column("condemned_at", sa.Double),
            sa.Column("deleted_at", sa.Double),
        ),
        "hosts": (
            sa.Column("labels", sa.JSON),
            sa.Column("drained", sa.Text),
            sa.Column("drained_by", sa.Text),
            sa.Column("drained_at", sa.Double),
        ),
        "devices": (
            sa.Column("quarantined_until", sa.Double),
            sa.Column("labels", sa.JSON),
            sa.Column("drained", sa.Text),
            sa.Column("drained_by", sa.Text),
            sa.Column("drained_at", sa.Double),
        ),
        "host_leases": (sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),),
    }


def _index_ready_jobs(*, also: str) -> None:
    """Make the indexes of ready jobs anew, over those that ``also`` holds for."""
    for kind, comparison in (("cores", ">"), ("slots", "=")):
        where = sa.text(f"state = 'ready'{also} AND num_cores {comparison} 0")
        op.drop_index(f"ix_jobs_ready_for_{kind}", table_name="jobs")
        op.create_index(
            f"ix_jobs_ready_for_{kind}",
            "jobs",
            [sa.text("priority DESC"), "ready_at", "id"],
            sqlite_where=where,
            postgresql_where=where,
        )


def upgrade() -> None:
    """Add columns and two tables; held jobs are in no line for a place."""
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    for table, name, definition in _CHECKED:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")
    _index_ready_jobs(also=" AND held = 0")
    for name, column, where in _INDEXES:
        op.create_index(name, "jobs", [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.execute("UPDATE jobs SET owner = (SELECT owner FROM submissions WHERE submissions.id = jobs.submission_id)")
    op.create_table(
        "owners",
        sa.Column("name", sa.Text),
        sa.Column("core_seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("slot_seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_owners"),
    )
    op.create_table(
        "history",
        sa.Column("key", sa.Text),
        sa.Column("samples", sa.JSON, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_history"),
    )


def downgrade() -> None:
    """Take them away again."""
    op.drop_table("history")
    op.drop_table("owners")
    _index_ready_jobs(also="")
    for name, *_ in _INDEXES:
        op.drop_index(name, "jobs")
    for table, name, _ in reversed(_CHECKED):
        op.drop_column(table, name)
    for table, columns in reversed(_columns().items()):
        for column in reversed(columns):
            op.drop_column(table, column.name)
