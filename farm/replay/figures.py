"""Figures of an outcome: makespan beside its bound, waits, use, stretch, fairness, and the promise on waits."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Sequence

from farm.placement.bins import bins_of
from farm.placement.demands import Demands
from farm.replay import bounds
from farm.replay.simulating import Outcome, Run
from farm.replay.traces import Trace

_LEAST_S = 10.0  # shorter tasks count as this in a stretch: a wait of a second does not hurt more for being first
_SPEED = 0.5  # of the promise: the part of the farm that works while somebody waits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waits:
    """Seconds that the tasks of one class waited for a place."""

    count: int
    p50_s: float
    p95_s: float
    longest_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What a policy made of a trace.

    Attributes:
        bound_s: what no schedule can beat.
        bound_by: the argument that gives the bound.
        waits: by class.
        use: core-seconds of runs divided by what the devices had from the first submission to the last end; of host
            slots where the trace has no devices.
        stretch: the largest of waiting and running time divided by running time.
        fairness: Jain's index over the owners' slowdowns, 1 when all are alike (Jain, Chiu and Hawe 1984). A slowdown
            is the time to an owner's last result divided by the bound for his tasks alone.
        promise: the largest part of the promised longest wait (:func:`promised_s`) that a task waited: at most 1.
        memory: the largest part of a host's memory that its tasks had at once: at most 1.
    """

    makespan_s: float
    bound_s: float
    bound_by: str
    waits: dict[str, Waits]
    use: float
    stretch: float
    fairness: float
    promise: float
    memory: float
    unplaceable: int

    @property
    def ratio(self) -> float:
        """Makespan divided by its bound."""
        return self.makespan_s / self.bound_s if self.bound_s else 1.0


def figures(trace: Trace, outcome: Outcome) -> Figures:
    """The figures of what became of a trace."""
    runs = sorted(outcome.runs.values(), key=lambda run: (run.started_at, run.task.id))
    start = min((run.task.at for run in runs), default=0.0)
    makespan_s = max((run.ended_at for run in runs), default=0.0) - start
    bound = bounds.makespan(trace, unplaceable=outcome.unplaceable)
    return Figures(
        makespan_s=makespan_s,
        bound_s=bound.seconds,
        bound_by=bound.argument,
        waits=_waits(runs),
        use=_use(trace, runs, makespan_s),
        stretch=max((_stretch(run) for run in runs), default=1.0),
        fairness=_jain(_slowdowns(trace, outcome)),
        promise=max((run.wait_s / promised for run, promised in promised_s(trace, runs)), default=0.0),
        memory=_memory(trace, runs),
        unplaceable=len(outcome.unplaceable),
    )


