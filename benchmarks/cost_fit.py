"""Fits the free parameters of the cost model to published rates, and says how well they hold for others.

Least squares on the logarithm of predicted over published, each residual in units of 12 % and softened beyond that, so
that a single odd figure does not bend the rest; and a prior for each parameter, since no published figure isolates it.
Solved by Levenberg and Marquardt's method with differences as derivatives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.published import LATENCY_MS, Point
from qeff_engine.simulated_sdk import cost_model, cost_parameters
from qeff_engine.simulated_sdk.cost_parameters import Parameters
from qeff_engine.simulated_sdk.devices import KINDS

# Prior of each free parameter and its spread, a standard deviation of its logarithm.
FREE: Mapping[str, tuple[float, float]] = {
    "ddr_share": (0.77, 0.04),
    "state_share": (0.7, 0.15),
    "core_reach": (3.5, 0.5),
    "sharing_exponent": (3.0, 0.4),
    "overlap_leak": (0.3, 0.5),
    "mx_weights_per_ns": (5.5, 0.2),
    "matmul_share": (0.5, 0.5),
    "conv_share": (0.6, 0.5),
    "int8_factor": (0.9, 0.3),
    "inner_overhead": (100.0, 1.0),
    "split_loss_matmul": (0.1, 0.7),
    "split_loss_conv": (0.3, 0.7),
    "vector_elements_per_clock": (60.0, 1.0),
    "power_exponent": (0.2, 0.7),
    "operator_us": (1.0, 1.0),
    "barrier_per_core_us": (0.3, 1.0),
    "ols_barriers": (0.1, 0.7),
    "ols_overlap": (1.0, 0.5),
    "mos_relief": (0.05, 1.0),
    "all_reduce_us": (50.0, 0.5),
    "host_call_us": (100.0, 0.5),
    "host_copy_gb_s": (3.5, 0.3),
    "link_gb_s": (12.5, 0.2),
}
SCALE = 0.12  # of a residual that is neither good nor bad
_SOFTNESS = 2.0  # residuals in units of SCALE beyond which their weight falls
_DIFFERENCE = 1e-4


def settings_of(point: Point) -> cost_model.Settings:
    """How the program of a point was compiled."""
    return cost_model.Settings(
        cores=point.cores, num_devices=point.devices, ols=point.ols, mos=point.mos, depth_first=point.depth_first
    )


def predicted(point: Point, *, parameters: Parameters | None = None) -> float:
    """What the model says of a point, in its own unit."""
    kind, settings = KINDS[point.sku], settings_of(point)
    if point.unit == LATENCY_MS:
        device_s = cost_model.call_s(point.work, kind=kind, settings=settings, parameters=parameters)
        return 1e3 * (device_s + cost_model.host_s(point.work, parameters=parameters))
    period_s = cost_model.period_s(
        point.work,
        kind=kind,
        settings=settings,
        instances=point.instances,
        set_size=point.set_size,
        parameters=parameters,
    )
    return point.instances * point.batch * point.texts_per_slot / period_s


def error(point: Point, value: float) -> float:
    """Relative error of a prediction; positive when it is too large."""
    return value / point.published - 1.0


def with_values(base: Parameters, logs: np.ndarray) -> Parameters:
    """``base`` with the free parameters replaced, given as logarithms in the order of :data:`FREE`."""
    return dataclasses.replace(base, **dict(zip(FREE, np.exp(logs).tolist(), strict=True)))


def logs_of(parameters: Parameters) -> np.ndarray:
    """The free parameters as logarithms."""
    return np.log([getattr(parameters, name) for name in FREE])


def _residuals(points: Sequence[Point], base: Parameters) -> Callable[[np.ndarray], np.ndarray]:
    priors = np.log([prior for prior, _ in FREE.values()])
    spreads = np.array([spread for _, spread in FREE.values()])

    def residuals(logs: np.ndarray) -> np.ndarray:
        parameters = with_values(base, logs)
        raw = np.array([math.log(predicted(point, parameters=parameters) / point.published) for point in points])
        scaled = raw / SCALE / _SOFTNESS
        soft = np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1)) * _SOFTNESS
        return np.concatenate([soft, (logs - priors) / spreads])

    return residuals


def fit(points: Sequence[Point], *, start: Parameters, steps: int = 60, tolerance: float = 1e-4) -> Parameters:
    """The parameters that meet these points best.

    Args:
        points: each with a known network.
        start: where to begin; its other parameters are kept.
        steps: at most.
        tolerance: ends when the sum of squares falls by a smaller share.
    """
    residuals, logs, damping = _residuals(points, start), logs_of(start), 1e-2
    found = residuals(logs)
    for _ in range(steps):
        steepness = _derivatives(residuals, logs, found)
        normal = steepness.T @ steepness
        before = found @ found
        for _ in range(10):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -steepness.T @ found)
            tried = residuals(logs + step)
            if tried @ tried < before:
                logs, found, damping = logs + step, tried, damping / 5
                break
            damping *= 4
        if before - found @ found < tolerance * before:
            break
    return with_values(start, logs)


def _derivatives(residuals: Callable[[np.ndarray], np.ndarray], logs: np.ndarray, found: np.ndarray) -> np.ndarray:
    columns = []
    for index in range(len(logs)):
        moved = logs.copy()
        moved[index] += _DIFFERENCE
        columns.append((residuals(moved) - found) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def left_out(points: Sequence[Point], *, fitted: Parameters, group: Callable[[Point], str]) -> dict[str, float]:
    """Predictions of each point by parameters that were fitted without its group, by the point's name.

    Each refit begins at ``fitted`` and takes at most three steps.
    """
    found: dict[str, float] = {}
    for name in dict.fromkeys(group(point) for point in points):
        kept = [point for point in points if group(point) != name]
        parameters = fit(kept, start=fitted, steps=3, tolerance=1e-3)
        for point in points:
            if group(point) == name:
                found[point.id] = predicted(point, parameters=parameters)
    return found


def initial() -> Parameters:
    """The file's parameters with the free ones at their priors."""
    return with_values(cost_parameters.load(), np.log([prior for prior, _ in FREE.values()]))
