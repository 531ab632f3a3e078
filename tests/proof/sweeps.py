"""What users ask of the farms of these tests."""

from __future__ import annotations

import dataclasses

from farm import testing
from farm.plan import Plan, PlannedJob

NARROW, WIDE, EXCLUSIVE = "narrow", "wide", "exclusive"
SHAPES = (NARROW, WIDE, EXCLUSIVE)  # of runs: some cores of a device, of two devices, a whole device
_WIDEST = 14  # cores of each of two devices that one host has


def plan(*, cores: tuple[int, ...], tag: str, shape: str = NARROW) -> Plan:
    """A small sweep; one with the same tag shares its work, but for runs of another shape (of :data:`SHAPES`)."""
    small = testing.small_plan(cores=cores, tag=tag)
    return dataclasses.replace(small, jobs=tuple(_shaped(job, shape=shape) for job in small.jobs))


def _shaped(job: PlannedJob, *, shape: str) -> PlannedJob:
    spec = {**job.spec, "kind": "hub"}
    if shape == WIDE and 0 < job.num_cores <= _WIDEST:
        return dataclasses.replace(job, spec={**spec, "devices": 2}, num_devices=2)
    return dataclasses.replace(job, spec=spec, exclusive=shape == EXCLUSIVE and job.num_cores > 0)
