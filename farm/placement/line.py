"""The order in which jobs are taken: by score, and with every assignment its owner falls back at once."""

from __future__ import annotations

import collections
import heapq
from collections.abc import Iterable, Iterator, Mapping

from farm.placement.policy import Policy, rest_s
from farm.records import ReadyJob

_Key = tuple[float, float, int, int, float, int]


class Line:
    """Jobs, best score first. Iterate, and :meth:`charge` the owner of the last one before taking the next."""

    def __init__(
        self, jobs: Iterable[ReadyJob], *, shares: Mapping[str, float], num_cores: int, now: float, policy: Policy
    ) -> None:
        self._used = dict(shares)
        self._num_cores = num_cores
        self._policy = policy
        by_owner: dict[str, list[tuple[_Key, ReadyJob]]] = collections.defaultdict(list)
        for job in jobs:
            by_owner[job.owner].append((_key(job, now=now, policy=policy), job))
        self._lines = {owner: _sorted(line) for owner, line in by_owner.items()}

    def __iter__(self) -> Iterator[ReadyJob]:
        # One line per owner and a heap of their heads: a charge moves only the owner's own head.
        heads = [self._head(owner, 0) for owner in self._lines]
        heapq.heapify(heads)
        while heads:
            _, owner, number = heads[0]
            line = self._lines[owner]
            yield line[number][1]
            if number + 1 < len(line):
                heapq.heapreplace(heads, self._head(owner, number + 1))
            else:
                heapq.heappop(heads)

    def charge(self, owner: str, core_seconds: float) -> None:
        """Count work that an owner has just been given."""
        self._used[owner] = self._used.get(owner, 0.0) + core_seconds

    def _head(self, owner: str, number: int) -> tuple[_Key, str, int]:
        key = self._lines[owner][number][0]
        setback = self._policy.setback_s(self._used.get(owner, 0.0), num_cores=self._num_cores)
        return (key[0] + setback, *key[1:]), owner, number


def _key(job: ReadyJob, *, now: float, policy: Policy) -> _Key:
    """Smallest first. Among equal scores those of most core-seconds go first: they are the hardest to place later."""
    claim = -policy.claim_s(job, now=now)
    if not policy.burst_s:
        return claim, 0.0, 0, 0, job.ready_at, job.id
    width = max(1, job.num_cores) * max(1, job.num_devices)
    return claim, -rest_s(job) * width, -width, -job.chain, job.ready_at, job.id


def _sorted(line: list[tuple[_Key, ReadyJob]]) -> list[tuple[_Key, ReadyJob]]:
    line.sort(key=lambda entry: entry[0])
    return line
