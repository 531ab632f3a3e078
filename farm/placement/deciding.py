"""One round of placement.

Jobs are taken by score. A job goes where the fewest cores stay free (best fit), a host stage where most slots are. The
first jobs without room have places kept for them, and jobs behind may still start there if they end before the kept
place is needed or leave it enough: EASY backfill (Lifka 1995; Mu'alem and Feitelson 2001), with a reservation per
device. A job that spans devices of a host gets all of them at once or none. What stages in a host's slots and runs on
its devices take of its memory is kept in the same way.

A round remembers nothing: places are kept anew in each, from what is running then. So that predictions which are
always wrong cannot starve anybody, the first job without room has its place emptied once it is overdue: nothing
else starts there, and the place with most of what it wants is chosen, of which there is more in each following round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from farm.placement import reasons
from farm.placement.bins import Bin, Kept, bins_of
from farm.placement.demands import Demand, Demands
from farm.placement.forecasts import Forecasts
from farm.placement.line import Line
from farm.placement.policy import Policy
from farm.records import Assignment, Capacity, ReadyJob, Waiting

_UNKNOWN_S = 600.0  # how long a job is believed to take of which nothing is known
_NEVER = float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What to do with the ready jobs.

    Attributes:
        assignments: jobs that go somewhere now, in order.
        waiting: why each other job does not, by job id, and when it is expected to.
    """

    assignments: tuple[Assignment, ...]
    waiting: dict[int, Waiting]


def place(
    jobs: Iterable[ReadyJob], *, capacity: Capacity, shares: Mapping[str, float], now: float, policy: Policy
) -> Placement:
    """Assign ready jobs to nodes.

    Args:
        jobs: the ready jobs, in any order.
        capacity: the live nodes; those without anything free matter for the reasons.
        shares: core-seconds by owner that count against him: what he has used, halved with every half-life since, and
            what his running jobs are expected to use. What this round gives him is counted at once.
        now: the database's clock.
        policy: weights and switches.
    """
    return _Round(capacity, now=now, policy=policy).run(jobs, shares=shares)


