"""What kind of place a job wants, which bins are such places, and why no waiting would help when none is."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from farm.placement.bins import Bin
from farm.records import DeviceCapacity, ReadyJob

Key = tuple[object, ...]


@dataclasses.dataclass(slots=True)
class Demand:
    """The place that all jobs of one shape want.

    Attributes:
        stage: for a guess at memory that nobody knows.
        of_device: cores of devices are wanted, else a slot of a host.
        amount: cores of each device, or one slot.
        num_devices: devices of one host, all at once; 1 for a slot.
        exclusive: only whole, idle devices will do.
        ram_bytes: of a host; 0 when nobody knows.
        bins: where the jobs could run if those were empty.
        refusal: why there is no such place, for people; empty when there are some.
        failed_s: a job of this shape that takes so long finds no room in this round; shorter ones may.
        first_at: when the first place is predicted to have room, once that was asked for.
        failure: why a job of this shape found no room.
    """

    stage: str
    of_device: bool
    amount: int
    num_devices: int
    exclusive: bool
    ram_bytes: int
    bins: Sequence[Bin]
    refusal: str
    failed_s: float | None = None
    first_at: float | None = None
    failure: str = ""

    def wants(self, found: Bin) -> tuple[int, int]:
        """Cores or slots that a job takes of this bin, and memory of the bin's host, once for all of its bins."""
        return found.total if self.exclusive else self.amount, found.ram_for(self.stage, self.ram_bytes)

    @property
    def width(self) -> int:
        """Cores or slots that a job takes altogether, of the smallest devices that will do."""
        each = min((found.total for found in self.bins), default=0) if self.exclusive else self.amount
        return each * self.num_devices

    def hosts(self) -> list[list[Bin]]:
        """The bins by host, for jobs that span several devices; only hosts that have enough."""
        grouped: dict[int, list[Bin]] = collections.defaultdict(list)
        for found in self.bins:
            grouped[found.host_id].append(found)
        return [bins for bins in grouped.values() if len(bins) >= self.num_devices]


class Demands:
    """The demands of a round's jobs, each made once."""

    def __init__(self, devices: Sequence[Bin], hosts: Sequence[Bin]) -> None:
        self._devices, self._hosts = devices, hosts
        self._known: dict[Key, Demand] = {}

    def of(self, job: ReadyJob) -> Demand:
        """The demand of a job; equal shapes share one."""
        needs = job.needs
        wanted = None if not needs else tuple(sorted((key, repr(value)) for key, value in needs.items()))
        key = (job.stage, job.num_cores, job.num_devices, job.exclusive, job.ram_bytes, wanted, job.avoid)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(job)
        return known

    def _make(self, job: ReadyJob) -> Demand:
        of_device = job.num_cores > 0
        demand = Demand(
            stage=job.stage,
            of_device=of_device,
            amount=job.num_cores or 1,
            num_devices=max(1, job.num_devices) if of_device else 1,
            exclusive=job.exclusive and of_device,
            ram_bytes=job.ram_bytes,
            bins=self._devices if of_device else self._hosts,
            refusal="",
        )
        if not demand.bins:
            demand.refusal = f"No {'device' if of_device else 'host'} node is alive."
            return demand
        demand.bins, demand.refusal = _allowed(demand.bins, job.needs or {}, of_device=of_device)
        if not demand.refusal:
            demand.refusal = _narrow(demand)
        if not demand.refusal and job.avoid and of_device:
            others = dataclasses.replace(
                demand, bins=[found for found in demand.bins if found.device_id not in job.avoid]
            )
            # Better the device that it has just failed on than none at all.
            if others.bins and not _narrow(others):
                return others
        return demand


def _allowed(bins: Sequence[Bin], needs: Mapping[str, Any], *, of_device: bool) -> tuple[Sequence[Bin], str]:
    """The bins that meet all of the needs, or none and which need is not met."""
    place = "device" if of_device else "host"
    for name, wanted in needs.items():
        if name == "sku" and not of_device:
            continue
        test = _TESTS.get(name)
        if test is None:
            return [], f"It needs '{name}', expected one of {', '.join(_TESTS)}."
        kept = [found for found in bins if test(found, wanted)]
        if not kept:
            return [], f"No {place} that is alive {_SAYS[name](wanted)}{_instead(bins, name)}."
        bins = kept
    return bins, ""


def _labels(found: Bin, wanted: Sequence[str]) -> bool:
    return set(wanted) <= set(found.found.labels)


def _sku(found: Bin, wanted: str) -> bool:
    return isinstance(found.found, DeviceCapacity) and found.found.sku == wanted


def _sdk(found: Bin, wanted: str) -> bool:
    return found.found.sdk == wanted or found.found.sdk.startswith(wanted + ".")


_TESTS: Mapping[str, Callable[[Bin, Any], bool]] = {
    "sku": _sku,
    "host": lambda found, wanted: found.found.host == wanted,
    "labels": _labels,
    "sdk": _sdk,
}
_SAYS: Mapping[str, Callable[[Any], str]] = {
    "sku": lambda wanted: f"is an {wanted}" if wanted[:1] in "aeiou" else f"is a {wanted}",
    "host": lambda wanted: f"is of host {wanted}",
    "labels": lambda wanted: f"has the labels {', '.join(wanted)}",
    "sdk": lambda wanted: f"has SDK {wanted}",
}


def _instead(bins: Sequence[Bin], name: str) -> str:
    """What there is in place of what is needed, where a list of it is short."""
    if name == "labels":
        return ""
    there = sorted({str(getattr(found.found, name)) for found in bins} - {""})
    return f"; there is {', '.join(there)}" if there else ""


def _narrow(demand: Demand) -> str:
    """Why even empty bins would not do; keeps only those that would, and says nothing, when there are some."""
    widest = max(found.total for found in demand.bins)
    fitting = [found for found in demand.bins if found.total >= demand.amount]
    if not fitting:
        return f"It needs {demand.amount} cores, and the widest device that it may use has {widest}."
    if demand.num_devices > 1:
        counted = collections.Counter(found.host_id for found in fitting)
        if max(counted.values()) < demand.num_devices:
            return (
                f"It spans {demand.num_devices} devices of one host, and no host has more than "
                f"{max(counted.values())} that fit."
            )
        fitting = [found for found in fitting if counted[found.host_id] >= demand.num_devices]
    if demand.ram_bytes:
        most = max(found.memory.total for found in fitting)
        # What wants more memory than any host has runs alone on the largest.
        least = min(demand.ram_bytes, most)
        fitting = [found for found in fitting if not found.memory.total or found.memory.total >= least]
    demand.bins = fitting
    return ""
