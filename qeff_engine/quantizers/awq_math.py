"""AWQ: scale the input channels that matter before rounding, then clip what is worth clipping.

Source: J. Lin, J. Tang, H. Tang, S. Yang, W.-M. Chen, W.-C. Wang, G. Xiao, X. Dang, C. Gan, S. Han, "AWQ:
Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024 (arXiv 2306.00978), sections 3.2
and 4. ``W x = (W s) (x / s)``: a column multiplied by a large s has a small error relative to its channel. Scales are
searched on a grid between the activations' and the weights' mean magnitudes; what decides is the error of the outputs.

The paper measures that error on kept activations; here it comes from their Gram matrix, which is the same number
(see :class:`qeff_engine.quantizers.activations.ActivationStatistics`) and needs no activations in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qeff_engine.quantizers import rounding
from qeff_engine.quantizers.activations import output_error
from qeff_engine.quantizers.base import Grid, QuantizedWeight

GRID_STEPS = 20
CLIP_STEPS = 10
LEAST_CLIP = 0.5


def search_scales(
    weights: Sequence[torch.Tensor],
    *,
    abs_mean_I: torch.Tensor,
    gram_II: torch.Tensor,
    grid: Grid,
    ties_I: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Scales [in] for all weights [out, in] that read one input, and the output error that they leave.

    Channels with the same number in ``ties_I`` get one scale, the geometric mean of what each would get.

    Scales of one are among the candidates, so the error is never above that of rounding to nearest. The first of
    equal candidates wins, so that the choice does not depend on the order of anything.
    """
    best_I = torch.ones_like(abs_mean_I)
    best_error = scaled_error(weights, scales_I=best_I, gram_II=gram_II, grid=grid)
    magnitude_I = weight_magnitude(weights, grid=grid)
    for step in range(1, GRID_STEPS + 1):
        free_I = candidate_scales(abs_mean_I, magnitude_I=magnitude_I, ratio=step / GRID_STEPS)
        scales_I = tied(free_I, ties_I=ties_I)
        error = scaled_error(weights, scales_I=scales_I, gram_II=gram_II, grid=grid)
        if error < best_error:
            best_I, best_error = scales_I, error
    return best_I, best_error


def weight_magnitude(weights: Sequence[torch.Tensor], *, grid: Grid) -> torch.Tensor:
    """Mean over all rows of each column's magnitude relative to the largest in its group, [in]."""
    relative = []
    for weight_OI in weights:
        abs_OGg = weight_OI.abs().view(weight_OI.shape[0], -1, grid.columns(weight_OI.shape[1]))
        largest_OG1 = abs_OGg.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        relative.append((abs_OGg / largest_OG1).view_as(weight_OI))
    return torch.cat(relative).mean(dim=0)


def candidate_scales(abs_mean_I: torch.Tensor, *, magnitude_I: torch.Tensor, ratio: float) -> torch.Tensor:
    """``x^ratio / w^(1 - ratio)``, with geometric mean of the extremes at one; silent channels keep a scale of one."""
    # Limits keep every scale in a range where multiplying and dividing by it loses nothing in float16.
    raw_I = abs_mean_I.clamp(min=1e-8) ** ratio / magnitude_I.clamp(min=1e-4) ** (1 - ratio)
    alive_I = (abs_mean_I > 0) & torch.isfinite(raw_I)
    if not bool(alive_I.any()):
        return torch.ones_like(raw_I)
    alive = raw_I[alive_I]
    scales_I = (raw_I / (alive.max() * alive.min()).sqrt()).clamp(1e-3, 1e3)
    return torch.where(alive_I, scales_I, torch.ones_like(scales_I))


def tied(scales_I: torch.Tensor, *, ties_I: torch.Tensor) -> torch.Tensor:
    """Scales [in] of which those with the same number in ``ties_I`` are their geometric mean."""
    num_rows = int(ties_I.max()) + 1
    sums_N = torch.zeros(num_rows).index_add_(0, ties_I, scales_I.log())
    counts_N = torch.zeros(num_rows).index_add_(0, ties_I, torch.ones_like(scales_I))
    return (sums_N[ties_I] / counts_N[ties_I]).exp()


