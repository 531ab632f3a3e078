"""Sweeps that keep a farm busy: stages of several kinds, some of which leave processes behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from farm.plan import Plan
from tests import small_sweep

# What a stage does, given the path of a file that nobody else has. Words of tests.small_stages.
KINDS: dict[str, Callable[[Path], str]] = {
    "instant": lambda _: "",
    "sleeping": lambda _: "sleep=0.5",
    "long": lambda _: "sleep=2",
    "deaf": lambda _: "deaf;sleep=1",
    "grandchild": lambda path: f"flee=group:{path};sleep=0.3",
    "session": lambda path: f"deaf;flee=session:{path};sleep=0.3",
    "daemon": lambda path: f"fork={path};sleep=0.3",
    "without environment": lambda path: f"flee=clean:daemon:{path};sleep=0.3",
    "litter": lambda _: "litter;sleep=0.1",
    "fault": lambda _: "raise=bug",
    "exit": lambda _: "exit=3",
}
_SAME_AGAIN = 0.15  # share of sweeps that ask for what an earlier one asked for: hits and followers


class Work:
    """Plans in a random order.

    Args:
        fled: directory of the files in which processes that leave their stage say who they are.
        rng: chooses.
    """

    def __init__(self, fled: Path, *, rng: random.Random) -> None:
        self._fled = fled
        self._rng = rng
        self._plans: list[Plan] = []

    def plan(self) -> Plan:
        """The next sweep."""
        if self._plans and self._rng.random() < _SAME_AGAIN:
            return self._rng.choice(self._plans)
        number = len(self._plans)
        source, prompt = (self._text(f"{number}-{stage}") for stage in ("resolve", "run"))
        self._plans.append(small_sweep.plan(source, cores=(4, 8), prompt=prompt))
        return self._plans[-1]

    def _text(self, name: str) -> str:
        kind = self._rng.choice(list(KINDS))
        return f"{KINDS[kind](self._fled / name)};{name}"
