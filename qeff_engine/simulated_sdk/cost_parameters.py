"""The numbers of the cost model and of the devices, from the one file that holds them. Standard library only.

Beside each value ``cost_parameters.json`` has its unit, where it comes from, and its kind: ``published``, ``derived``
(arithmetic on published figures), ``fitted`` (by ``python -m benchmarks.cost_model --write``) or ``assumed``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("cost_parameters.json")


@functools.cache
def table() -> Mapping[str, Any]:
    """The whole file."""
    found: Mapping[str, Any] = json.loads(FILE.read_text())
    return found


def values(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The bare values of entries with units and sources."""
    return {name: entry["value"] for name, entry in entries.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of the cost model; what each means and its unit stand in the file.

    Attributes:
        passes: of the vector unit over an element, by kind of operator.
    """

    ddr_share: float
    state_share: float
    core_reach: float
    sharing_exponent: float
    overlap_leak: float
    mx_weights_per_ns: float
    matmul_share: float
    conv_share: float
    int8_factor: float
    fp32_factor: float
    inner_overhead: float
    split_loss_matmul: float
    split_loss_conv: float
    vector_elements_per_clock: float
    power_exponent: float
    max_boost: float
    operator_us: float
    barrier_per_core_us: float
    ols_barriers: float
    ols_overlap: float
    mos_relief: float
    vtcm_bytes: float
    all_reduce_us: float
    p2p_gb_s: float
    host_call_us: float
    host_copy_gb_s: float
    link_gb_s: float
    passes: Mapping[str, float]


@functools.cache
def load() -> Parameters:
    """The parameters of the file."""
    return Parameters(**values(table()["parameters"]), passes=values(table()["passes"]))
