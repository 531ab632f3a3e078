"""What placement weighs, in one currency: seconds of waiting.

A job's score is the time that it has waited, plus head starts for its class, its priority and the work behind it, less
what its owner has used. Waiting counts without a cap and every head start is finite, so nobody who comes later than
all head starts together can pass a job: no job starves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from farm.records import ReadyJob

_HOUR_S = 3600.0
DEFAULT_CLASSES: Mapping[str, float] = {"interactive": 24 * _HOUR_S, "nightly": 6 * _HOUR_S, "sweep": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """Weights and switches; the defaults are what a farm uses.

    Attributes:
        class_s: head start by class of urgency; an unknown class has none.
        priority_s: head start of one step of priority.
        age: weight of one second of waiting; 0 makes starvation possible.
        share_s: what an owner who uses the whole farm all the time falls back by at most.
        share_window_s: an owner who has used the whole farm for so long falls back by half of that.
        chain: head start per predicted second of the longest chain behind the job, itself included.
        longest_chain_s: chains that are longer count as this.
        burst_s: jobs whose scores differ by less are sorted for packing: those of most core-seconds first.
        patience_s: a job that has waited for so long has a place emptied for it when nobody can tell what will be free.
        overdue_s: the first job without room that has waited for so long has a place emptied, whatever is predicted.
        max_reservations: jobs of a kind of place that places are kept for at the same time.
        ahead_s: a host has so much work in line beyond its free slots, of jobs that take no longer each: a slot that
            gets free need not wait for the next round.
        best_fit: cores are taken where the fewest stay free; otherwise from the first device that has enough.
        backfill: jobs behind one without room may go first if that does not delay it; otherwise they wait behind it.
        prediction: ends of jobs are predicted; otherwise a kept device stays empty until it has room.
    """

    class_s: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(DEFAULT_CLASSES))
    priority_s: float = 0.5 * _HOUR_S
    age: float = 1.0
    share_s: float = 12 * _HOUR_S
    share_window_s: float = _HOUR_S
    chain: float = 1.0
    longest_chain_s: float = 12 * _HOUR_S
    burst_s: float = 1200.0
    patience_s: float = 30.0
    overdue_s: float = 2 * _HOUR_S
    max_reservations: int = 4
    ahead_s: float = 0.5
    best_fit: bool = True
    backfill: bool = True
    prediction: bool = True

    def claim_s(self, job: ReadyJob, *, now: float) -> float:
        """The score of a job before its owner's use is taken off, rounded down to a multiple of ``burst_s``."""
        score = (
            self.age * (now - job.ready_at)
            + self.class_s.get(job.kind, 0.0)
            + self.priority_s * job.priority
            + self.chain * min(rest_s(job), self.longest_chain_s)
        )
        return score // self.burst_s * self.burst_s if self.burst_s else score

    def setback_s(self, used: float, *, num_cores: int) -> float:
        """What the score of an owner's jobs falls by for the core-seconds that he has used of so many cores."""
        window = max(1, num_cores) * self.share_window_s
        return self.share_s * used / (used + window) if used > 0 else 0.0

    def head_start_s(self, *, priorities: int = 0) -> float:
        """How much later a job has to come to be sure not to pass another, ``priorities`` steps above it at most."""
        classes = [0.0, *self.class_s.values()]
        advantage = (
            max(classes)
            - min(classes)
            + self.priority_s * priorities
            + self.share_s
            + self.chain * self.longest_chain_s
            + self.burst_s
        )
        return advantage / self.age if self.age else float("inf")


def rest_s(job: ReadyJob) -> float:
    """Predicted seconds from the job's start to the end of the longest chain behind it; 0 when nobody knows."""
    return max(job.rest_s, job.expected_s or 0.0)
