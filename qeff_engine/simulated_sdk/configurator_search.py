"""Where the model configurator looks: all points of lists, or step by step towards a better one. Standard library only.

The vendor's tool uses an optimizer of its own, of which only the interface is published. Here it is a pattern search
(Hooke and Jeeves, 1961) over whole numbers: all neighbours at the current steps are tried, the best one is gone to if
it is better, else the steps are halved, and the search ends when none is better at steps of one. Batch sizes are powers
of two and move by doublings. A step of the number of cores is also tried with as many instances as then fit, since
``cores x instances`` is bounded by the device.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

PARAMETERS = ("cores", "mos", "ols", "bs", "instances")
SUCCESS, NUMERICAL_FAILURE = "SUCCESS", "NUMERICAL_FAILURE"
CONSTRAIN_FAILURE = "CONSTRAIN_FAILURE"  # sic
EXCEED_MAX_EVAL, EXCEED_MAX_ITER = "EXCEED_MAX_EVAL", "EXCEED_MAX_ITER"


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Point:
    """One configuration: what is compiled, and how many instances of it run at once."""

    cores: int = 1
    mos: int = 1
    ols: int = 1
    bs: int = 1
    instances: int = 1

    def __str__(self) -> str:
        """As the tool's log and tables write it."""
        return f"({self.compiled}, instances={self.instances})"

    @property
    def compiled(self) -> str:
        """The part that a compilation depends on."""
        return f"cores={self.cores}, mos=[{self.mos}], ols={self.ols}, batchSize={self.bs}"

    @property
    def folder(self) -> str:
        """Name of its program's directory."""
        return f"qpc-cores-{self.cores}-mos-{self.mos}-ols-{self.ols}-bs-{self.bs}-output"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """What may be tried.

    Attributes:
        ranges: smallest and largest value by parameter; those that are missing stay as they are at the start.
        device_cores: cores of the device.
    """

    ranges: Mapping[str, tuple[int, int]]
    device_cores: int

    def allows(self, point: Point) -> bool:
        """Whether the device can run this, and the ranges have it."""
        inside = all(low <= getattr(point, name) <= high for name, (low, high) in self.ranges.items())
        return inside and is_possible(point, device_cores=self.device_cores)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """How a search ended.

    Attributes:
        status: one of the tool's words.
        start, best: where it began and the best point.
        value: of the best point; None when none could be measured.
    """

    status: str
    start: Point
    best: Point
    value: float | None


# Values of points, larger is better; None for those that cannot be compiled or run.
Evaluate = Callable[[Sequence[Point]], Sequence[float | None]]


def is_possible(point: Point, *, device_cores: int) -> bool:
    """Whether a device of so many cores can run this at all."""
    return point.cores * point.instances <= device_cores and point.mos <= point.cores


def every(values: Mapping[str, Sequence[int]], *, device_cores: int) -> list[Point]:
    """All possible points of these values; without values for instances as many as fit are run."""
    names = [name for name in PARAMETERS if name in values]
    chosen = itertools.product(*(values[name] for name in names))
    points = [Point(**dict(zip(names, numbers, strict=True))) for numbers in chosen]
    if "instances" not in values:
        points = [dataclasses.replace(point, instances=max(device_cores // point.cores, 1)) for point in points]
    return [point for point in points if is_possible(point, device_cores=device_cores)]


def search(start: Point, *, space: Space, evaluate: Evaluate, max_evaluations: int) -> Found:
    """Go from a point to better ones until there are none.

    Args:
        start: where to begin.
        space: what may be tried.
        evaluate: measures points.
        max_evaluations: points that may be measured.
    """
    if not space.allows(start):
        return Found(status=CONSTRAIN_FAILURE, start=start, best=start, value=None)
    known: dict[Point, float | None] = {start: evaluate([start])[0]}
    best, value = start, known[start]
    if value is None:
        return Found(status=NUMERICAL_FAILURE, start=start, best=start, value=None)
    steps = {name: max((_index(name, high) - _index(name, low)) // 4, 1) for name, (low, high) in space.ranges.items()}
    for _ in range(2 * max_evaluations):
        new = [point for point in _neighbours(best, steps=steps, space=space) if point not in known]
        allowed = new[: max_evaluations - len(known)]
        known.update(zip(allowed, evaluate(allowed), strict=True))
        better = [(found, point) for point in allowed if (found := known[point]) is not None and found > value]
        if better:
            value, best = max(better)
        elif len(allowed) < len(new):
            return Found(status=EXCEED_MAX_EVAL, start=start, best=best, value=value)
        elif all(step == 1 for step in steps.values()):
            return Found(status=SUCCESS, start=start, best=best, value=value)
        else:
            steps = {name: max(step // 2, 1) for name, step in steps.items()}
    return Found(status=EXCEED_MAX_ITER, start=start, best=best, value=value)


def _neighbours(point: Point, *, steps: Mapping[str, int], space: Space) -> list[Point]:
    found = dict.fromkeys(_moves(point, steps=steps, space=space))
    return [near for near in found if near != point and space.allows(near)]


def _moves(point: Point, *, steps: Mapping[str, int], space: Space) -> Iterator[Point]:
    for name, step in steps.items():
        low, high = space.ranges[name]
        for way in (step, -step):
            index = min(max(_index(name, getattr(point, name)) + way, _index(name, low)), _index(name, high))
            moved = dataclasses.replace(point, **{name: _value(name, index)})
            yield moved
            if name == "cores" and "instances" in space.ranges:
                fitting = min(space.device_cores // moved.cores, space.ranges["instances"][1])
                yield dataclasses.replace(moved, instances=max(fitting, 1), mos=min(moved.mos, moved.cores))


def _index(name: str, value: int) -> int:
    """Where a value stands on its axis: the exponent of a batch size, else the value."""
    return value.bit_length() - 1 if name == "bs" else value


def _value(name: str, index: int) -> int:
    return 1 << index if name == "bs" else index
