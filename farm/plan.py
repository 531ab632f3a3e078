"""What a submission will do, before any row is written: points, jobs and the edges between them."""

from __future__ import annotations

import dataclasses
from typing import Any

from qeff_engine import spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job of a plan.

    Attributes:
        plan_key: digest of stage, spec and the plan keys of its inputs; unique within a plan.
        stage: kind of work.
        spec: JSON form of the stage's spec.
        label: for people, such as ``compile 14 cores fp16``.
        inputs: plan key of the parent by input name.
        num_cores: cores on each device; 0 when it needs a host slot instead.
        num_devices: devices that it spans; 0 when it needs none.
        chain: longest chain of jobs behind it.
    """

    plan_key: str
    stage: spec.Stage
    spec: dict[str, Any]
    label: str
    inputs: dict[str, str]
    num_cores: int = 0
    num_devices: int = 0
    chain: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """One combination of the sweep's axes, and the jobs that serve it, by plan key, in stage order."""

    axes: dict[str, Any]
    plan_keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole submission. Jobs are in an order in which parents come before children."""

    jobs: tuple[PlannedJob, ...]
    points: tuple[PlannedPoint, ...]
