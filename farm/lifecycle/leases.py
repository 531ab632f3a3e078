"""Cores, host slots and memory held by attempts. The primary keys of both tables make a double allocation impossible.

A host's memory is reserved with a slot, or with cores of its devices: a run has what its attempt says
(``attempts.ram_bytes``) for as long as it has cores, whether they are held or drain.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import insert_all
from farm.errors import NoCapacity
from farm.lifecycle.transitions import chunks
from farm.models import attempts, core_leases, cores, devices, host_leases, hosts
from farm.records import Grant

RAM_SHARE = 0.9  # of a host's memory; the rest is for its nodes, their fork servers and the operating system

_THESE: sa.BindParameter[list[int]] = sa.bindparam("devices", expanding=True)
_DEVICES = (  # locked in the order of their ids, so that two claims of several devices cannot wait for each other
    sa.select(
        devices.c.id,
        devices.c.host_id,
        devices.c.qid,
        devices.c.health,
        sa.func.coalesce(devices.c.drained, hosts.c.drained).label("drained"),
    )
    .join(hosts, hosts.c.id == devices.c.host_id)
    .where(devices.c.id.in_(_THESE))
    .order_by(devices.c.id)
    .with_for_update(of=devices)
)
_CORES = (
    sa.select(cores.c.device_id, cores.c.number, core_leases.c.job_id.label("holder"))
    .outerjoin(core_leases, sa.and_(core_leases.c.device_id == cores.c.device_id, core_leases.c.core == cores.c.number))
    .where(cores.c.device_id.in_(_THESE), cores.c.usable)
    .order_by(cores.c.device_id, cores.c.number)
)
_HOST = (
    sa.select(hosts.c.name, hosts.c.num_slots, hosts.c.ram_bytes, hosts.c.drained)
    .where(hosts.c.id == sa.bindparam("host"))
    .with_for_update()
)
_HELD_SLOTS = sa.select(host_leases.c.slot, host_leases.c.ram_bytes).where(
    host_leases.c.host_id == sa.bindparam("host")
)

RAM_OF_RUNS = (  # what attempts with cores of a host's devices have of its memory, each once
    sa.select(devices.c.host_id, core_leases.c.job_id, core_leases.c.attempt, attempts.c.ram_bytes)
    .join(devices, devices.c.id == core_leases.c.device_id)
    .join(attempts, sa.and_(attempts.c.job_id == core_leases.c.job_id, attempts.c.number == core_leases.c.attempt))
    .where(attempts.c.ram_bytes > 0)
    .distinct()
)
_RAM_OF_RUNS_HERE = RAM_OF_RUNS.where(devices.c.host_id == sa.bindparam("host"))


def ram_budget(ram_bytes: int) -> int:
    """How much of a host's memory attempts may reserve altogether, in bytes."""
    return int(ram_bytes * RAM_SHARE)


def ram_of_slot(*, ram_bytes: int, num_slots: int) -> int:
    """What a stage of unknown appetite gets of a host: as much as every slot can have at the same time, in bytes."""
    return ram_budget(ram_bytes) // max(1, num_slots)


