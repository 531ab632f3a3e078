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
    ("attempts", "learnt", "INTEGER DEFAULT '0' NOT NULL CONSTRAINT ck_attempts_learnt CHECK (learnt IN (0, 1))"),
)

_INDEXES = (
    ("ix_jobs_deadline_at", "jobs", "deadline_at", "finished_at IS NULL AND deadline_at IS NOT NULL"),
    ("ix_jobs_wait_limit_s", "jobs", "id", "state = 'ready' AND wait_limit_s IS NOT NULL"),
    ("ix_attempts_unlearnt", "attempts", "finished_at", "learnt = 0 AND finished_at IS NOT NULL"),
)

# Index and its condition, by how it is ordered before and after.
_READY = (
    ("ix_jobs_ready_for_cores", "num_cores > 0"),
    ("ix_jobs_ready_for_slots", "num_cores = 0"),
)
_BY_URGENCY = ("priority DESC, ready_at, id", "state = 'ready'")
_BY_LINES = ("owner, kind, priority DESC, ready_at, id", "state = 'ready' AND held = 0")


def _order_ready(columns: str, condition: str) -> None:
    """Make the indexes of ready jobs anew, in another order."""
    for name, wanted in _READY:
        op.execute(f"DROP INDEX {name}")
        op.execute(f"CREATE INDEX {name} ON jobs ({columns}) WHERE {condition} AND {wanted}")


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
            sa.Column("model", sa.Text, nullable=False, server_default=""),
            sa.Column("exclusive", sa.Boolean, nullable=False, server_default=_FALSE),
            sa.Column("needs", sa.JSON),
            sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),
            sa.Column("expected_s", sa.Double),
            sa.Column("reserved_s", sa.Double),
            sa.Column("wait_limit_s", sa.Double),
            sa.Column("run_limit_s", sa.Double),
            sa.Column("deadline_at", sa.Double),
            sa.Column("skip_cache", sa.Boolean, nullable=False, server_default=_FALSE),
            sa.Column("unsubscribed_at", sa.Double),
            sa.Column("placed_on", sa.JSON),
            sa.Column("forecast_at", sa.Double),
            sa.Column("done_by", sa.BigInteger().with_variant(sa.Integer(), "sqlite")),
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
            sa.Column("replaced_at", sa.Double),
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
        "nodes": (sa.Column("closing_at", sa.Double),),
        "hosts": (
            sa.Column("labels", sa.JSON),
            sa.Column("drained", sa.Text),
            sa.Column("drained_by", sa.Text),
            sa.Column("drained_at", sa.Double),
        ),
        "devices": (
            sa.Column("status", sa.Text, nullable=False, server_default="Ready"),
            sa.Column("quarantined_until", sa.Double),
            sa.Column("labels", sa.JSON),
            sa.Column("drained", sa.Text),
            sa.Column("drained_by", sa.Text),
            sa.Column("drained_at", sa.Double),
            sa.Column("models", sa.JSON),
        ),
        "host_leases": (sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),),
    }


def _index_successes(*, also: str) -> None:
    """Make the index anew that lets a job succeed once."""
    where = sa.text(f"state = 'succeeded'{also}")
    op.drop_index("uq_attempts_succeeded", table_name="attempts")
    op.create_index(
        "uq_attempts_succeeded", "attempts", ["job_id"], unique=True, sqlite_where=where, postgresql_where=where
    )


def upgrade() -> None:
    """Add columns and two tables; held jobs are in no line for a place."""
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    for table, name, definition in _CHECKED:
        op.execute(f"ALTER TABLE {table} ADD COLUMN {name} {definition}")
    for name, table, column, where in _INDEXES:
        op.create_index(name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    _index_successes(also=" AND replaced_at IS NULL")
    op.execute("UPDATE jobs SET done_by = id WHERE state = 'succeeded'")
    op.execute(
        "UPDATE jobs SET done_by = (SELECT job_id FROM actions WHERE actions.action_key = jobs.action_key) "
        "WHERE state = 'cached'"
    )
    op.execute("UPDATE jobs SET owner = (SELECT owner FROM submissions WHERE submissions.id = jobs.submission_id)")
    _order_ready(*_BY_LINES)
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
    for name, table, *_ in _INDEXES:
        op.drop_index(name, table)
    _order_ready(*_BY_URGENCY)
    op.execute("UPDATE attempts SET state = 'interrupted' WHERE replaced_at IS NOT NULL")  # of a job, one counts
    _index_successes(also="")
    for table, name, _ in reversed(_CHECKED):
        op.drop_column(table, name)
    for table, columns in reversed(_columns().items()):
        for column in reversed(columns):
            op.drop_column(table, column.name)
