"""Which ready job goes where. Pure: the same jobs and the same capacity give the same answer, so it can be replayed.

Jobs are taken by priority, then by age. A job of cores goes to the device on which the fewest stay free (best fit),
so wide devices stay free for wide jobs. A job that nothing has room for does not hold up those behind it until it has
waited for ``patience_s``; then the device that has most of its room is kept for it and takes no more jobs, so that no
stream of narrow jobs starves a wide one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

PATIENCE_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A job that may be placed.

    Attributes:
        job_id: its id; of two jobs that are alike otherwise the lower one goes first.
        priority: higher goes first.
        ready_at: since when it may be placed, seconds.
        num_cores: cores on each device; 0 when it needs a host slot.
        num_devices: devices that it spans; 0 when it needs none.
    """

    job_id: int
    priority: int
    ready_at: float
    num_cores: int
    num_devices: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """What one node has to give: cores of its device, or slots of its host.

    Attributes:
        node_id, queue: whom to send the message to.
        name: for people, such as ``ultra/0``.
        of_device: whether it is cores.
        total: how many there are.
        free: how many nobody holds or has been promised.
    """

    node_id: int
    queue: str
    name: str
    of_device: bool
    total: int
    free: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """A job and the node that it goes to, with the reason for people."""

    job_id: int
    node_id: int
    queue: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What to do with the ready jobs.

    Attributes:
        assignments: jobs that go somewhere now, in order.
        waiting: why each other job does not, by job id.
    """

    assignments: tuple[Assignment, ...]
    waiting: dict[int, str]


class _Bin:
    """A room while it is filled."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.free = room.free
        self.kept_for: int | None = None  # an older job that waits for this device to become free


def place(jobs: Iterable[ReadyJob], *, rooms: Sequence[Room], now: float, patience_s: float = PATIENCE_S) -> Placement:
    """Assign ready jobs to rooms.

    Args:
        jobs: the ready jobs, in any order.
        rooms: what is there; rooms without anything free matter for the reasons.
        now: the time that ``ready_at`` is compared with.
        patience_s: after how long a job that finds no room has a device kept for it.
    """
    bins = [_Bin(room) for room in sorted(rooms, key=lambda room: (room.queue, room.node_id))]
    assignments: list[Assignment] = []
    waiting: dict[int, str] = {}
    for job in sorted(jobs, key=lambda job: (-job.priority, job.ready_at, job.job_id)):
        amount = job.num_cores or 1
        candidates = [found for found in bins if found.room.of_device == bool(job.num_cores)]
        refusal = _never(job, candidates)
        if refusal:
            waiting[job.job_id] = refusal
            continue
        fitting = [found for found in candidates if found.free >= amount and found.kept_for is None]
        if fitting:
            chosen = _choose(fitting, of_device=bool(job.num_cores))
            chosen.free -= amount
            assignments.append(
                Assignment(
                    job_id=job.job_id,
                    node_id=chosen.room.node_id,
                    queue=chosen.room.queue,
                    reason=_reason(job, chosen),
                )
            )
            continue
        waiting[job.job_id] = _why_not_now(job, candidates)
        if job.num_cores and now - job.ready_at >= patience_s:
            _keep(job, candidates)
    return Placement(assignments=tuple(assignments), waiting=waiting)


def _choose(fitting: list[_Bin], *, of_device: bool) -> _Bin:
    """Cores are packed so that wide devices stay free; slots are spread, since stages share a host's memory."""
    return min(fitting, key=lambda found: found.free if of_device else -found.free)


def _reason(job: ReadyJob, chosen: _Bin) -> str:
    if not job.num_cores:
        return f"a slot of {chosen.room.name}"
    return f"{job.num_cores} cores of {chosen.room.name}, which leaves {chosen.free} free"


def _never(job: ReadyJob, candidates: list[_Bin]) -> str:
    """Why no amount of waiting helps as things are, or nothing."""
    if job.num_devices > 1:
        return f"It spans {job.num_devices} devices, and a node has one."
    if not candidates:
        return f"No {'device' if job.num_cores else 'host'} node is alive."
    widest = max(found.room.total for found in candidates)
    if job.num_cores > widest:
        return f"It needs {job.num_cores} cores, and the widest device that is alive has {widest}."
    return ""


def _why_not_now(job: ReadyJob, candidates: list[_Bin]) -> str:
    if not job.num_cores:
        return "All host slots are taken."
    kept = [found for found in candidates if found.free >= job.num_cores]
    if kept:
        return f"{kept[0].room.name} is kept for j{kept[0].kept_for}, which has waited longer."
    free = ", ".join(f"{found.room.name} has {found.free}" for found in candidates)
    return f"It needs {job.num_cores} free cores: {free}."


def _keep(job: ReadyJob, candidates: list[_Bin]) -> None:
    """Keep the device for a job that lacks the fewest cores to run it."""
    wide = [found for found in candidates if found.room.total >= job.num_cores and found.kept_for is None]
    if wide:
        max(wide, key=lambda found: found.free).kept_for = job.job_id
