"""The sentences of placement. They change only when the situation does: each change is a row written."""

from __future__ import annotations

from collections.abc import Sequence

from farm.placement.bins import Bin
from farm.placement.demands import Demand
from farm.placement.forecasts import rounded
from farm.records import ReadyJob, Waiting

_ROUGH = " Those ahead of it are counted together, so the forecast is rough."


def given(job: ReadyJob, demand: Demand, chosen: Sequence[Bin]) -> str:
    """Why a job starts where it does; asked for before the bins are given."""
    names = _list([found.name for found in chosen])
    head = chosen[0]
    memory = demand.wants(head)[1]
    if not demand.of_device:
        with_memory = f" with {_gib(memory)} of its memory" if memory else ""
        text = f"a slot of {names}{with_memory}"
    elif demand.exclusive:
        text = f"all of {names}"
    elif len(chosen) > 1:
        text = f"{demand.amount} cores each of {names}"
    else:
        text = f"{demand.amount} cores of {names}, which leaves {head.free - demand.amount} free"
    if demand.of_device and memory:
        text += f"; {_gib(memory)} of {head.found.host}'s memory"
    if demand.of_device and job.model and all(job.model in found.warm for found in chosen):
        text += "; it has run this model lately"
    kept_for = [found.kept.job_id for found in chosen if found.kept is not None]
    ahead = sorted({*kept_for, *(head.memory.keepers() if memory else ())})
    return f"{text}; {_jobs(ahead)} can still start in time" if ahead else text


def in_line(chosen: Bin) -> str:
    """Why a short job goes to a host that has no slot free."""
    return f"next in line for a slot of {chosen.name}"


def kept(demand: Demand, bins: Sequence[Bin], *, at: float | None, after: Sequence[int], now: float) -> Waiting:
    """A place is kept for a job that has no room."""
    names = _list([found.name for found in bins])
    verb = "is" if len(bins) == 1 else "are"
    if at is None:
        takes = "takes" if len(bins) == 1 else "take"
        return Waiting(reason=f"{_needs(demand)} {names} {takes} no other job until there is room for it.")
    return Waiting(
        reason=f"{_needs(demand)} {names} {verb} kept for it until {_jobs(after)} {_have(after)} ended.",
        forecast_at=rounded(at, now=now),
    )


def no_room(demand: Demand, *, roughly: float | None) -> Waiting:
    """Why a job waits for which nothing is kept, with a rough forecast."""
    if not demand.failure:
        demand.failure = _failure(demand)
    return Waiting(reason=demand.failure if roughly is None else demand.failure + _ROUGH, forecast_at=roughly)


def _failure(demand: Demand) -> str:
    barred = [found for found in demand.bins if found.kept is not None and found.has(*demand.wants(found))]
    if barred and demand.num_devices == 1:
        found = barred[0]
        assert found.kept is not None
        return (
            f"{found.name} has room, but is kept for j{found.kept.job_id}, which is ahead of it "
            "and would have to wait longer."
        )
    for found in demand.bins:
        keepers = found.memory.keepers() if demand.wants(found)[1] else []
        if keepers and found.kept is None and found.has(*demand.wants(found)):
            return f"{found.found.host} has the memory, but keeps it for {_jobs(keepers)}, ahead of it."
    return _needs(demand)


def in_order(job: ReadyJob, demand: Demand, *, first: int) -> Waiting:
    """Nobody passes a job without room."""
    if job.id == first:
        return Waiting(reason=_needs(demand))
    return Waiting(reason=f"j{first} is ahead of it and finds no room.")


def _needs(demand: Demand) -> str:
    """What is wanted and not there."""
    if not demand.of_device:
        if any(found.free for found in demand.bins):
            least = min(demand.wants(found)[1] for found in demand.bins)
            return f"It needs {_gib(least)} of memory beside a host slot, and no host has both free."
        return "It needs a host slot, and none is free."
    return f"{_needs_of_devices(demand)}{_and_memory(demand)}."


def _and_memory(demand: Demand) -> str:
    """What is missing of memory where there are cores."""
    wide_enough = [found for found in demand.bins if found.free >= demand.wants(found)[0]]
    if not wide_enough or any(found.has(*demand.wants(found)) for found in wide_enough):
        return ""
    least = min(demand.wants(found)[1] for found in wide_enough)
    return f" and {_gib(least)} of its host's memory, and no host has both free"


def _needs_of_devices(demand: Demand) -> str:
    if demand.exclusive:
        idle = "an idle device" if demand.num_devices == 1 else f"{demand.num_devices} idle devices of one host"
        return f"It needs {idle} to itself"
    if demand.num_devices > 1:
        return f"It needs {_cores(demand.amount)} on each of {demand.num_devices} devices of one host"
    return f"It needs {_cores(demand.amount)} on one device"


def _jobs(ids: Sequence[int]) -> str:
    unique = list(dict.fromkeys(ids))
    if len(unique) <= 3:
        return _list([f"j{job_id}" for job_id in unique])
    return f"j{unique[0]}, j{unique[1]} and {len(unique) - 2} other jobs"


def _have(ids: Sequence[int]) -> str:
    return "has" if len(set(ids)) == 1 else "have"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _cores(count: int) -> str:
    return "1 free core" if count == 1 else f"{count} free cores"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
