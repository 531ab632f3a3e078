"""Durations as people write them: ``90s``, ``30m``, ``2h``, ``1d``, ``1h30m``. Pure."""

from __future__ import annotations

import re

from farm.errors import Usage

_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PART = r"(\d+(?:\.\d+)?)([dhms])"


def parse(text: str) -> float:
    """Seconds of a duration.

    Raises:
        Usage: it is none, or it is zero.
    """
    word = text.strip().lower()
    if not re.fullmatch(f"(?:{_PART})+", word):
        raise Usage(f"'{text}' is not a duration, expected a number with a unit, such as 90s, 30m, 2h, 1d or 1h30m")
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, word))
    if seconds <= 0:
        raise Usage(f"'{text}' is no time at all, expected a duration above zero, such as 90s or 30m")
    return seconds


def words(seconds: float) -> str:
    """A duration as :func:`parse` reads it, its two largest units: ``90s`` is ``1m30s``."""
    if seconds < 60:
        return f"{seconds:.3g}s"
    rest = round(seconds)
    parts = []
    for unit, size_s in _UNITS_S.items():
        count, rest = divmod(rest, int(size_s))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def parse_by_name(text: str, *, names: frozenset[str]) -> dict[str, float | None]:
    """The durations of ``compile=12h,run=none``; None for ``none``.

    Raises:
        Usage: an entry is no ``NAME=DURATION``, or its name is not among ``names``.
    """
    found: dict[str, float | None] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = entry.partition("=")
        if not equals or name not in names:
            raise Usage(f"'{entry}' is not NAME=DURATION with NAME one of {', '.join(sorted(names))}")
        found[name] = None if value == "none" else parse(value)
    return found
