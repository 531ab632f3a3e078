"""What the compiler prints with ``-aic-perf-metrics``, read as far as it is understood. Pure.

Source of the form: the output shown in the SDK's profiling tutorial
(https://github.com/quic/cloud-ai-sdk, tutorials/NLP/Profiler-Intermediate). It is meant for people and no version
promises it, so a line that is missing or looks otherwise is left out and never an error.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from typing import Any

# K is 1024: in the sample the shared memory of 886,016 bytes is one transfer of 864 KB and some words.
_BYTES = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_OVERFLOWN = 1 << 63  # the compiler counts unsigned and prints what is below zero as such a number
_NUMBER = r"\s*[:=]?\s*([0-9][0-9.,]*)\s*\(?(B|KB|MB|GB)?\b"
_SINGLE = {
    "macs": r"original mac estimate",
    "hmx_macs": r"aic hmx mac estimate",
    "other_macs": r"aic non-hmx mac estimate",
    "constants_before_packing_bytes": r"pred32 constants size",
    "constants_bytes": r"final constants size",
    "vtcm_max_bytes": r"vtcmmaxsize",
    "static_shared_ddr_bytes": r"staticsharedddrsize",
    "dynamic_shared_ddr_bytes": r"dynamicsharedddrsize",
    "static_constants_bytes": r"staticconstantssize",
    "dynamic_constants_bytes": r"dynamicconstantssize",
    "ddr_read_bytes": r"total: ddr traffic\s+read",
    "ddr_write_bytes": r"total: ddr traffic\s+write",
    "multicast_read_bytes": r"total: mc\s+traffic\s+read",
    "multicast_write_bytes": r"total: mc\s+traffic\s+write",
    "qpc_constants_bytes": r"constants\.bin qpc section size",
    "elf_bytes": r"elf sections size",
}
_BY_CORE = {
    "vtcm_bytes_by_core": r"vtcm(\d+)size",
    "ddr_read_bytes_by_core": r"c(\d+): ddr traffic\s+read",
    "ddr_write_bytes_by_core": r"c(\d+): ddr traffic\s+write",
    "multicast_read_bytes_by_core": r"c(\d+): mc\s+traffic\s+read",
    "multicast_write_bytes_by_core": r"c(\d+): mc\s+traffic\s+write",
    "barriers_by_core": r"c(\d+) barriers",
}
_ONE = {name: re.compile(rf"^\s*{words}{_NUMBER}", re.IGNORECASE) for name, words in _SINGLE.items()}
_EACH = {name: re.compile(rf"^\s*{words}{_NUMBER}", re.IGNORECASE) for name, words in _BY_CORE.items()}
# Printed with -time-passes, by the simulated compiler alone.
_PREDICTED = re.compile(r"^Predicted compile time of the real compiler: ([0-9]+\.[0-9]+) s$")
_HISTOGRAM_ROW = re.compile(r"^\s*(\d+)\s+(\d+)\s+\d+%\s*$")


def parse(lines: Iterable[str]) -> dict[str, Any]:
    """Figures by name; nothing of what was not printed.

    What is printed several times, as by a compile of several graphs, counts with the largest value. Lists by core are
    in the order of the cores; ``ops_by_output_elements`` has pairs of output elements and number of operations.
    ``simulated_compile_s`` is what a simulated compiler says that the real one would take, never a measurement.
    """
    found: dict[str, Any] = {}
    by_core: dict[str, dict[int, int]] = collections.defaultdict(dict)
    cumulative: dict[int, int] = {}
    for line in lines:
        for name, pattern in _ONE.items():
            if (match := pattern.match(line)) and (value := _value(match[1], match[2])) is not None:
                found[name] = max(value, found.get(name, 0))
        for name, pattern in _EACH.items():
            if (match := pattern.match(line)) and (value := _value(match[2], match[3])) is not None:
                core = int(match[1])
                by_core[name][core] = max(value, by_core[name].get(core, 0))
        if match := _PREDICTED.match(line.rstrip()):
            found["simulated_compile_s"] = max(float(match[1]), found.get("simulated_compile_s", 0.0))
        if match := _HISTOGRAM_ROW.match(line):
            cumulative[int(match[1])] = int(match[2])
    for name, values in by_core.items():
        found[name] = [values[core] for core in sorted(values)]
    if cumulative:
        found["ops_by_output_elements"] = _counts(cumulative)
        found["num_ops"] = max(cumulative.values())
    return found


def _value(text: str, unit: str | None) -> int | None:
    """A number in bytes or without unit; None when it is none, or one that the compiler's counter has lost."""
    try:
        value = float(text.replace(",", "")) if "." in text else int(text.replace(",", ""))
    except ValueError:
        return None
    value = round(value * _BYTES[(unit or "").lower()])
    return value if value < _OVERFLOWN else None


def _counts(cumulative: dict[int, int]) -> list[list[int]]:
    """Pairs of size and number, from pairs of size and number up to it."""
    before = 0
    pairs = []
    for size in sorted(cumulative):
        pairs.append([size, cumulative[size] - before])
        before = cumulative[size]
    return pairs
