"""What users ask of the farms of these tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import sqlalchemy as sa

from farm import models, testing
from farm.db import Database
from farm.plan import Plan, PlannedJob

NARROW, WIDE, EXCLUSIVE = "narrow", "wide", "exclusive"
SHAPES = (NARROW, WIDE, EXCLUSIVE)  # of runs: some cores of a device, of two devices, a whole device
_WIDEST = 14  # cores of each of two devices that one host has
_MODEL = "m"
# What is known of it before: a host of 16 GiB has room for two of its runs at once, or one beside two compiles.
HISTORY: Mapping[str, int] = {f"run/model={_MODEL}": 5 << 30, f"compile/model={_MODEL}": 3 << 30}  # peak bytes


def teach(database: Database) -> None:
    """Let the farm know what memory the work of these sweeps takes."""
    rows = [{"key": key, "samples": [[10.0, peak]], "updated_at": 1.0} for key, peak in HISTORY.items()]
    with database.write() as connection:
        connection.execute(sa.insert(models.history), rows)


def plan(*, cores: tuple[int, ...], tag: str, shape: str = NARROW) -> Plan:
    """A small sweep; one with the same tag shares its work, but for runs of another shape (of :data:`SHAPES`)."""
    small = testing.small_plan(cores=cores, tag=tag)
    return dataclasses.replace(small, jobs=tuple(_shaped(job, shape=shape) for job in small.jobs))


def _shaped(job: PlannedJob, *, shape: str) -> PlannedJob:
    spec = {**job.spec, "kind": "hub"}
    job = dataclasses.replace(job, model=_MODEL)
    if shape == WIDE and 0 < job.num_cores <= _WIDEST:
        return dataclasses.replace(job, spec={**spec, "devices": 2}, num_devices=2)
    return dataclasses.replace(job, spec=spec, exclusive=shape == EXCLUSIVE and job.num_cores > 0)