class _Round:
    """What is given and kept while jobs are taken one after another."""

    def __init__(self, capacity: Capacity, *, now: float, policy: Policy) -> None:
        self._now, self._policy = now, policy
        self._devices, self._hosts = bins_of(capacity, now=now, predicted=policy.prediction)
        self._demands = Demands(self._devices, self._hosts)
        self._forecasts = {
            True: Forecasts(self._devices, now=now),
            False: Forecasts(self._hosts, now=now),
        }
        self._num_kept = {True: 0, False: 0}  # by whether devices are wanted
        self._first_without_room: dict[bool, int] = {}
        self._assignments: list[Assignment] = []
        self._waiting: dict[int, Waiting] = {}

    def run(self, jobs: Iterable[ReadyJob], *, shares: Mapping[str, float]) -> Placement:
        num_cores = sum(found.total for found in self._devices)
        line = Line(jobs, shares=shares, num_cores=num_cores, now=self._now, policy=self._policy)
        for job in line:
            demand = self._demands.of(job)
            if demand.refusal:
                self._waiting[job.id] = Waiting(reason=demand.refusal)
            elif self._start(job, demand) or self._line_up(job, demand):
                line.charge(job.owner, demand.width * _known(job.expected_s))
            else:
                self._wait(job, demand)
        return Placement(assignments=tuple(self._assignments), waiting=self._waiting)

    def _start(self, job: ReadyJob, demand: Demand) -> bool:
        """Give the job a place if there is one for it now."""
        first = self._first_without_room.get(demand.of_device)
        if first is not None and not self._policy.backfill:
            return False
        takes_s = _known(job.reserved_s) if self._policy.prediction else _NEVER
        if demand.failed_s is not None and takes_s >= demand.failed_s:
            return False
        until = self._now + takes_s
        chosen = self._find(job, demand, until=until)
        if not chosen:
            demand.failed_s = takes_s
            return False
        reason = reasons.given(job, demand, chosen)
        head = chosen[0]
        for found in chosen:
            amount, ram_bytes = demand.wants(found)
            found.give(job.id, amount, ram_bytes if found is head else 0, until=until)
        self._forecasts[demand.of_device].give(demand, _known(job.expected_s))
        self._assignments.append(
            Assignment(
                job_id=job.id,
                node_id=head.node_id,
                queue=head.queue,
                device_ids=tuple(found.device_id for found in chosen if found.device_id is not None),
                ram_bytes=0 if job.ram_bytes else demand.wants(head)[1],
                reason=reason,
            )
        )
        return True

    def _line_up(self, job: ReadyJob, demand: Demand) -> bool:
        """Put a short job in line on a host whose slots get free soon, unless a job before it has no room."""
        limit_s, takes_s = self._policy.ahead_s, job.reserved_s
        if demand.of_device or takes_s is None or takes_s > limit_s or not self._policy.prediction:
            return False
        if self._first_without_room.get(False) is not None:
            return False
        chosen = min(demand.bins, key=lambda found: found.line_s(now=self._now))
        if chosen.line_s(now=self._now) > limit_s:
            return False
        chosen.line_up(takes_s)
        self._assignments.append(
            Assignment(
                job_id=job.id,
                node_id=chosen.node_id,
                queue=chosen.queue,
                device_ids=(),
                ram_bytes=0 if job.ram_bytes else demand.wants(chosen)[1],
                reason=reasons.in_line(chosen),
            )
        )
        return True

    def _find(self, job: ReadyJob, demand: Demand, *, until: float) -> Sequence[Bin]:
        """The bins to start on now, or none."""
        if demand.num_devices > 1:
            return _together(demand, until=until)
        if not demand.of_device:
            return _roomiest(demand, until=until)
        return _tightest(job, demand, until=until) if self._policy.best_fit else _first(demand, until=until)

    def _wait(self, job: ReadyJob, demand: Demand) -> None:
        """Keep a place for the job if it is one of the first without room, and say why it waits."""
        forecasts = self._forecasts[demand.of_device]
        first = self._first_without_room.setdefault(demand.of_device, job.id)
        found: Waiting | None = None
        if not self._policy.backfill:
            found = reasons.in_order(job, demand, first=first)
        elif self._num_kept[demand.of_device] < self._policy.max_reservations:
            found = self._keep(job, demand, is_first=first == job.id)
        if found is None:
            found = reasons.no_room(demand, roughly=forecasts.roughly(demand, now=self._now))
        self._waiting[job.id] = found
        forecasts.wait(demand, _known(job.expected_s))

    def _keep(self, job: ReadyJob, demand: Demand, *, is_first: bool) -> Waiting | None:
        """Keep the place that has room first, or, where that cannot be told or waited for, the one nearest to it."""
        waited_s = self._now - job.ready_at
        overdue = is_first and waited_s >= self._policy.overdue_s
        plan = None if overdue else _earliest(demand, now=self._now)
        if plan is None and not overdue and waited_s < self._policy.patience_s:
            return None
        at, bins, after = plan if plan is not None else (None, _nearest(demand), ())
        if not bins:
            return None
        for found in bins:
            amount, _ = demand.wants(found)
            free = found.free_at(at) if at is not None else amount
            found.kept = Kept(job_id=job.id, at=at, extra=free - amount)
        _, ram_bytes = demand.wants(bins[0])
        bins[0].memory.keep(job.id, ram_bytes, at=at, now=self._now, takes_s=_known(job.reserved_s))
        self._num_kept[demand.of_device] += 1
        return reasons.kept(demand, bins, at=at, after=after, now=self._now)


def _known(seconds: float | None) -> float:
    return _UNKNOWN_S if seconds is None else seconds


def _open(demand: Demand, found: Bin, *, until: float) -> bool:
    """Whether a job may start on this bin now."""
    amount, ram_bytes = demand.wants(found)
    return found.has(amount, ram_bytes) and found.lets(amount, ram_bytes, until=until)


def _first(demand: Demand, *, until: float) -> Sequence[Bin]:
    return next(([found] for found in demand.bins if _open(demand, found, until=until)), ())


