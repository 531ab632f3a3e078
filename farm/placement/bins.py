"""What one device or host has to give, now and as its jobs end. Changed while a round gives it away."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from farm.records import Capacity, DeviceCapacity, Holding, HostCapacity

_LARGE = frozenset({"compile", "quantize"})  # stages that hold weights in memory
_AT_LEAST_S = 1.0  # until a job ends that should have ended already


@dataclasses.dataclass(slots=True)
class Kept:
    """A bin that is kept for a job.

    Attributes:
        job_id: whose turn it is.
        at: when it is predicted to start; None when nobody knows: then nothing else starts here.
        extra: cores or slots that it leaves free then.
        extra_ram_bytes: memory that it leaves free then.
    """

    job_id: int
    at: float | None
    extra: int
    extra_ram_bytes: int


@dataclasses.dataclass(slots=True, frozen=True)
class Opening:
    """When a bin has room for a job, and whose ends that takes."""

    at: float
    after: tuple[int, ...]


class Bin:
    """Cores of a device, or slots and memory of a host."""

    __slots__ = (
        "_openings",
        "board",
        "device_id",
        "ends",
        "found",
        "free",
        "free_ram_bytes",
        "host_id",
        "kept",
        "name",
        "node_id",
        "number",
        "queue",
        "queued_s",
        "ram_bytes",
        "ram_share_bytes",
        "total",
        "warm",
    )

    def __init__(self, found: DeviceCapacity | HostCapacity, *, number: int, now: float, predicted: bool) -> None:
        self.found = found
        self.number = number  # its place in the order of all bins
        self.node_id, self.queue, self.host_id = found.node_id, found.queue, found.host_id
        self.kept: Kept | None = None
        self._openings: dict[tuple[int, int], Opening | None] = {}  # each demand asks, and many want the same
        self.ram_bytes = self.free_ram_bytes = self.ram_share_bytes = 0
        self.device_id: int | None = None
        self.board, self.warm = "", frozenset[str]()
        self.queued_s = 0.0
        if isinstance(found, DeviceCapacity):
            self.name, self.total, self.free = found.name, found.num_cores, found.free_cores
            self.device_id, self.board, self.warm = found.device_id, found.board, found.warm
            if any(one.exclusive for one in found.holdings):
                self.free = 0
        else:
            self.name, self.total, self.free = found.host, found.num_slots, found.free_slots
            self.ram_bytes, self.free_ram_bytes = found.ram_bytes, found.free_ram_bytes
            self.ram_share_bytes = found.ram_bytes // max(1, found.num_slots)
            self.queued_s = found.queued_s
        self.ends = _ends(self, found.holdings, now=now, predicted=predicted)

    def ram_for(self, stage: str, ram_bytes: int) -> int:
        """Memory that a job takes here.

        One that wants more than there is gets all of it and runs alone. Of unknown appetite, a stage that is known for
        a large one counts as half of the host, another as much as every slot can have.
        """
        if not self.ram_bytes:
            return 0
        unknown = self.ram_bytes // 2 if stage in _LARGE else 0
        return min(self.ram_bytes, ram_bytes or max(unknown, self.ram_share_bytes))

    def has(self, amount: int, ram_bytes: int) -> bool:
        """Whether so much is free now."""
        return self.free >= amount and self.free_ram_bytes >= ram_bytes

    def lets(self, amount: int, ram_bytes: int, *, until: float) -> bool:
        """Whether a job that ends then may start without delaying the one that the bin is kept for."""
        kept = self.kept
        if kept is None:
            return True
        if kept.at is None:
            return False
        return until <= kept.at or (amount <= kept.extra and ram_bytes <= kept.extra_ram_bytes)

    def give(self, job_id: int, amount: int, ram_bytes: int, *, until: float) -> None:
        """Take so much away until a job's predicted end."""
        self.free -= amount
        self.free_ram_bytes -= ram_bytes
        self.ends.append((until, job_id, amount, ram_bytes))
        self._openings.clear()
        kept = self.kept
        if kept is not None and kept.at is not None and until > kept.at:
            kept.extra -= amount
            kept.extra_ram_bytes -= ram_bytes

    def line_s(self, *, now: float) -> float:
        """Seconds until a job that is put in line here now is predicted to start; infinite when nobody can tell."""
        first = min((one.ends_at for one in self.found.holdings if one.ends_at is not None), default=_NEVER)
        return max(0.0, first - now) + self.queued_s

    def line_up(self, takes_s: float) -> None:
        """Put a job in line for the next slot that gets free."""
        self.queued_s += takes_s / self.total

    def opening(self, amount: int, ram_bytes: int, *, now: float) -> Opening | None:
        """The first moment at which so much is free, if the predictions hold; None when nobody can tell."""
        key = amount, ram_bytes
        if key not in self._openings:
            self._openings[key] = self._opening(amount, ram_bytes, now=now)
        return self._openings[key]

    def _opening(self, amount: int, ram_bytes: int, *, now: float) -> Opening | None:
        free, free_ram, after = self.free, self.free_ram_bytes, []
        at = now
        self.ends.sort()
        for ends_at, job_id, given, ram in self.ends:
            if free >= amount and free_ram >= ram_bytes and ends_at > at:
                break
            if ends_at == _NEVER:
                break
            free, free_ram, at = free + given, free_ram + ram, ends_at
            after.append(job_id)
        if free < amount or free_ram < ram_bytes:
            return None
        return Opening(at=at, after=tuple(after))

    def free_at(self, at: float) -> tuple[int, int]:
        """Cores or slots, and memory, that are free then if the predictions hold."""
        free, free_ram = self.free, self.free_ram_bytes
        for ends_at, _, given, ram in self.ends:
            if ends_at <= at:
                free, free_ram = free + given, free_ram + ram
        return min(free, self.total), free_ram

    def readiness(self, amount: int, ram_bytes: int) -> float:
        """How much of what a job wants is free, from 0 to 1. Never falls while nothing else starts here."""
        of_ram = min(1.0, self.free_ram_bytes / ram_bytes) if ram_bytes else 1.0
        return min(1.0, self.free / amount, of_ram)


_NEVER = float("inf")


def _ends(place: Bin, holdings: Sequence[Holding], *, now: float, predicted: bool) -> list[tuple[float, int, int, int]]:
    """Predicted end, job, amount and memory of what is held; an end that nobody knows is infinitely far."""
    return [
        (
            max(one.ends_at, now + _AT_LEAST_S) if predicted and one.ends_at is not None else _NEVER,
            one.job_id,
            place.total if one.exclusive else one.amount,
            one.ram_bytes or place.ram_share_bytes,
        )
        for one in holdings
    ]


def bins_of(capacity: Capacity, *, now: float, predicted: bool) -> tuple[list[Bin], list[Bin]]:
    """Bins of the devices and bins of the hosts, each in an order that does not depend on that of the arguments."""
    devices = sorted(capacity.devices, key=lambda one: (one.queue, one.node_id))
    hosts = sorted(capacity.hosts, key=lambda one: (one.queue, one.node_id))
    return (
        [Bin(one, number=number, now=now, predicted=predicted) for number, one in enumerate(devices)],
        [Bin(one, number=number, now=now, predicted=predicted) for number, one in enumerate(hosts)],
    )
