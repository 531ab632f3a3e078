"""Figures as a table for people, in plain text or as Markdown, and as JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from farm.replay.figures import Figures

_HEADS = (
    "trace",
    "policy",
    "makespan",
    "/ bound",
    "bound by",
    "use",
    "wait p50 / p95 / max",
    "stretch",
    "fairness",
    "promise",
)


def as_json(trace: str, policy: str, found: Figures) -> dict[str, Any]:
    """One object with all figures; times in seconds."""
    return {"trace": trace, "policy": policy, "ratio": round(found.ratio, 4), **dataclasses.asdict(found)}


def text(rows: Sequence[tuple[str, str, Figures]]) -> str:
    """A table with aligned columns."""
    cells = [_HEADS, *(_cells(*row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[tuple[str, str, Figures]]) -> str:
    """The same as a Markdown table."""
    cells = [_HEADS, tuple("---" for _ in _HEADS), *(_cells(*row) for row in rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _cells(trace: str, policy: str, found: Figures) -> tuple[str, ...]:
    waits = ", ".join(
        f"{kind} {duration(one.p50_s)} / {duration(one.p95_s)} / {duration(one.longest_s)}"
        for kind, one in found.waits.items()
    )
    return (
        trace,
        policy,
        duration(found.makespan_s),
        f"{found.ratio:.3f}",
        found.bound_by,
        f"{found.use:.0%}",
        waits,
        f"{found.stretch:.1f}",
        f"{found.fairness:.2f}",
        f"{found.promise:.2f}",
    )


def duration(seconds: float) -> str:
    """A time for people: 42 s, 7.5 min, 3.2 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.2f} h"
