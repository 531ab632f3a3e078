"""Which ready job goes where. Pure: the same jobs and the same capacity give the same answer, so it can be replayed.

Jobs are taken by priority, then by age. A job of cores goes to the device on which the fewest stay free (best fit),
so wide devices stay free for wide jobs. A job that nothing has room for does not hold up those behind it until it has
waited for ``patience_s``; then the device that has most of its room is kept for it and takes no more jobs, so that no
stream of narrow jobs starves a wide one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from farm.records import Assignment, Capacity, DeviceCapacity, HostCapacity, ReadyJob, Waiting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """What placement weighs.

    Attributes:
        patience_s: after how long a job that finds no room has a device kept for it.
    """

    patience_s: float = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What to do with the ready jobs.

    Attributes:
        assignments: jobs that go somewhere now, in order.
        waiting: why each other job does not, by job id.
    """

    assignments: tuple[Assignment, ...]
    waiting: dict[int, Waiting]


class _Bin:
    """What one node has to give, while it is given: cores of its device, or slots of its host."""

    def __init__(self, found: DeviceCapacity | HostCapacity) -> None:
        self.node_id = found.node_id
        self.queue = found.queue
        self.of_device = isinstance(found, DeviceCapacity)
        self.device_ids = (found.device_id,) if isinstance(found, DeviceCapacity) else ()
        if isinstance(found, DeviceCapacity):
            self.name, self.total, self.free = found.name, found.num_cores, found.free_cores
        else:
            self.name, self.total, self.free = found.host, found.num_slots, found.free_slots
        self.kept_for: int | None = None  # an older job that waits for this device to become free


def place(
    jobs: Iterable[ReadyJob], *, capacity: Capacity, shares: Mapping[str, float], now: float, policy: Policy
) -> Placement:
    """Assign ready jobs to nodes.

    Args:
        jobs: the ready jobs, in any order.
        capacity: the live nodes; those without anything free matter for the reasons.
        shares: core-seconds by owner that count against him: what he used, halved with every half-life since.
        now: the database's clock.
        policy: weights and switches.
    """
    found: list[DeviceCapacity | HostCapacity] = [*capacity.devices, *capacity.hosts]
    bins = [_Bin(one) for one in sorted(found, key=lambda one: (one.queue, one.node_id))]
    assignments: list[Assignment] = []
    waiting: dict[int, Waiting] = {}
    for job in sorted(jobs, key=lambda job: (-job.priority, job.ready_at, job.id)):
        amount = job.num_cores or 1
        candidates = [found for found in bins if found.of_device == bool(job.num_cores)]
        refusal = _never(job, candidates)
        if refusal:
            waiting[job.id] = Waiting(reason=refusal)
            continue
        fitting = [found for found in candidates if found.free >= amount and found.kept_for is None]
        if fitting:
            chosen = _choose(fitting, of_device=bool(job.num_cores))
            chosen.free -= amount
            assignments.append(
                Assignment(
                    job_id=job.id,
                    node_id=chosen.node_id,
                    queue=chosen.queue,
                    device_ids=chosen.device_ids,
                    reason=_reason(job, chosen),
                )
            )
            continue
        waiting[job.id] = Waiting(reason=_why_not_now(job, candidates))
        if job.num_cores and now - job.ready_at >= policy.patience_s:
            _keep(job, candidates)
    return Placement(assignments=tuple(assignments), waiting=waiting)


def _choose(fitting: list[_Bin], *, of_device: bool) -> _Bin:
    """Cores are packed so that wide devices stay free; slots are spread, since stages share a host's memory."""
    return min(fitting, key=lambda found: found.free if of_device else -found.free)


def _reason(job: ReadyJob, chosen: _Bin) -> str:
    if not job.num_cores:
        return f"a slot of {chosen.name}"
    return f"{job.num_cores} cores of {chosen.name}, which leaves {chosen.free} free"


def _never(job: ReadyJob, candidates: list[_Bin]) -> str:
    """Why no amount of waiting helps as things are, or nothing."""
    if job.num_devices > 1:
        return f"It spans {job.num_devices} devices, and a node has one."
    if not candidates:
        return f"No {'device' if job.num_cores else 'host'} node is alive."
    widest = max(found.total for found in candidates)
    if job.num_cores > widest:
        return f"It needs {job.num_cores} cores, and the widest device that is alive has {widest}."
    return ""


def _why_not_now(job: ReadyJob, candidates: list[_Bin]) -> str:
    if not job.num_cores:
        return "All host slots are taken."
    kept = [found for found in candidates if found.free >= job.num_cores]
    if kept:
        return f"{kept[0].name} is kept for j{kept[0].kept_for}, which has waited longer."
    free = ", ".join(f"{found.name} has {found.free}" for found in candidates)
    return f"It needs {job.num_cores} free cores: {free}."


def _keep(job: ReadyJob, candidates: list[_Bin]) -> None:
    """Keep the device for a job that lacks the fewest cores to run it."""
    wide = [found for found in candidates if found.total >= job.num_cores and found.kept_for is None]
    if wide:
        max(wide, key=lambda found: found.free).kept_for = job.id
