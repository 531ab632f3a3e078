"""Cores and host slots held by attempts. The primary keys of both tables make a double allocation impossible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import insert_all
from farm.errors import NoCapacity
from farm.models import core_leases, cores, devices, host_leases, hosts
from farm.records import Grant
from farm.transitions import chunks

_DEVICE = sa.select(devices.c.qid, devices.c.health).where(devices.c.id == sa.bindparam("device")).with_for_update()
_HELD_CORES = sa.select(core_leases.c.core).where(core_leases.c.device_id == sa.bindparam("device"))
_FREE_CORES = (
    sa.select(cores.c.number)
    .where(cores.c.device_id == sa.bindparam("device"), cores.c.usable, cores.c.number.not_in(_HELD_CORES))
    .order_by(cores.c.number)
)
_NUM_SLOTS = sa.select(hosts.c.num_slots).where(hosts.c.id == sa.bindparam("host")).with_for_update()
_HELD_SLOTS = sa.select(host_leases.c.slot).where(host_leases.c.host_id == sa.bindparam("host"))


class CoresOfDevice:
    """Free cores of one device, taken in memory and written together. Its row stays locked until the transaction ends.

    Args:
        connection: open transaction.
        device_id: the device.
    """

    def __init__(self, connection: sa.Connection, device_id: int) -> None:
        self._device_id = device_id
        self._device = connection.execute(_DEVICE, {"device": device_id}).one()
        self._free = list(connection.scalars(_FREE_CORES, {"device": device_id}))
        self._taken: list[dict[str, Any]] = []

    def take(self, num_cores: int, *, job_id: int, attempt: int, at: float) -> Grant:
        """Take cores for an attempt, all or none.

        Raises:
            NoCapacity: fewer are free, or the device is not healthy.
        """
        device = self._device
        if device.health != "ready":
            raise NoCapacity(f"Device {device.qid} is {device.health}.")
        if len(self._free) < num_cores:
            raise NoCapacity(f"Device {device.qid} has {len(self._free)} cores free, {num_cores} are needed.")
        taken, self._free = self._free[:num_cores], self._free[num_cores:]
        key = {"device_id": self._device_id, "job_id": job_id, "attempt": attempt, "since": at}
        self._taken += [{**key, "core": core} for core in taken]
        return Grant(device_id=self._device_id, qid=device.qid, cores=tuple(taken))

    def write(self, connection: sa.Connection) -> None:
        """Write what was taken; the attempts are written already."""
        insert_all(connection, core_leases, self._taken)


class SlotsOfHost:
    """Free slots of one host, as :class:`CoresOfDevice` has the cores of a device."""

    def __init__(self, connection: sa.Connection, host_id: int) -> None:
        self._host_id = host_id
        self._num_slots = connection.execute(_NUM_SLOTS, {"host": host_id}).scalar_one()
        held = set(connection.scalars(_HELD_SLOTS, {"host": host_id}))
        self._free = [number for number in range(self._num_slots) if number not in held]
        self._taken: list[dict[str, Any]] = []

    def take(self, *, job_id: int, attempt: int, at: float) -> None:
        """Take a slot for an attempt.

        Raises:
            NoCapacity: all are held.
        """
        if not self._free:
            raise NoCapacity(f"All {self._num_slots} slots of the host are held.")
        key = {"host_id": self._host_id, "job_id": job_id, "attempt": attempt, "since": at}
        self._taken.append({**key, "slot": self._free.pop(0)})

    def write(self, connection: sa.Connection) -> None:
        """Write what was taken; the attempts are written already."""
        insert_all(connection, host_leases, self._taken)


def release(connection: sa.Connection, job_id: int, *, attempt: int) -> None:
    """Give back everything that an attempt holds: its process group is gone."""
    release_all(connection, [(job_id, attempt)])


def release_all(connection: sa.Connection, keys: Sequence[tuple[int, int]]) -> None:
    """Give back everything that attempts (job, number) hold."""
    for some in chunks(keys):
        for table in (core_leases, host_leases):
            held = sa.tuple_(table.c.job_id, table.c.attempt).in_([tuple(key) for key in some])
            connection.execute(sa.delete(table).where(held))


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
