"""Outputs as a device with a fault in its arithmetic gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qeff_engine.simulated_sdk.faults import Fault

Array = npt.NDArray[Any]


def spoiled(outputs: Mapping[str, Array], *, fault: Fault) -> dict[str, Array]:
    """Outputs with a share of their values wrong: the sign of floating-point ones, the lowest bit of whole ones.

    Args:
        outputs: of any shapes and types.
        fault: its parameter ``share`` says how many are wrong, its seed which.
    """
    return {name: _spoiled(values, fault=fault) for name, values in outputs.items()}


def _spoiled(values: Array, *, fault: Fault) -> Array:
    chosen = np.random.default_rng(fault.seed).random(values.shape) < fault.parameters["share"]
    if values.dtype == np.bool_:
        wrong = ~values
    else:
        wrong = values ^ 1 if np.issubdtype(values.dtype, np.integer) else -values
    return np.where(chosen, wrong, values).astype(values.dtype, copy=False)
