"""Cores and host slots held by attempts. The primary keys of both tables make a double allocation impossible."""

from __future__ import annotations

import sqlalchemy as sa

from farm.errors import NoCapacity
from farm.models import core_leases, cores, devices, host_leases, hosts
from farm.records import Grant

_DEVICE = sa.select(devices.c.qid, devices.c.health).where(devices.c.id == sa.bindparam("device")).with_for_update()
_HELD_CORES = sa.select(core_leases.c.core).where(core_leases.c.device_id == sa.bindparam("device"))
_FREE_CORES = (
    sa.select(cores.c.number)
    .where(cores.c.device_id == sa.bindparam("device"), cores.c.usable, cores.c.number.not_in(_HELD_CORES))
    .order_by(cores.c.number)
    .limit(sa.bindparam("wanted"))
)
_INSERT_CORES = sa.insert(core_leases)
_NUM_SLOTS = sa.select(hosts.c.num_slots).where(hosts.c.id == sa.bindparam("host")).with_for_update()
_HELD_SLOTS = sa.select(host_leases.c.slot).where(host_leases.c.host_id == sa.bindparam("host"))
_INSERT_SLOT = sa.insert(host_leases)
_RELEASE = tuple(
    sa.delete(table).where(table.c.job_id == sa.bindparam("job"), table.c.attempt == sa.bindparam("number"))
    for table in (core_leases, host_leases)
)


def take_cores(
    connection: sa.Connection, device_id: int, *, num_cores: int, job_id: int, attempt: int, at: float
) -> Grant:
    """Take cores of a device, all or none.

    Raises:
        NoCapacity: fewer are free, the device is not healthy, or another transaction took one of them meanwhile.
    """
    device = connection.execute(_DEVICE, {"device": device_id}).one()
    if device.health != "ready":
        raise NoCapacity(f"Device {device.qid} is {device.health}.")
    free = connection.scalars(_FREE_CORES, {"device": device_id, "wanted": num_cores}).all()
    if len(free) < num_cores:
        raise NoCapacity(f"Device {device.qid} has {len(free)} cores free, {num_cores} are needed.")
    rows = [{"device_id": device_id, "core": core, "job_id": job_id, "attempt": attempt, "since": at} for core in free]
    try:
        connection.execute(_INSERT_CORES, rows)
    except sa.exc.IntegrityError as error:
        raise NoCapacity(f"Cores of device {device.qid} were taken meanwhile.") from error
    return Grant(device_id=device_id, qid=device.qid, cores=tuple(free))


def take_slot(connection: sa.Connection, host_id: int, *, job_id: int, attempt: int, at: float) -> None:
    """Take a slot of a host.

    Raises:
        NoCapacity: all are held.
    """
    num_slots = connection.execute(_NUM_SLOTS, {"host": host_id}).scalar_one()
    held = set(connection.scalars(_HELD_SLOTS, {"host": host_id}))
    slot = next((number for number in range(num_slots) if number not in held), None)
    if slot is None:
        raise NoCapacity(f"All {num_slots} slots of the host are held.")
    try:
        row = {"host_id": host_id, "slot": slot, "job_id": job_id, "attempt": attempt, "since": at}
        connection.execute(_INSERT_SLOT, row)
    except sa.exc.IntegrityError as error:
        raise NoCapacity("The slot was taken meanwhile.") from error


def release(connection: sa.Connection, job_id: int, *, attempt: int) -> None:
    """Give back everything that an attempt holds: its process group is gone."""
    for statement in _RELEASE:
        connection.execute(statement, {"job": job_id, "number": attempt})


def drain(connection: sa.Connection, job_id: int, *, attempt: int, at: float) -> None:
    """The attempt is lost: its slot is free, its cores are not until their host confirms that nothing runs there."""
    connection.execute(
        sa.update(core_leases)
        .where(core_leases.c.job_id == job_id, core_leases.c.attempt == attempt)
        .values(state="draining", since=at)
    )
    connection.execute(sa.delete(host_leases).where(host_leases.c.job_id == job_id, host_leases.c.attempt == attempt))


def draining(connection: sa.Connection, *, host_id: int) -> list[tuple[int, int]]:
    """Lost attempts (job, attempt) whose cores on a host wait for its confirmation."""
    statement = (
        sa.select(core_leases.c.job_id, core_leases.c.attempt)
        .join(devices, devices.c.id == core_leases.c.device_id)
        .where(devices.c.host_id == host_id, core_leases.c.state == "draining")
        .distinct()
    )
    return [(row.job_id, row.attempt) for row in connection.execute(statement)]


def confirm_gone(connection: sa.Connection, *, host_id: int, job_id: int, attempt: int) -> None:
    """A host says that a lost attempt's process group is gone: its draining cores are free."""
    here = sa.select(devices.c.id).where(devices.c.host_id == host_id)
    connection.execute(
        sa.delete(core_leases).where(
            core_leases.c.job_id == job_id,
            core_leases.c.attempt == attempt,
            core_leases.c.state == "draining",
            core_leases.c.device_id.in_(here),
        )
    )
