"""No index by the ends of leases: the reaper reads all running attempts, and each heartbeat wrote it anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NAME, _TABLE = "ix_attempts_lease", "attempts"


def upgrade() -> None:
    """Drop the index."""
    op.drop_index(_NAME, table_name=_TABLE)


def downgrade() -> None:
    """Make it again."""
    where = sa.text("state = 'running'")
    op.create_index(_NAME, _TABLE, ["lease_until"], sqlite_where=where, postgresql_where=where)