def _waits(runs: Iterable[Run]) -> dict[str, Waits]:
    by_kind: dict[str, list[float]] = collections.defaultdict(list)
    for run in runs:
        by_kind[run.task.kind].append(run.wait_s)
    return {
        kind: Waits(
            count=len(waits),
            p50_s=statistics.median(waits),
            p95_s=sorted(waits)[max(0, -(-95 * len(waits) // 100) - 1)],
            longest_s=max(waits),
        )
        for kind, waits in sorted(by_kind.items())
    }


def _width(run: Run) -> int:
    return max(1, run.task.num_cores) * run.task.num_devices


def _use(trace: Trace, runs: Iterable[Run], makespan_s: float) -> float:
    of_device = bool(trace.capacity.devices)
    width = (
        sum(device.num_cores for device in trace.capacity.devices)
        if of_device
        else sum(host.num_slots for host in trace.capacity.hosts)
    )
    busy = sum(_width(run) * run.task.seconds for run in runs if bool(run.device_ids) == of_device)
    return busy / (width * makespan_s) if width and makespan_s else 0.0


def _stretch(run: Run) -> float:
    running_s = max(run.task.seconds, _LEAST_S)
    return (run.wait_s + running_s) / running_s


def _slowdowns(trace: Trace, outcome: Outcome) -> list[float]:
    """By owner: how much longer his work took than it must have taken if nobody else had been there."""
    found = []
    for owner in sorted({run.task.owner for run in outcome.runs.values()}):
        mine = [run for run in outcome.runs.values() if run.task.owner == owner]
        took_s = max(run.ended_at for run in mine) - min(run.task.at for run in mine)
        alone = bounds.makespan(dataclasses.replace(trace, tasks=tuple(run.task for run in mine)))
        found.append(took_s / alone.seconds)
    return found


def _jain(values: Sequence[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if values else 1.0


def promised_s(trace: Trace, runs: Sequence[Run]) -> list[tuple[Run, float]]:
    """The longest wait that each run was promised, in seconds.

    While a task waits, at least half of the places that it may have are at work, apart from the time of the two longest
    tasks: one that was running when it came, and one that its place was kept free for. A host is at work as far as
    its slots or its memory are taken, whichever is more, by runs on its devices, too. For a run that has memory of its
    host reserved, a device is also at work as far as that memory is taken.
    """
    devices, hosts = bins_of(trace.capacity, now=0.0, predicted=True)
    demands = Demands(devices, hosts)
    by_device = {found.device_id: found for found in devices}
    by_node = {found.node_id: found for found in hosts}
    nodes = {found.host_id: found.node_id for found in hosts}
    of_memory: dict[int, list[tuple[float, float, float]]] = collections.defaultdict(list)  # by host
    busy: dict[int, list[tuple[float, float, float]]] = collections.defaultdict(list)
    longest_s = {True: 0.0, False: 0.0}
    longest_of_memory_s = 0.0
    for run in runs:
        of_device = bool(run.device_ids)
        longest_s[of_device] = max(longest_s[of_device], run.task.seconds)
        places = [by_device[device_id] for device_id in run.device_ids] or [by_node[run.node_id]]
        of_ram = run.ram_bytes / places[0].memory.total if run.ram_bytes else 0.0
        if of_ram:
            longest_of_memory_s = max(longest_of_memory_s, run.task.seconds)
            of_memory[places[0].host_id].append((run.started_at, run.ended_at, of_ram))
            if of_device:
                busy[nodes[places[0].host_id]].append((run.started_at, run.ended_at, of_ram))
        for place in places:
            part = max(1, run.task.num_cores) / place.total
            busy[place.node_id].append((run.started_at, run.ended_at, part if of_device else max(part, of_ram)))
    promised = []
    for run in runs:
        bins = demands.of(bounds.as_job(run.task)).bins
        shares_memory = bool(run.ram_bytes and run.device_ids)
        work_s = sum(
            part * (min(ended_at, run.started_at) - max(started_at, run.ready_at))
            for found in bins
            for started_at, ended_at, part in [
                *busy[found.node_id],
                *(of_memory[found.host_id] if shares_memory else ()),
            ]
            if started_at < run.started_at and ended_at > run.ready_at
        )
        longest = max(longest_s[bool(run.device_ids)], longest_of_memory_s if run.ram_bytes else 0.0)
        promised.append((run, work_s / (_SPEED * len(bins)) + 2 * longest))
    return promised


def _memory(trace: Trace, runs: Iterable[Run]) -> float:
    """The largest part of a host's memory that was really in use."""
    ram = {host.host_id: host.ram_bytes for host in trace.capacity.hosts}
    host_ids = {one.node_id: one.host_id for one in trace.capacity.hosts}
    host_ids |= {one.node_id: one.host_id for one in trace.capacity.devices}
    changes: dict[int, list[tuple[float, int]]] = collections.defaultdict(list)
    for run in runs:
        host_id = host_ids[run.node_id]
        changes[host_id].append((run.ended_at, -run.task.peak_rss_bytes))
        changes[host_id].append((run.started_at, run.task.peak_rss_bytes))
    most = 0.0
    for host_id, found in changes.items():
        used = 0
        for _, change in sorted(found):
            used += change
            most = max(most, used / ram[host_id] if ram.get(host_id) else 0.0)
    return most
