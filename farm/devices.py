"""Hosts, devices and nodes: who is there, how healthy, and what is free on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from farm.db import now
from farm.models import cores, devices, hosts, nodes
from farm.records import DeviceRecord


def register_host(
    connection: sa.Connection,
    *,
    name: str,
    num_cpus: int,
    ram_bytes: int,
    num_slots: int,
    toolchain: Mapping[str, str],
) -> int:
    """Write what a host is; returns its id. A host that is known keeps its id."""
    values = {
        "num_cpus": num_cpus,
        "ram_bytes": ram_bytes,
        "num_slots": num_slots,
        "toolchain": dict(toolchain),
        "registered_at": now(connection),
    }
    known = sa.update(hosts).where(hosts.c.name == name).values(**values).returning(hosts.c.id)
    found = connection.execute(known).scalar_one_or_none()
    if found is not None:
        return int(found)
    try:
        with connection.begin_nested():
            return int(
                connection.execute(sa.insert(hosts).values(name=name, **values).returning(hosts.c.id)).scalar_one()
            )
    except sa.exc.IntegrityError:  # another node of the host was first
        return int(connection.execute(known).scalar_one())


def renew_toolchain(connection: sa.Connection, host_id: int, *, toolchain: Mapping[str, str]) -> None:
    """Write the versions of a host that was upgraded while its nodes run: new action keys are made with them."""
    values = {"toolchain": dict(toolchain), "registered_at": now(connection)}
    connection.execute(sa.update(hosts).where(hosts.c.id == host_id).values(values))


def register_devices(connection: sa.Connection, *, host_id: int, found: Sequence[DeviceRecord]) -> list[int]:
    """Write the devices that a host has found; returns their ids in the same order.

    A device is known again by its board serial and PCI address, whatever its qid is now. One that is no longer there
    becomes ``lost``; one that comes back becomes ``ready``.
    """
    at = now(connection)
    ids = [_register_device(connection, host_id=host_id, device=device, at=at) for device in found]
    connection.execute(
        sa.update(devices)
        .where(devices.c.host_id == host_id, devices.c.id.not_in(ids))
        .values(health="lost", health_reason="its host does not find it any more", checked_at=at)
    )
    return ids


def _register_device(connection: sa.Connection, *, host_id: int, device: DeviceRecord, at: float) -> int:
    identity = (
        devices.c.host_id == host_id,
        devices.c.board_serial == device.board_serial,
        devices.c.pci_address == device.pci_address,
    )
    values = {
        "qid": device.qid,
        "sku": device.sku,
        "num_cores": device.num_cores,
        "dram_mb": device.dram_mb,
        "simulated": device.simulated,
        "checked_at": at,
    }
    known = connection.execute(
        sa.select(devices.c.id, devices.c.health).where(*identity).with_for_update()
    ).one_or_none()
    if known is not None:
        if known.health == "lost":
            values |= {"health": "ready", "health_reason": ""}
        connection.execute(sa.update(devices).where(devices.c.id == known.id).values(**values))
        device_id = int(known.id)
    else:
        device_id = int(
            connection.execute(
                sa.insert(devices)
                .values(host_id=host_id, board_serial=device.board_serial, pci_address=device.pci_address, **values)
                .returning(devices.c.id)
            ).scalar_one()
        )
    have = set(connection.scalars(sa.select(cores.c.number).where(cores.c.device_id == device_id)))
    missing = [{"device_id": device_id, "number": number} for number in range(device.num_cores) if number not in have]
    if missing:
        connection.execute(sa.insert(cores), missing)
    return device_id


def register_node(
    connection: sa.Connection, *, host_id: int, device_id: int | None, kind: str, queue: str, pid: int
) -> int:
    """Write a node that has just started; returns its id. Earlier nodes of its queue are stopped: it took over."""
    at = now(connection)
    connection.execute(
        sa.update(nodes).where(nodes.c.queue == queue, nodes.c.stopped_at.is_(None)).values(stopped_at=at)
    )
    return int(
        connection.execute(
            sa.insert(nodes)
            .values(
                host_id=host_id,
                device_id=device_id,
                kind=kind,
                queue=queue,
                pid=pid,
                started_at=at,
                heartbeat_at=at,
            )
            .returning(nodes.c.id)
        ).scalar_one()
    )


def node_heartbeat(connection: sa.Connection, node_id: int) -> None:
    """A node is alive."""
    connection.execute(sa.update(nodes).where(nodes.c.id == node_id).values(heartbeat_at=now(connection)))


def stop_node(connection: sa.Connection, node_id: int) -> None:
    """A node ends in an orderly way."""
    connection.execute(
        sa.update(nodes).where(nodes.c.id == node_id, nodes.c.stopped_at.is_(None)).values(stopped_at=now(connection))
    )


def set_health(connection: sa.Connection, device_id: int, *, health: str, reason: str) -> None:
    """Set a device's health; only a ``ready`` one gets new work."""
    connection.execute(
        sa.update(devices)
        .where(devices.c.id == device_id)
        .values(health=health, health_reason=reason, checked_at=now(connection))
    )


def live_nodes(connection: sa.Connection, *, max_age_s: float) -> list[int]:
    """Ids of the nodes that were heard lately and have not stopped."""
    return list(connection.scalars(sa.select(nodes.c.id).where(*_alive(connection, max_age_s)).order_by(nodes.c.id)))


def _alive(connection: sa.Connection, max_age_s: float) -> tuple[sa.ColumnElement[bool], ...]:
    at = now(connection)
    # One that was heard in the future was heard before the clock was set back; if it lives, it is heard again.
    return nodes.c.stopped_at.is_(None), nodes.c.heartbeat_at.between(at - max_age_s, at + max_age_s)


def toolchain(connection: sa.Connection, *, max_age_s: float) -> dict[str, str] | None:
    """Versions on the live host node that registered last; None when no host node is alive.

    Action keys are made with it. Hosts of one farm are expected to have the same versions.
    """
    found = connection.scalar(
        sa.select(hosts.c.toolchain)
        .join(nodes, nodes.c.host_id == hosts.c.id)
        .where(nodes.c.kind == "host", *_alive(connection, max_age_s))
        .order_by(hosts.c.registered_at.desc())
        .limit(1)
    )
    return dict(found) if found is not None else None
