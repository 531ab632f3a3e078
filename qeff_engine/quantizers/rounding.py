"""Which integers a group of weights becomes: the choice of scale and zero point, and rounding to the nearest."""

from __future__ import annotations

import torch

from qeff_engine.quantizers.base import Grid, QuantizedWeight

_SMALLEST_SCALE = 2.0**-24  # smallest positive float16


def fit(weight_Gg: torch.Tensor, *, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [...] of groups of weights [..., g] such that rounding moves no weight over half a step.

    Scales are exact in float16 (rounded up, so that the range stays covered). Asymmetric ranges include zero, and
    zero itself is always a grid point.
    """
    if grid.symmetric:
        scales = _float16_above(weight_Gg.abs().amax(dim=-1) * 2 / grid.top)
        return scales, torch.full_like(scales, (grid.top + 1) // 2)
    low, high = weight_Gg.amin(dim=-1).clamp(max=0), weight_Gg.amax(dim=-1).clamp(min=0)
    return fit_range(low, high, grid=grid)


def fit_range(low: torch.Tensor, high: torch.Tensor, *, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points of an asymmetric grid from ``low`` <= 0 to ``high`` >= 0, of any one shape."""
    scales = _float16_above((high - low) / grid.top)
    zeros = torch.round(-low / scales)
    # A zero point that may not be that small takes integers from the upper end: the step grows to cover it again.
    squeezed = _float16_above(torch.maximum((high - low) / grid.top, high / (grid.top - grid.least_zero)))
    scales = torch.where(zeros < grid.least_zero, squeezed, scales)
    return scales, zeros.clamp(grid.least_zero, grid.top)


def round_to(
    weight: torch.Tensor, *, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest integers (as floats) and the weights that they stand for; all shapes broadcast."""
    q = torch.clamp(torch.round(weight / scales) + zeros, 0, grid.top)
    return q, (q - zeros) * scales


def round_to_nearest(weight_OI: torch.Tensor, *, grid: Grid) -> QuantizedWeight:
    """Every weight rounded to the nearest point of its group's grid, independently of all others."""
    out_features, in_features = weight_OI.shape
    columns = grid.columns(in_features)
    weight_OGg = weight_OI.view(out_features, -1, columns)
    scales_OG, zeros_OG = fit(weight_OGg, grid=grid)
    q_OGg, _ = round_to(weight_OGg, scales=scales_OG[..., None], zeros=zeros_OG[..., None], grid=grid)
    return QuantizedWeight(
        q_OI=q_OGg.to(torch.uint8).view(out_features, in_features),
        scales_OG=scales_OG,
        zeros_OG=zeros_OG.to(torch.uint8),
        group_size=columns,
    )


def _float16_above(scales: torch.Tensor) -> torch.Tensor:
    """The smallest float16 that is not below, as float32; 1 for a group of zeros."""
    half = scales.clamp(min=_SMALLEST_SCALE).half()
    # Positive floats are ordered as their bits are, so the next one is the next integer.
    above = torch.where(half.float() < scales, (half.view(torch.int16) + 1).view(torch.float16), half).float()
    return torch.where(scales > 0, above, torch.ones_like(above))