def _tightest(job: ReadyJob, demand: Demand, *, until: float) -> Sequence[Bin]:
    """The device on which the fewest cores stay free; of several the one that has run the model lately."""
    best, best_left = None, _NEVER
    for found in demand.bins:
        left: float = found.free - (found.total if demand.exclusive else demand.amount)
        if left < 0 or left > best_left:
            continue
        if job.model in found.warm:
            left -= 0.5  # less than a core: warmth only decides between equals
        if left < best_left and _open(demand, found, until=until):
            best, best_left = found, left
    return () if best is None else (best,)


def _roomiest(demand: Demand, *, until: float) -> Sequence[Bin]:
    """The host with most free slots, then most free memory: stages share a host's processors, so they are spread."""
    fitting = [found for found in demand.bins if _open(demand, found, until=until)]
    return [max(fitting, key=lambda found: (found.free, found.memory.free, -found.number))] if fitting else ()


def _together(demand: Demand, *, until: float) -> Sequence[Bin]:
    """Devices of one host: of as few cards as possible, then those on which the fewest cores stay free."""
    best: tuple[tuple[int, int, int], Sequence[Bin]] | None = None
    for bins in demand.hosts():
        fitting = [found for found in bins if _open(demand, found, until=until)]
        if len(fitting) < demand.num_devices:
            continue
        chosen = _few_cards(fitting, demand.num_devices)
        cards = len({found.board or str(found.number) for found in chosen})
        key = (cards, sum(found.free for found in chosen), chosen[0].number)
        if best is None or key < best[0]:
            best = key, chosen
    return () if best is None else best[1]


def _few_cards(fitting: Sequence[Bin], count: int) -> Sequence[Bin]:
    """So many of the bins, whole cards first and the smallest card that suffices before larger ones."""
    cards: dict[str, list[Bin]] = {}
    for found in fitting:
        cards.setdefault(found.board or f"#{found.number}", []).append(found)
    chosen: list[Bin] = []
    while len(chosen) < count:
        missing = count - len(chosen)
        enough = [card for card in cards.values() if len(card) >= missing]
        largest = max(len(card) for card in cards.values())
        card = min(
            enough or [card for card in cards.values() if len(card) == largest],
            key=lambda card: (len(card), sum(found.free for found in card), card[0].number),
        )
        card.sort(key=lambda found: (found.free, found.number))
        chosen += card[:missing]
        cards = {name: other for name, other in cards.items() if other is not card}
    return sorted(chosen, key=lambda found: found.number)


def _earliest(demand: Demand, *, now: float) -> tuple[float, Sequence[Bin], Sequence[int]] | None:
    """When the first place that is not kept for anybody has room, which it is, and after whose ends."""
    openings = []
    for found in demand.bins:
        if found.kept is None:
            opening = found.opening(*demand.wants(found), now=now)
            if opening is not None:
                openings.append((opening.at, found.total, found.number, found, opening.after))
    openings.sort(key=lambda one: one[:3])
    if demand.num_devices == 1:
        return (openings[0][0], [openings[0][3]], openings[0][4]) if openings else None
    by_host: dict[int, list[int]] = {}
    for index, one in enumerate(openings):  # the first host whose devices are complete
        mine = by_host.setdefault(one[3].host_id, [])
        mine.append(index)
        if len(mine) == demand.num_devices:
            after = [job_id for member in mine for job_id in openings[member][4]]
            return one[0], [openings[member][3] for member in mine], after
    return None


def _nearest(demand: Demand) -> Sequence[Bin]:
    """The place that has most of what is wanted and is not kept for anybody."""
    found = [(one.readiness(*demand.wants(one)), -one.number, one) for one in demand.bins if one.kept is None]
    found.sort(key=lambda entry: entry[:2], reverse=True)
    if demand.num_devices == 1:
        return [found[0][2]] if found else ()
    best: tuple[float, Sequence[Bin]] = -1.0, ()
    for bins in demand.hosts():
        numbers = {one.number for one in bins}
        mine = [entry for entry in found if entry[2].number in numbers][: demand.num_devices]
        total = sum(entry[0] for entry in mine)
        if len(mine) == demand.num_devices and total > best[0]:
            best = total, [entry[2] for entry in mine]
    return best[1]
