"""Tables of the machines: hosts, devices, nodes, and what attempts hold of them."""

from __future__ import annotations

import sqlalchemy as sa

from farm.models._base import ID, TIME, metadata, one_of

HEALTH_STATES = ("ready", "draining", "quarantined", "lost")
NODE_KINDS = ("host", "device")

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
    sa.Column("labels", sa.JSON),
    sa.Column("drained", sa.Text),  # why a user lets it get no new work; NULL: it gets some
    sa.Column("drained_by", sa.Text),
    sa.Column("drained_at", TIME),
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
    sa.Column("status", sa.Text, nullable=False, server_default="Ready"),  # what its host's tool said last, or missing
    sa.Column("health", sa.Text, nullable=False, server_default="ready"),
    sa.Column("health_reason", sa.Text, nullable=False, server_default=""),
    sa.Column("faults", sa.Integer, nullable=False, server_default="0"),  # in a row
    sa.Column("quarantined_until", TIME),
    sa.Column("labels", sa.JSON),
    sa.Column("drained", sa.Text),  # why a user lets it get no new work; NULL: it gets some
    sa.Column("drained_by", sa.Text),
    sa.Column("drained_at", TIME),
    sa.Column("models", sa.JSON),  # that it has run lately, the last one first
    sa.Column("checked_at", TIME, nullable=False),
    sa.CheckConstraint(one_of("health", HEALTH_STATES), name="health"),
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
    sa.Column("ram_bytes", sa.BigInteger, nullable=False, server_default="0"),  # reserved
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
    sa.Column("closing_at", TIME),  # since when it claims nothing more, because a user stops the farm there
    sa.Column("stopped_at", TIME),
    sa.CheckConstraint(one_of("kind", NODE_KINDS), name="kind"),
    sa.CheckConstraint("(kind = 'device') = (device_id IS NOT NULL)", name="pinned"),
    sa.Index("ix_nodes_queue", "queue"),
)
