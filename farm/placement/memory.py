"""What jobs may reserve of one host's memory: stages in its slots and runs on its devices take of the same.

A job that has no room keeps what it will need of it, as it keeps cores or a slot (:class:`farm.placement.bins.Kept`),
so neither of the two kinds can take away what the other waits for. Unlike those, memory is kept by several jobs at
once: others may have what they leave.
"""

from __future__ import annotations

import dataclasses

from farm.records import HostCapacity

NEVER = float("inf")
_AT_LEAST_S = 1.0  # until a job ends that should have ended already


@dataclasses.dataclass(slots=True)
class _Kept:
    """Memory that is kept for a job.

    Attributes:
        job_id: whose turn it is.
        at: when it is predicted to start; None when nobody knows: then its memory is set aside as it gets free.
        until: when it is predicted to end if it starts then.
        ram_bytes: what it takes.
        extra: what it and those before it leave free; negative while there is too little.
    """

    job_id: int
    at: float | None
    until: float
    ram_bytes: int
    extra: int


@dataclasses.dataclass(slots=True, frozen=True)
class Opening:
    """When there is room for a job, and whose ends that takes."""

    at: float
    after: tuple[int, ...]


class Memory:
    """Memory of a host, in bytes, as its jobs end; ``total`` is 0 where none is counted."""

    __slots__ = ("_ends", "_kept", "free", "share", "total", "version")

    def __init__(self, found: HostCapacity | None, *, now: float, predicted: bool) -> None:
        self.version = 0  # of what openings are computed from
        self.total = found.ram_bytes if found is not None else 0
        self.free = found.free_ram_bytes if found is not None else 0
        self.share = self.total // max(1, found.num_slots) if found is not None else 0
        self._kept: list[_Kept] = []
        self._ends = [
            (ends(one.ends_at, now=now, predicted=predicted), one.job_id, one.ram_bytes or self.share)
            for one in (found.holdings if found is not None else ())
            if one.ram_bytes or one.amount  # a run of unknown appetite has none
        ]

    def keepers(self) -> list[int]:
        """The jobs that memory is kept for."""
        return [kept.job_id for kept in self._kept]

    def lets(self, ram_bytes: int, *, until: float) -> bool:
        """Whether a job that ends then may take so much without delaying those that memory is kept for."""
        return not ram_bytes or all(
            (kept.at is not None and until <= kept.at) or ram_bytes <= kept.extra for kept in self._kept
        )

    def give(self, job_id: int, ram_bytes: int, *, until: float) -> None:
        """Take so much away until a job's predicted end."""
        if not ram_bytes:
            return
        self.free -= ram_bytes
        self._ends.append((until, job_id, ram_bytes))
        self.version += 1
        for kept in self._kept:
            if kept.at is None or until > kept.at:
                kept.extra -= ram_bytes

    def keep(self, job_id: int, ram_bytes: int, *, at: float | None, now: float, takes_s: float) -> None:
        """Keep so much for a job that is predicted to start then."""
        if not ram_bytes:
            return
        free = self.free if at is None else self._free_at(at)
        extra = free - ram_bytes - sum(kept.ram_bytes for kept in self._kept)
        until = (now if at is None else at) + takes_s
        self._kept.append(_Kept(job_id=job_id, at=at, until=until, ram_bytes=ram_bytes, extra=extra))
        self.version += 1

    def opening(self, ram_bytes: int, *, now: float) -> Opening | None:
        """The first moment at which so much is free beside what is kept; None when nobody can tell."""
        if not ram_bytes:
            return Opening(at=now, after=())
        free = self.free - sum(kept.ram_bytes for kept in self._kept)
        changes = [*self._ends, *((kept.until, kept.job_id, kept.ram_bytes) for kept in self._kept)]
        return first_opening(changes, free=free, wanted=ram_bytes, now=now)

    def _free_at(self, at: float) -> int:
        return self.free + sum(ram_bytes for ends_at, _, ram_bytes in self._ends if ends_at <= at)


def ends(ends_at: float | None, *, now: float, predicted: bool) -> float:
    """When a job is believed to end; infinitely far when nobody knows."""
    return max(ends_at, now + _AT_LEAST_S) if predicted and ends_at is not None else NEVER


def first_opening(changes: list[tuple[float, int, int]], *, free: int, wanted: int, now: float) -> Opening | None:
    """The first moment at which so much is free if jobs give back what they have as predicted.

    Args:
        changes: predicted end, job, and what it gives back.
        free: what is free now.
        wanted: what has to be free.
        now: the database's clock.
    """
    at, after = now, []
    for ends_at, job_id, given in sorted(changes):
        if (free >= wanted and ends_at > at) or ends_at == NEVER:
            break
        free, at = free + given, ends_at
        after.append(job_id)
    return Opening(at=at, after=tuple(after)) if free >= wanted else None
