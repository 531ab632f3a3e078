"""Hosts, devices and nodes: who is there, how healthy, and what is free on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.lifecycle import health
from farm.models import core_leases, cores, devices, hosts, nodes
from farm.records import DeviceRecord

_QUARANTINE = health.Quarantine()


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


def register_devices(
    connection: sa.Connection,
    *,
    host_id: int,
    found: Sequence[DeviceRecord],
    complete: bool = True,
    quarantine: health.Quarantine = _QUARANTINE,
) -> list[int]:
    """Write what a host's tool says of its devices; returns the ids of those that are known, in the same order.

    A device is known again by its board serial and PCI address, whatever its qid is now.

    Args:
        connection: open transaction.
        host_id: the host.
        found: its devices. One that has failed may come without serial and cores; if it was never seen ready, nothing
            is known of it, and it is left out.
        complete: ``found`` is all that the host has: the others are lost.
        quarantine: when a device that fails gets a rest.
    """
    at = now(connection)
    known = connection.execute(
        sa.select(devices).where(devices.c.host_id == host_id).order_by(devices.c.id).with_for_update()
    ).all()
    ids = []
    for device in found:
        row = next((row for row in known if _is_same(row, device)), None)
        if row is not None:
            _check(connection, row, device=device, quarantine=quarantine, at=at)
            ids.append(int(row.id))
        elif device.status == health.READY:
            ids.append(_insert(connection, host_id=host_id, device=device, at=at))
    for row in known:
        if complete and row.id not in ids:
            _check(connection, row, device=None, quarantine=quarantine, at=at)
    return ids


def _is_same(row: Any, device: DeviceRecord) -> bool:
    return row.pci_address == device.pci_address and device.board_serial in ("", row.board_serial)


def _check(
    connection: sa.Connection, row: Any, *, device: DeviceRecord | None, quarantine: health.Quarantine, at: float
) -> None:
    """Write what a check says of a device that is known; None: the tool does not name it."""
    status = health.MISSING if device is None else device.status
    before = health.Known(
        health=row.health, status=row.status, faults=row.faults, quarantined_until=row.quarantined_until
    )
    values = health.after_check(before, status=status, quarantine=quarantine, at=at)
    if device is not None and status == health.READY:
        values |= {
            "qid": device.qid,
            "sku": device.sku,
            "num_cores": device.num_cores,
            "dram_mb": device.dram_mb,
            "simulated": device.simulated,
        }
        _insert_cores(connection, row.id, num_cores=device.num_cores)
    connection.execute(sa.update(devices).where(devices.c.id == row.id).values(checked_at=at, **values))


def _insert(connection: sa.Connection, *, host_id: int, device: DeviceRecord, at: float) -> int:
    """Write a device that was never seen before."""
    names = ("board_serial", "pci_address", "qid", "sku", "num_cores", "dram_mb", "simulated")
    device_id = int(
        connection.execute(
            sa.insert(devices)
            .values(host_id=host_id, checked_at=at, **{name: getattr(device, name) for name in names})
            .returning(devices.c.id)
        ).scalar_one()
    )
    _insert_cores(connection, device_id, num_cores=device.num_cores)
    return device_id


def _insert_cores(connection: sa.Connection, device_id: int, *, num_cores: int) -> None:
    have = set(connection.scalars(sa.select(cores.c.number).where(cores.c.device_id == device_id)))
    missing = [{"device_id": device_id, "number": number} for number in range(num_cores) if number not in have]
    if missing:
        connection.execute(sa.insert(cores), missing)


def note_foreign_use(connection: sa.Connection, free_cores: Mapping[int, int]) -> dict[int, str]:
    """Compare what the tool says is free on devices with the farm's books; returns what is wrong, by device.

    Fewer cores are free than the books say when a program of somebody else, or one that outlived its attempt, has them.
    More are free while an attempt's program is not yet, or no longer, on the device.
    """
    wrong = {}
    counted = connection.execute(sa.select(core_leases.c.device_id, sa.func.count()).group_by(core_leases.c.device_id))
    held: dict[int, int] = {row[0]: row[1] for row in counted}
    rows = connection.execute(
        sa.select(devices.c.id, devices.c.num_cores, devices.c.health, devices.c.health_reason).where(
            devices.c.id.in_(sorted(free_cores))
        )
    ).all()
    for row in rows:
        in_books, reason = row.num_cores - held.get(row.id, 0), ""
        if free_cores[row.id] < in_books:
            reason = f"qaic-util says {free_cores[row.id]} cores are free, the farm's books say {in_books}"
            wrong[row.id] = reason
        if row.health == "ready" and row.health_reason != reason:
            connection.execute(sa.update(devices).where(devices.c.id == row.id).values(health_reason=reason))
    return wrong


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


def is_displaced(connection: sa.Connection, device_id: int, *, qid: int) -> bool:
    """Whether a number stands for a device no more: it has another now, or it is away and another device has this one.

    Numbers follow PCI addresses, so those behind a card that dies move up.
    """
    columns = (devices.c.host_id, devices.c.qid, devices.c.status)
    mine = connection.execute(sa.select(*columns).where(devices.c.id == device_id)).one()
    if mine.status == health.READY:
        return bool(mine.qid != qid)
    others = (devices.c.host_id == mine.host_id, devices.c.id != device_id)
    heirs = sa.select(devices.c.id).where(*others, devices.c.qid == qid, devices.c.status == health.READY)
    return connection.execute(heirs).first() is not None


def stop_node(connection: sa.Connection, node_id: int) -> None:
    """A node ends in an orderly way."""
    connection.execute(
        sa.update(nodes).where(nodes.c.id == node_id, nodes.c.stopped_at.is_(None)).values(stopped_at=now(connection))
    )


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
