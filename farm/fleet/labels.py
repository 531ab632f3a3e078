"""What users call devices and hosts, beside their names: words that jobs can ask for."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from farm.db import wake_scheduler
from farm.lifecycle.steering import Place
from farm.models import devices, hosts


def of(connection: sa.Connection, place: Place) -> list[str]:
    """The labels of a device or a host itself, sorted."""
    table, mine = _row(place)
    return sorted(connection.scalar(sa.select(table.c.labels).where(mine).with_for_update()) or ())


def change(connection: sa.Connection, place: Place, *, words: Iterable[str], remove: bool = False) -> list[str]:
    """Add words to the labels of a place, or take them away; returns what it has then."""
    old = set(of(connection, place))
    new = sorted(old - set(words) if remove else old | set(words))
    table, mine = _row(place)
    connection.execute(sa.update(table).where(mine).values(labels=new))
    wake_scheduler(connection)  # a job may have waited for a place like this
    return new


def _row(place: Place) -> tuple[sa.Table, sa.ColumnElement[bool]]:
    if place.device_id is None:
        return hosts, hosts.c.id == place.host_id
    return devices, devices.c.id == place.device_id
