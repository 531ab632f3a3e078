"""What attempts use, measured over all processes of each, and stopped when it is too much.

One thread looks about once a second at all attempts of the node, and not at all while there are none. A stage that
takes more memory than it may is killed at once: a host without memory is slow first and then the kernel chooses whom
to kill. What counts is what a process cannot give back: pages of files, such as mapped weights, do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from workers import memory
from workers.groups import Group, census
from workers.memory import HostMemory

_logger = logging.getLogger(__name__)
_SHARE_KEPT_FREE = 0.03  # of the host's memory: below it, stages that hold more than was reserved for them are stopped
_LEAST_KEPT_FREE_BYTES = 256 << 20
_TIGHT = 4  # times that much left: look more often
_TIGHT_PERIOD_S = 0.2
_FREEING_S = 3.0  # what a killed stage's memory may take to come back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Use:
    """What processes use.

    Attributes:
        cpu_s: of each, user and system, and of the children that it waited for.
        rss_bytes: resident memory.
        held_bytes: the part of it that is not of files.
    """

    cpu_s: float = 0.0
    rss_bytes: int = 0
    held_bytes: int = 0


def use_of(processes: Sequence[psutil.Process]) -> Use:
    """What some processes use together; those that have ended meanwhile do not count."""
    cpu_s, rss_bytes, held_bytes = 0.0, 0, 0
    for process in processes:
        try:
            with process.oneshot():
                times, pages = process.cpu_times(), process.memory_info()
        except psutil.Error:
            continue
        cpu_s += times.user + times.system + times.children_user + times.children_system
        rss_bytes += pages.rss
        held_bytes += pages.rss - getattr(pages, "shared", 0)
    return Use(cpu_s=cpu_s, rss_bytes=rss_bytes, held_bytes=held_bytes)


class Gauge:
    """The use of one attempt.

    Args:
        group: its processes.
        reserved_bytes: memory that is reserved for it; 0 for none.
        limit_bytes: what it may hold; 0 for as much as there is.
    """

    def __init__(self, group: Group, *, reserved_bytes: int, limit_bytes: int) -> None:
        self.group = group
        self.reserved_bytes = reserved_bytes
        self.limit_bytes = limit_bytes
        self.last = Use()
        self.cpu_s = 0.0
        self.peak_rss_bytes = 0
        self.excess = ""  # why it was stopped

    def note(self, use: Use) -> None:
        """Take in what was seen."""
        self.last = use
        self.cpu_s = max(self.cpu_s, use.cpu_s)
        self.peak_rss_bytes = max(self.peak_rss_bytes, use.rss_bytes)

    def stop(self, reason: str) -> None:
        """Kill it for what it holds."""
        self.excess = f"{reason} It held {_mib(self.last.held_bytes)}, reserved were {_mib(self.reserved_bytes)}."
        self.group.kill()


class Meter:
    """Looks at the attempts of a node.

    Args:
        period_s: between two looks.
        lock: file by which the nodes of a host agree who stops a stage.
        look: finds the memory of the host.
    """

    def __init__(self, *, period_s: float, lock: Path, look: Callable[[], HostMemory] = memory.look) -> None:
        self._period_s = period_s
        self._lock_path = lock
        self._look = look
        self._changed = threading.Condition()
        self._gauges: list[Gauge] = []
        self._thread: threading.Thread | None = None
        self._turn: int | None = None  # descriptor of the lock while memory of a stopped stage comes back
        self._turn_until = 0.0

    @contextlib.contextmanager
    def attempt(self, group: Group, *, reserved_bytes: int, limit_bytes: int) -> Iterator[Gauge]:
        """Look after an attempt until the block ends."""
        gauge = Gauge(group, reserved_bytes=reserved_bytes, limit_bytes=limit_bytes)
        with self._changed:
            self._gauges.append(gauge)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield gauge
        finally:
            with self._changed:
                self._gauges.remove(gauge)

    def measure(self, gauges: Sequence[Gauge]) -> HostMemory:
        """Look once, and stop what uses too much; the memory of the host."""
        for gauge, members in zip(gauges, census([gauge.group for gauge in gauges]), strict=True):
            gauge.note(use_of(members))
            if gauge.limit_bytes and gauge.last.held_bytes > gauge.limit_bytes and not gauge.excess:
                gauge.stop(
                    f"The stage was stopped because it may hold no more than {_mib(gauge.limit_bytes)} of memory."
                )
        host = self._look()
        if host.available_bytes < kept_free_bytes(host):
            self._relieve(gauges, host)
        elif self._turn is not None:
            self._end_turn()
        return host

    def _relieve(self, gauges: Sequence[Gauge], host: HostMemory) -> None:
        """Stop the stage that is furthest above what was reserved for it, if there is one and no other node does."""
        if self._turn is not None:
            if time.monotonic() < self._turn_until:
                return
            self._end_turn()
        excess = {gauge: gauge.last.held_bytes - gauge.reserved_bytes for gauge in gauges if not gauge.excess}
        worst = max(excess, key=excess.__getitem__, default=None)
        if worst is None or excess[worst] <= 0 or not self._take_turn():
            return
        _logger.warning("%s of memory are left: a stage is stopped", _mib(host.available_bytes))
        left = f"{_mib(host.available_bytes)} of {_mib(host.total_bytes)} were left"
        worst.stop(f"The stage was stopped because the host ran out of memory: {left}.")

    def _take_turn(self) -> bool:
        """Whether this node may stop a stage now. One after the other: each gives back what others may need."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        turn = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(turn)
            return False
        self._turn, self._turn_until = turn, time.monotonic() + _FREEING_S
        return True

    def _end_turn(self) -> None:
        if self._turn is not None:
            os.close(self._turn)
        self._turn = None

    def _watch(self) -> None:
        pause = threading.Event()
        pause_s = self._period_s
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._gauges)
            pause.wait(pause_s)  # a stage that is over by then is never looked at
            with self._changed:
                gauges = list(self._gauges)
            if gauges:
                host = self.measure(gauges)
                tight = host.available_bytes < _TIGHT * kept_free_bytes(host)
                pause_s = min(self._period_s, _TIGHT_PERIOD_S) if tight else self._period_s


def kept_free_bytes(host: HostMemory) -> int:
    """How much memory of a host stages should leave."""
    return max(_LEAST_KEPT_FREE_BYTES, int(host.total_bytes * _SHARE_KEPT_FREE))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes >> 20} MiB"
