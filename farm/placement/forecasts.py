"""When jobs far behind will start: everything ahead of them, divided by what the farm can do. Rough on purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from farm.placement.bins import Bin
from farm.placement.demands import Demand

_FINEST_S = 1.0
_STEPS = 8  # a forecast is rounded to about this part of the time until then


class Forecasts:
    """Work ahead on one kind of place, counted while jobs are taken in order."""

    def __init__(self, bins: Sequence[Bin], *, now: float) -> None:
        self._width = max(1, sum(found.total for found in bins))
        self._ahead = sum(  # core-seconds or slot-seconds
            amount * (ends_at - now) for found in bins for ends_at, _, amount in found.ends if math.isfinite(ends_at)
        )

    def give(self, demand: Demand, expected_s: float) -> None:
        """A job starts now."""
        self._ahead += demand.width * expected_s

    def wait(self, demand: Demand, expected_s: float) -> None:
        """A job waits, ahead of those that are taken later."""
        self._ahead += demand.width * expected_s

    def roughly(self, demand: Demand, *, now: float) -> float | None:
        """When the next job with this demand starts; None when nobody can tell when any place has room."""
        if demand.first_at is None:
            openings = [found.opening(*demand.wants(found), now=now) for found in demand.bins]
            demand.first_at = min((found.at for found in openings if found is not None), default=math.inf)
        if math.isinf(demand.first_at):
            return None
        return rounded(max(demand.first_at, now + self._ahead / self._width), now=now)


def rounded(at: float, *, now: float) -> float:
    """A moment as coarse as it is far, and never earlier: what changes a little need not be written down anew."""
    step = _FINEST_S
    while step * 2 * _STEPS <= at - now:
        step *= 2
    return math.ceil(at / step) * step
