"""Whether a device gets work: what its host's tool says of it, and how often it has failed in a row.

A device that its tool does not call ready gets none until it does. Nor does one that has failed, be it in checks or
under attempts: it cools down, and rests longer when it failed too often in a row, twice as long with each further
failure. Whatever kept it from work, it comes back when its node has tested it after the pause, and a test that fails
is a longer rest at once. A run that succeeds ends the row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from farm.db import now
from farm.models import core_leases, devices, literal
from farm.settings import Settings

READY, MISSING = "Ready", "missing"  # words of the tool, and ours for a device that it does not name
_PASSING = "Initializing"  # no fault: a device that was reset is about to come back
_LONGEST_PAUSE_S = 24 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quarantine:
    """When a device that fails gets a rest.

    Attributes:
        after: failures in a row.
        first_pause_s: how long the first rest is.
        cool_down_s: how long it gets no work after any failure.
    """

    after: int = 3
    first_pause_s: float = 60.0
    cool_down_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> Quarantine:
        """What a farm's settings say."""
        return cls(
            after=settings.quarantine_after,
            first_pause_s=settings.quarantine_s,
            cool_down_s=settings.cool_down_s,
        )

    def until(self, faults: int, *, at: float) -> float | None:
        """Until when a device with so many failures in a row rests; None when it need not."""
        if faults < self.after:
            return None
        return float(at + min(_LONGEST_PAUSE_S, self.first_pause_s * 2 ** min(faults - self.after, 30)))

    def idle_until(self, faults: int, *, at: float) -> float:
        """Until when a device that has just failed gets no work, with so many failures in a row."""
        return max(at + self.cool_down_s, self.until(faults, at=at) or 0.0)

    def words(self, faults: int) -> str:
        """Why a device that has failed gets no work, for people."""
        if faults == 0:
            return "it was not ready, cools down and is tested then"
        if faults < self.after:
            return "it failed, cools down and is tested then"
        return f"it failed {faults} times in a row, rests and is tested then"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a device before a check."""

    health: str
    status: str
    faults: int
    quarantined_until: float | None


def after_check(known: Known, *, status: str, quarantine: Quarantine, at: float) -> dict[str, Any]:
    """The columns of a device's row that change with a check. Pure.

    Args:
        known: the row before.
        status: what the tool says of the device, or :data:`MISSING`.
        quarantine: when it gets a rest.
        at: the database's time.
    """
    if status != READY:
        fault = known.status == READY and status != _PASSING
        health, reason = ("lost", "its host does not find it") if status == MISSING else ("quarantined", _says(status))
        faults = known.faults + fault
        return {"status": status, "health": health, "health_reason": reason, "faults": faults}
    resting = known.quarantined_until
    if known.health not in ("lost", "quarantined"):
        return {"status": status}
    if known.status == READY:
        return {"status": status}  # it rests, or its node tests it
    if resting is None or resting <= at:
        resting = quarantine.idle_until(known.faults, at=at)
    reason = quarantine.words(known.faults)
    return {"status": status, "health": "quarantined", "health_reason": reason, "quarantined_until": resting}


def _says(status: str) -> str:
    return f"qaic-util says {status}"


def not_answering(connection: sa.Connection, *, host_id: int, reason: str) -> None:
    """The tool of a host has failed several times: its devices get no work until it answers."""
    connection.execute(
        sa.update(devices)
        .where(devices.c.host_id == host_id, devices.c.health == "ready")
        .values(health="quarantined", health_reason=reason, checked_at=now(connection))
    )


def count_fault(
    connection: sa.Connection, device_ids: Collection[int], *, reason: str, quarantine: Quarantine
) -> list[int]:
    """Devices failed under an attempt; returns those that got work until now."""
    at = now(connection)
    stopped = []
    rows = connection.execute(
        sa.update(devices)
        .where(devices.c.id.in_(sorted(device_ids)))
        .values(faults=devices.c.faults + 1)
        .returning(devices.c.id, devices.c.faults, devices.c.health)
    ).all()
    for row in rows:
        if row.health == "ready":
            words = f"{quarantine.words(row.faults)}: {reason}"
            until = quarantine.idle_until(row.faults, at=at)
            values = {"health": "quarantined", "health_reason": words, "quarantined_until": until}
            connection.execute(sa.update(devices).where(devices.c.id == row.id).values(**values))
            stopped.append(row.id)
    return stopped


def suspect(connection: sa.Connection, device_ids: Collection[int], *, reason: str) -> None:
    """Devices may be why an attempt failed: each is tested before it gets work again, and nothing is counted."""
    connection.execute(
        sa.update(devices)
        .where(devices.c.id.in_(sorted(device_ids)), devices.c.health == "ready")
        .values(health="quarantined", health_reason=f"it is tested: {reason}", quarantined_until=now(connection))
    )


def is_due(connection: sa.Connection, device_id: int) -> bool:
    """Whether a device has rested, is there, and gets work as soon as it has been tested."""
    return connection.execute(sa.select(devices.c.id).where(*_due(connection, device_id))).first() is not None


def passed(connection: sa.Connection, device_id: int) -> None:
    """A test of a device found nothing wrong: it gets work again, if it still waits for that."""
    values = {"health": "ready", "health_reason": "", "quarantined_until": None}
    connection.execute(sa.update(devices).where(*_due(connection, device_id)).values(**values))


def failed(connection: sa.Connection, device_id: int, *, reason: str, quarantine: Quarantine) -> None:
    """A test of a device failed: it rests as one that failed too often in a row."""
    row = connection.execute(sa.select(devices.c.faults).where(*_due(connection, device_id)).with_for_update()).first()
    if row is None:
        return
    faults = max(row.faults + 1, quarantine.after)
    values = {
        "faults": faults,
        "health_reason": f"its test failed, it rests and is tested again: {reason}",
        "quarantined_until": quarantine.idle_until(faults, at=now(connection)),
    }
    connection.execute(sa.update(devices).where(devices.c.id == device_id).values(**values))


def _due(connection: sa.Connection, device_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    rested = sa.or_(devices.c.quarantined_until.is_(None), devices.c.quarantined_until <= now(connection))
    return devices.c.id == device_id, devices.c.health == "quarantined", devices.c.status == READY, rested


def forget_faults(connection: sa.Connection, keys: Sequence[tuple[int, int]]) -> None:
    """Attempts (job, number) succeeded: the devices that they hold do not fail in a row any more."""
    held = sa.select(core_leases.c.device_id).where(
        sa.tuple_(core_leases.c.job_id, core_leases.c.attempt).in_([tuple(key) for key in keys])
    )
    connection.execute(sa.update(devices).where(devices.c.faults > literal(0), devices.c.id.in_(held)).values(faults=0))


def gone_under(connection: sa.Connection, qids: Mapping[int, int]) -> dict[int, str]:
    """Why devices can no longer be what attempts run on, by id; devices of which nothing is wrong are absent.

    Args:
        connection: a transaction.
        qids: by device id, the number that its attempts address it by.
    """
    rows = connection.execute(
        sa.select(devices.c.id, devices.c.qid, devices.c.status).where(devices.c.id.in_(sorted(qids)))
    )
    found = {}
    for row in rows:
        if row.status == MISSING:
            found[row.id] = f"Device {qids[row.id]} disappeared while it ran."
        elif row.status != READY:
            found[row.id] = f"Device {qids[row.id]} failed while it ran: {_says(row.status)}."
        elif row.qid != qids[row.id]:
            found[row.id] = f"Device {qids[row.id]} was reset while it ran: it came back as {row.qid}."
    return found
