"""Sizes as people write them: ``200GB``, ``1.5 GiB``, ``512``. Pure."""

from __future__ import annotations

import re

from farm.errors import Usage

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{rest}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for rest, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def parse(text: str) -> int:
    """Bytes: KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB powers of 1024.

    Raises:
        Usage: it is not a size.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise Usage(f"'{text}' is not a size, expected a number with a unit, such as 200GB or 500MiB")
    unit: int = _UNITS[match[2].lower()]
    return round(float(match[1]) * unit)