class CoresOfDevices:
    """Free cores of devices, taken in memory and written together. The rows stay locked until the transaction ends.

    Args:
        connection: open transaction that holds the jobs' rows.
        device_ids: all devices that may be taken from.
        host_id: the host that they must be of.
    """

    def __init__(self, connection: sa.Connection, device_ids: Collection[int], *, host_id: int) -> None:
        wanted = {"devices": sorted(device_ids)}
        found = connection.execute(_DEVICES, wanted).all()
        self._devices = {row.id: row for row in found if row.host_id == host_id}
        self._free: dict[int, list[int]] = collections.defaultdict(list)
        self._holders: dict[int, set[int]] = collections.defaultdict(set)
        for core in connection.execute(_CORES, wanted):
            if core.holder is None:
                self._free[core.device_id].append(core.number)
            else:
                self._holders[core.device_id].add(core.holder)
        self._taken: list[dict[str, Any]] = []

    def take(
        self, device_ids: Sequence[int], *, num_cores: int, exclusive: bool, job_id: int, attempt: int, at: float
    ) -> tuple[Grant, ...]:
        """Take cores of each of some devices for an attempt, all or none.

        Args:
            device_ids: in the order that the program counts them.
            num_cores: on each device.
            exclusive: nobody else may hold anything of the devices, and all their cores are granted.
            job_id, attempt: who gets them.
            at: the database's time.

        Raises:
            NoCapacity: fewer are free, or one of the devices is not to get work now.
        """
        granted = {
            device_id: self._find(device_id, num_cores=num_cores, exclusive=exclusive) for device_id in device_ids
        }
        for device_id, taken in granted.items():
            self._free[device_id] = [core for core in self._free[device_id] if core not in taken]
            self._holders[device_id].add(job_id)
            key = {"device_id": device_id, "job_id": job_id, "attempt": attempt, "since": at}
            self._taken += [{**key, "core": core} for core in taken]
        return tuple(
            Grant(device_id=device_id, qid=self._devices[device_id].qid, cores=tuple(taken))
            for device_id, taken in granted.items()
        )

    def _find(self, device_id: int, *, num_cores: int, exclusive: bool) -> list[int]:
        device = self._devices.get(device_id)
        if device is None:
            raise NoCapacity(f"Device {device_id} is not one of the node's host.")
        if device.health != "ready" or device.drained is not None:
            raise NoCapacity(f"Device {device.qid} is {device.health if device.drained is None else 'drained'}.")
        if exclusive and self._holders[device_id]:
            others = ", ".join(f"j{job_id}" for job_id in sorted(self._holders[device_id]))
            raise NoCapacity(f"Device {device.qid} is not empty: {others}.")
        free = self._free[device_id]
        if len(free) < num_cores:
            raise NoCapacity(f"Device {device.qid} has {len(free)} cores free, {num_cores} are needed.")
        return free if exclusive else free[:num_cores]

    def write(self, connection: sa.Connection) -> None:
        """Write what was taken; the attempts are written already."""
        insert_all(connection, core_leases, self._taken)


class RoomOfHost:
    """Free slots and memory of one host, as :class:`CoresOfDevices` has the cores of devices.

    The host's row is locked before those of its devices.
    """

    def __init__(self, connection: sa.Connection, host_id: int) -> None:
        self._host_id = host_id
        self._host = connection.execute(_HOST, {"host": host_id}).one()
        held = {row.slot: row.ram_bytes for row in connection.execute(_HELD_SLOTS, {"host": host_id})}
        runs = sum(row.ram_bytes for row in connection.execute(_RAM_OF_RUNS_HERE, {"host": host_id}))
        self._free = [number for number in range(self._host.num_slots) if number not in held]
        self._left_bytes = max(0, ram_budget(self._host.ram_bytes) - sum(held.values()) - runs)
        self._taken: list[dict[str, Any]] = []

    def take(self, *, ram_bytes: int, job_id: int, attempt: int, at: float) -> int:
        """Take a slot for an attempt; returns the memory that is reserved with it.

        Args:
            ram_bytes: to reserve, at most all that the host has for attempts: a stage that wants more runs alone. 0
                when nothing is known about it: it gets a slot's share, or what is left of that.
            job_id, attempt: who gets it.
            at: the database's time.

        Raises:
            NoCapacity: all are held, or stages and runs leave too little memory, or the host is drained.
        """
        host = self._host
        if host.drained is not None:
            raise NoCapacity(f"Host {host.name} is drained.")
        if not self._free:
            raise NoCapacity(f"All {host.num_slots} slots of the host are held.")
        share = ram_of_slot(ram_bytes=host.ram_bytes, num_slots=host.num_slots)
        reserved = self.ram_for(ram_bytes or min(share, self._left_bytes))
        self.reserve(reserved)
        key = {"host_id": self._host_id, "job_id": job_id, "attempt": attempt, "since": at}
        self._taken.append({**key, "slot": self._free.pop(0), "ram_bytes": reserved})
        return reserved

    def ram_for(self, ram_bytes: int) -> int:
        """What an attempt gets that is predicted to need so much: at most all that the host has for attempts.

        Raises:
            NoCapacity: stages and runs leave less.
        """
        wanted = min(ram_bytes, ram_budget(self._host.ram_bytes))
        if wanted > self._left_bytes:
            raise NoCapacity(
                f"Host {self._host.name} has {self._left_bytes >> 20} MiB of memory left for stages and runs, "
                f"{wanted >> 20} MiB are needed."
            )
        return wanted

    def reserve(self, ram_bytes: int) -> None:
        """Take so much of the memory that is left; it is the attempt's row that remembers it."""
        self._left_bytes -= ram_bytes

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
    """The attempt is lost: its slot is free; cores, and the memory of a run, are not until their host confirms that
    nothing runs there.
    """
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
