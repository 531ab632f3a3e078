"""What no schedule can beat: a lower bound of a trace's makespan.

Four arguments, each over all tasks that cannot start before some moment and the least that is behind each of them:
the work divided by what the machines can do at once; the same of the hosts' memory, which stages and runs share; the
longest chain; and tasks that do not fit beside each other. The last one gives each task a weight by its width and asks
how much weight a device can hold at the same time (dual feasible functions, Fekete and Schepers 2001, with the capacity
of each device found exactly), so that sixteen cores do not count as two free halves when only tasks of nine or more are
left.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

from farm.placement.bins import Bin, bins_of
from farm.placement.demands import Demand, Demands
from farm.records import ReadyJob
from farm.replay.traces import Task, Trace

_Weight = Callable[[int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """Lower bound of a makespan, in seconds from the first submission, and which argument gives it."""

    seconds: float
    argument: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """A task as the bounds see it: its width, when it can start at the earliest, and what is left after it."""

    task: Task
    width: int
    head_s: float
    tail_s: float


def makespan(trace: Trace, *, unplaceable: Iterable[int] = ()) -> Bound:
    """The best lower bound for a trace, tasks that no machine can run left out."""
    left_out = set(unplaceable)
    tasks = [task for task in trace.tasks if task.id not in left_out]
    if not tasks:
        return Bound(seconds=0.0, argument="nothing to do")
    heads, tails = _heads(tasks), _tails(tasks)
    start = min(task.at for task in tasks)
    best = max(
        (Bound(seconds=heads[task.id] + task.seconds + tails[task.id] - start, argument="chain") for task in tasks),
        key=lambda bound: bound.seconds,
    )
    devices, hosts = bins_of(trace.capacity, now=0.0, predicted=True)
    demands = Demands(devices, hosts)
    groups: dict[frozenset[int], list[_Piece]] = collections.defaultdict(list)
    by_host: dict[frozenset[int], list[_Piece]] = collections.defaultdict(list)
    ram = {found.host_id: found.memory.total for found in [*devices, *hosts]}
    for task in tasks:
        demand = demands.of(as_job(task))
        piece = _Piece(task=task, width=_width(demand), head_s=heads[task.id] - start, tail_s=tails[task.id])
        groups[frozenset(found.node_id for found in demand.bins)].append(piece)
        by_host[frozenset(found.host_id for found in demand.bins)].append(piece)
    bins = {found.node_id: found for found in [*devices, *hosts]}
    for places in groups:
        mine = [piece for others, pieces in groups.items() if others <= places for piece in pieces]
        for bound in _of_places(mine, [bins[place] for place in sorted(places)]):
            best = max(best, bound, key=lambda one: one.seconds)
    for places in by_host:
        mine = [piece for others, pieces in by_host.items() if others <= places for piece in pieces]
        best = max(best, _of_memory(mine, [ram[place] for place in sorted(places)]), key=lambda one: one.seconds)
    return best


def as_job(task: Task) -> ReadyJob:
    """The task as placement sees it, with its true memory."""
    return ReadyJob(
        id=task.id,
        stage=task.stage,
        priority=0,
        ready_at=0.0,
        chain=0,
        num_cores=task.num_cores,
        num_devices=task.num_devices,
        exclusive=task.exclusive,
        needs=task.needs,
        ram_bytes=task.peak_rss_bytes,
    )


def _width(demand: Demand) -> int:
    """Cores on each device: of an exclusive task all of the smallest device that it may have."""
    return min(found.total for found in demand.bins) if demand.exclusive else demand.amount


def _heads(tasks: Sequence[Task]) -> dict[int, float]:
    """When each task could start if nothing else were in the way. Tasks come after those that they wait for."""
    heads: dict[int, float] = {}
    seconds = {task.id: task.seconds for task in tasks}
    for task in tasks:
        ends = [heads[parent] + seconds[parent] for parent in task.after if parent in heads]
        heads[task.id] = max([task.at, *ends])
    return heads


def _tails(tasks: Sequence[Task]) -> dict[int, float]:
    """Seconds of the longest chain behind each task, itself left out."""
    tails = {task.id: 0.0 for task in tasks}
    for task in reversed(tasks):
        for parent in set(task.after) & set(tails):
            tails[parent] = max(tails[parent], tails[task.id] + task.seconds)
    return tails


def _of_places(pieces: Sequence[_Piece], bins: Sequence[Bin]) -> Iterable[Bound]:
    sizes = [found.total for found in bins]
    widths = sorted({piece.width for piece in pieces})
    for name, weight in _weights(widths, largest=max(sizes)):
        capacity = sum(_capacity(size, widths, weight) for size in sizes)
        if capacity:
            loads = [piece.task.seconds * piece.task.num_devices * weight(piece.width) / capacity for piece in pieces]
            yield Bound(seconds=_staggered(pieces, loads), argument=name)


def _of_memory(pieces: Sequence[_Piece], sizes: Sequence[int]) -> Bound:
    """Memory times seconds by the memory of hosts; a task that wants more than a host has gets all of it.

    A host whose memory is not counted, which is one of 0 bytes, bounds nothing.
    """
    most, ram = max(sizes), sum(sizes) if all(sizes) else math.inf
    loads = [piece.task.seconds * min(piece.task.peak_rss_bytes, most) / ram for piece in pieces]
    return Bound(seconds=_staggered(pieces, loads), argument="memory")


def _weights(widths: Sequence[int], *, largest: int) -> Iterable[tuple[str, _Weight]]:
    """Ways of counting width: as it is, wide tasks alone, and narrow ones left out where wide ones fill a device."""
    yield "work", float
    for least in widths:
        yield f"wide ({least} or more)", functools.partial(_at_least, least)
        if least <= largest // 2:
            yield f"wide (without those under {least})", functools.partial(_without_narrow, least, largest)


def _at_least(least: int, width: int) -> float:
    return float(width >= least)


def _without_narrow(least: int, largest: int, width: int) -> float:
    if width < least:
        return 0.0
    return float(largest if width > largest - least else width)


def _capacity(size: int, widths: Sequence[int], weight: _Weight) -> float:
    """The largest weight that fits on a device at once."""
    best = [0.0] * (size + 1)
    for room in range(1, size + 1):
        best[room] = max([best[room - 1], *(best[room - width] + weight(width) for width in widths if width <= room)])
    return best[size]


def _staggered(pieces: Sequence[_Piece], loads: Sequence[float]) -> float:
    """The largest of: a moment, plus the load of all that cannot start earlier, plus the least that is behind them."""
    order = sorted(range(len(pieces)), key=lambda index: -pieces[index].head_s)
    best = load = 0.0
    tail = float("inf")
    for index in order:
        load += loads[index]
        if loads[index]:
            tail = min(tail, pieces[index].tail_s)
            best = max(best, pieces[index].head_s + load + tail)
    return best