def scaled_error(
    weights: Sequence[torch.Tensor], *, scales_I: torch.Tensor, gram_II: torch.Tensor, grid: Grid
) -> float:
    """Output error, summed over the weights, of rounding ``W s`` to nearest while the input is divided by s."""
    error = 0.0
    for weight_OI in weights:
        rounded_OI = rounding.round_to_nearest(weight_OI * scales_I, grid=grid).dequantize()
        error += output_error(rounded_OI / scales_I - weight_OI, gram_II=gram_II)
    return error


def quantize_clipped(weight_OI: torch.Tensor, *, gram_II: torch.Tensor, grid: Grid) -> QuantizedWeight:
    """Rounding to nearest with the range of each group shrunk to what costs least output error.

    A group's candidates are judged with its own block of the Gram matrix; the result as a whole is then compared with
    no clipping on the full matrix, and the better one returned.
    """
    out_features, in_features = weight_OI.shape
    columns = grid.columns(in_features)
    weight_OGg = weight_OI.view(out_features, -1, columns)
    blocks_Ggg = torch.stack([gram_II[i : i + columns, i : i + columns] for i in range(0, in_features, columns)])
    plain = rounding.round_to_nearest(weight_OI, grid=grid)
    best = _GroupChoice.of(weight_OGg, blocks_Ggg, shrink=1.0, grid=grid)
    for step in range(1, CLIP_STEPS):
        shrink = 1.0 - step * (1.0 - LEAST_CLIP) / CLIP_STEPS
        best.improve(_GroupChoice.of(weight_OGg, blocks_Ggg, shrink=shrink, grid=grid))
    clipped = QuantizedWeight(
        q_OI=best.q_OGg.to(torch.uint8).reshape(out_features, in_features).contiguous(),
        scales_OG=best.scales_OG,
        zeros_OG=best.zeros_OG.to(torch.uint8),
        group_size=columns,
    )
    errors = [output_error(q.dequantize() - weight_OI, gram_II=gram_II) for q in (clipped, plain)]
    return clipped if errors[0] <= errors[1] else plain


class _GroupChoice:
    """Integers, scales and zero points of all groups, with each group's own output error."""

    def __init__(
        self, q_OGg: torch.Tensor, scales_OG: torch.Tensor, zeros_OG: torch.Tensor, errors_OG: torch.Tensor
    ) -> None:
        self.q_OGg, self.scales_OG, self.zeros_OG, self.errors_OG = q_OGg, scales_OG, zeros_OG, errors_OG

    @classmethod
    def of(cls, weight_OGg: torch.Tensor, blocks_Ggg: torch.Tensor, *, shrink: float, grid: Grid) -> _GroupChoice:
        scales_OG, zeros_OG = rounding.fit(weight_OGg * shrink, grid=grid)
        q_OGg, rounded_OGg = rounding.round_to(
            weight_OGg, scales=scales_OG[..., None], zeros=zeros_OG[..., None], grid=grid
        )
        change_GOg = (rounded_OGg - weight_OGg).transpose(0, 1)
        errors_OG = (torch.bmm(change_GOg, blocks_Ggg) * change_GOg).sum(dim=-1).T
        return cls(q_OGg, scales_OG, zeros_OG, errors_OG)

    def improve(self, other: _GroupChoice) -> None:
        """Take over the groups in which ``other`` is better."""
        better_OG = other.errors_OG < self.errors_OG
        self.q_OGg = torch.where(better_OG[..., None], other.q_OGg, self.q_OGg)
        self.scales_OG = torch.where(better_OG, other.scales_OG, self.scales_OG)
        self.zeros_OG = torch.where(better_OG, other.zeros_OG, self.zeros_OG)
        self.errors_OG = torch.where(better_OG, other.errors_OG, self.errors_OG)
