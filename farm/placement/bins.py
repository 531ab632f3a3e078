"""What one device or host has to give, now and as its jobs end. Changed while a round gives it away."""

from __future__ import annotations

import dataclasses

from farm.placement.memory import NEVER, Memory, Opening, ends, first_opening
from farm.records import Capacity, DeviceCapacity, HostCapacity

_LARGE = frozenset({"compile", "quantize"})  # stages that hold weights in memory


@dataclasses.dataclass(slots=True)
class Kept:
    """A bin that is kept for a job.

    Attributes:
        job_id: whose turn it is.
        at: when it is predicted to start; None when nobody knows: then nothing else starts here.
        extra: cores or slots that it leaves free then.
    """

    job_id: int
    at: float | None
    extra: int


class Bin:
    """Cores of a device or slots of a host, beside the host's memory, which its bins share."""

    __slots__ = (
        "_openings",
        "board",
        "device_id",
        "ends",
        "found",
        "free",
        "host_id",
        "kept",
        "memory",
        "name",
        "node_id",
        "number",
        "queue",
        "queued_s",
        "total",
        "warm",
    )

    def __init__(
        self, found: DeviceCapacity | HostCapacity, *, memory: Memory, number: int, now: float, predicted: bool
    ) -> None:
        self.found = found
        self.number = number  # its place in the order of all bins
        self.node_id, self.queue, self.host_id = found.node_id, found.queue, found.host_id
        self.kept: Kept | None = None
        self.memory = memory
        self._openings: dict[tuple[int, int, int], Opening | None] = {}  # each demand asks, and many want the same
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
            self.queued_s = found.queued_s
        self.ends = [  # predicted end, job and amount of what is held
            (
                ends(one.ends_at, now=now, predicted=predicted),
                one.job_id,
                self.total if one.exclusive else one.amount,
            )
            for one in found.holdings
            if one.amount
        ]

    def ram_for(self, stage: str, ram_bytes: int) -> int:
        """Memory that a job takes here, of a run on devices: of the host of all of them.

        One that wants more than there is gets all of it and runs alone. Of unknown appetite, a stage that is known for
        a large one counts as half of the host, another as much as every slot can have, and a run as nothing.
        """
        if self.device_id is not None:
            return min(self.memory.total, ram_bytes)
        unknown = self.memory.total // 2 if stage in _LARGE else 0
        return min(self.memory.total, ram_bytes or max(unknown, self.memory.share))

    def has(self, amount: int, ram_bytes: int) -> bool:
        """Whether so much is free now."""
        return self.free >= amount and self.memory.free >= ram_bytes

    def lets(self, amount: int, ram_bytes: int, *, until: float) -> bool:
        """Whether a job that ends then may start without delaying those that the bin or its memory are kept for."""
        kept = self.kept
        if kept is not None and (kept.at is None or (until > kept.at and amount > kept.extra)):
            return False
        return self.memory.lets(ram_bytes, until=until)

    def give(self, job_id: int, amount: int, ram_bytes: int, *, until: float) -> None:
        """Take so much away until a job's predicted end."""
        self.free -= amount
        self.memory.give(job_id, ram_bytes, until=until)
        self.ends.append((until, job_id, amount))
        self._openings.clear()
        kept = self.kept
        if kept is not None and kept.at is not None and until > kept.at:
            kept.extra -= amount

    def line_s(self, *, now: float) -> float:
        """Seconds until a job that is put in line here now is predicted to start; infinite when nobody can tell."""
        slots = (one.ends_at for one in self.found.holdings if one.amount and one.ends_at is not None)
        first = min(slots, default=NEVER)
        return max(0.0, first - now) + self.queued_s

    def line_up(self, takes_s: float) -> None:
        """Put a job in line for the next slot that gets free."""
        self.queued_s += takes_s / self.total

    def opening(self, amount: int, ram_bytes: int, *, now: float) -> Opening | None:
        """The first moment at which so much is free, if the predictions hold; None when nobody can tell."""
        key = amount, ram_bytes, self.memory.version if ram_bytes else 0
        if key not in self._openings:
            self._openings[key] = self._opening(amount, ram_bytes, now=now)
        return self._openings[key]

    def _opening(self, amount: int, ram_bytes: int, *, now: float) -> Opening | None:
        room = first_opening(self.ends, free=self.free, wanted=amount, now=now)
        memory = self.memory.opening(ram_bytes, now=now)
        if room is None or memory is None:
            return None
        return Opening(at=max(room.at, memory.at), after=(*room.after, *memory.after))

    def free_at(self, at: float) -> int:
        """Cores or slots that are free then if the predictions hold."""
        free = self.free + sum(amount for ends_at, _, amount in self.ends if ends_at <= at)
        return min(free, self.total)

    def readiness(self, amount: int, ram_bytes: int) -> float:
        """How much of what a job wants is free, from 0 to 1. Never falls while nothing else starts here."""
        of_ram = min(1.0, self.memory.free / ram_bytes) if ram_bytes else 1.0
        return min(1.0, self.free / amount, of_ram)


def bins_of(capacity: Capacity, *, now: float, predicted: bool) -> tuple[list[Bin], list[Bin]]:
    """Bins of the devices and bins of the hosts, each in an order that does not depend on that of the arguments."""
    devices = sorted(capacity.devices, key=lambda one: (one.queue, one.node_id))
    hosts = sorted(capacity.hosts, key=lambda one: (one.queue, one.node_id))
    memories = {
        one.host_id: Memory(one, now=now, predicted=predicted) for one in (*capacity.silent_hosts, *capacity.hosts)
    }
    nothing = Memory(None, now=now, predicted=predicted)

    def bin_of(found: DeviceCapacity | HostCapacity, number: int) -> Bin:
        memory = memories.get(found.host_id, nothing)
        return Bin(found, memory=memory, number=number, now=now, predicted=predicted)

    return (
        [bin_of(one, number) for number, one in enumerate(devices)],
        [bin_of(one, number) for number, one in enumerate(hosts)],
    )
