"""Whole processes measured by the operating system, and figures printed for people or as JSON lines."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a finished process has used: CPU seconds (user + system, children included) and peak RSS in bytes."""

    cpu_s: float
    peak_rss_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure.

    Attributes:
        name: what was measured.
        ours: our value.
        peer: the value that it stands beside, measured in the same run; None when only a goal exists.
        unit: unit of both.
        goal: bound that we hold ourselves to, in the same unit, or for ``ratio`` when ``goal_is_ratio``.
        at_most: whether the goal is an upper bound.
        goal_is_ratio: the goal is for ours / peer.
    """

    name: str
    ours: float
    peer: float | None = None
    unit: str
    goal: float | None = None
    at_most: bool = True
    goal_is_ratio: bool = False

    @property
    def ratio(self) -> float | None:
        """Ours / peer."""
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        value = self.ratio if self.goal_is_ratio else self.ours
        if self.goal is None or value is None:
            return None
        return value <= self.goal if self.at_most else value >= self.goal

    def to_json(self) -> str:
        """One line of JSON."""
        fields = {
            "name": self.name,
            "ours": round(self.ours, 4),
            "peer": None if self.peer is None else round(self.peer, 4),
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "unit": self.unit,
            "goal": self.goal,
            "met": self.met,
        }
        return json.dumps(fields)


def figures_of(name: str, runs: int) -> list[Figure]:
    """The figures of a benchmark of this package, measured here and now."""
    figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure_all(runs)
    return figures


def run(command: Sequence[str], *, environ: dict[str, str] | None = None, cwd: Path | None = None) -> Usage:
    """Run a process to its end and return what it used; a failing one ends the benchmark with its output."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})},
        cwd=cwd,
    )
    assert process.stdout is not None
    output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{output}")
    return Usage(cpu_s=usage.ru_utime + usage.ru_stime, peak_rss_bytes=usage.ru_maxrss * 1024)


def median(runs: Sequence[Usage]) -> Usage:
    """The median of each quantity."""
    return Usage(
        cpu_s=statistics.median(run.cpu_s for run in runs),
        peak_rss_bytes=int(statistics.median(run.peak_rss_bytes for run in runs)),
    )


def machine() -> str:
    """The size of this machine, to be quoted beside every figure."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, Python {platform.python_version()}"


def show(figures: Sequence[Figure]) -> None:
    """Print a table for people."""
    print(f"{'figure':<52} {'ours':>10} {'peer':>10} {'ratio':>7} {'unit':<8} {'goal':>8}  met")
    for figure in figures:
        peer = "" if figure.peer is None else f"{figure.peer:.2f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3f}"
        goal = "" if figure.goal is None else f"{figure.goal:g}{'x' if figure.goal_is_ratio else ''}"
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        print(f"{figure.name:<52} {figure.ours:>10.2f} {peer:>10} {ratio:>7} {figure.unit:<8} {goal:>8}  {met}")
    print(f"({machine()})")


def main(measure: Callable[[int], list[Figure]], *, runs: int = 3) -> None:
    """Command line of a benchmark script: ``--json``, ``--runs N``."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON per figure")
    parser.add_argument("--runs", type=int, default=runs, help="runs of each process; the median counts")
    options = parser.parse_args()
    figures = measure(options.runs)
    if options.json:
        for figure in figures:
            print(figure.to_json())
    else:
        show(figures)
