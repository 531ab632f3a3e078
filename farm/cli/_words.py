"""Figures as people read them. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farm.views import inventory

_NAMED_AT_MOST = 8


def duration(seconds: float | None) -> str:
    """Such as ``0.42 s``, ``12.3 s``, ``4 min 05 s``, ``3 h 12 min``; empty when not known."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: int | None) -> str:
    """Such as ``512 B``, ``1.5 MiB``; empty when not known."""
    if num_bytes is None:
        return ""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def moment(seconds: float | None) -> str:
    """A point in time on this machine's calendar; empty when not known."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def jobs(ids: Sequence[int]) -> str:
    """Such as ``j3, j5``; of many only the first and how many there are more."""
    named = ", ".join(f"j{number}" for number in ids[:_NAMED_AT_MOST])
    more = len(ids) - _NAMED_AT_MOST
    return f"{named} and {more} more" if more > 0 else named


def going_on(ids: Sequence[int]) -> str:
    """Of running jobs, such as ``j3, j5 go on``."""
    if not ids:
        return "nothing runs"
    return f"{jobs(ids)} {'goes' if len(ids) == 1 else 'go'} on"


def drained(found: inventory.Drained) -> str:
    """Such as ``drained by ann since 2026-11-24 15:00:00: new firmware``."""
    what = "host drained" if found.host else "drained"
    return f"{what} by {found.by} since {moment(found.at)}{': ' if found.reason else ''}{found.reason}"


def plural(count: int, word: str) -> str:
    """Such as ``1 point``, ``3 points``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
