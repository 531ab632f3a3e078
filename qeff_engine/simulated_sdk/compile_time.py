"""How long the real compiler would take, and in how much memory: a law with parameters in ``cost_parameters.json``.

Published are the times of one encoder on one host with a compiler of 2023; a language model's are an extrapolation, and
no memory was published at all. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping

from qeff_engine.simulated_sdk import cost_parameters


def seconds(
    *,
    operators: int,
    weight_bytes: int,
    cores: int,
    ols: int = 1,
    mos: int = 1,
    batch: int = 1,
    parameters: Mapping[str, float] | None = None,
) -> float:
    """Seconds of a compilation.

    Args:
        operators: of all specializations.
        weight_bytes: of all constants in fp32.
        cores: of the program; ``ols`` and ``mos`` multiply what each of them costs.
        ols: ``-ols``.
        mos: ``-mos``, the largest of several.
        batch: samples of a call.
        parameters: others than the file's.
    """
    found = parameters or load()
    growth = 1 + found["per_core"] * (cores - 1) + found["per_sample"] * (batch - 1)
    growth += cores * (found["per_core_and_ols"] * (ols - 1) + found["per_core_and_mos"] * (mos - 1))
    return found["per_operator_s"] * operators * growth + found["weights_s_per_gb"] * weight_bytes / 1e9


def memory_bytes(*, weight_bytes: int) -> int:
    """Largest resident memory of a compilation.

    Args:
        weight_bytes: of all constants in fp32.
    """
    found = load()
    return round(found["memory_base_gib"] * 2**30 + found["memory_per_weight_byte"] * weight_bytes)


def load() -> dict[str, float]:
    """The parameters of the file."""
    return cost_parameters.values(cost_parameters.table()["compile_time"])
