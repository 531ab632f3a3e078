"""Tables of the scheduler: messages to send, who leads, and what it has learnt."""

from __future__ import annotations

import sqlalchemy as sa

from farm.models._base import ID, TIME, metadata

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

owners = sa.Table(
    "owners",
    metadata,
    # What an owner has used, halved with every half-life since: the farm's memory for fair shares.
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("core_seconds", sa.Double, nullable=False, server_default="0"),
    sa.Column("slot_seconds", sa.Double, nullable=False, server_default="0"),
    sa.Column("updated_at", TIME, nullable=False),
)

history = sa.Table(
    "history",
    metadata,
    # The last running times and peak memories of one kind of work, for predictions.
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("samples", sa.JSON, nullable=False),  # [[seconds, peak_rss_bytes], ...], oldest first
    sa.Column("updated_at", TIME, nullable=False),
)
