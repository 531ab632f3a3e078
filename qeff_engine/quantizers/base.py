"""The contract of a quantizer, and the values that it works on. No files, no hooks, no model here.

Capitals in names are shapes: O output rows of a linear, I input columns, G groups of a row, g columns of a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import torch

from qeff_engine.errors import InvalidInput
from qeff_engine.quantizers.activations import ActivationStatistics

# The layout of a checkpoint; also the `quant_method` in its config.
GPTQ_LAYOUT = "gptq"
AWQ_LAYOUT = "awq"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Which integers a weight may become.

    Attributes:
        group_size: input columns that share a scale and a zero point; -1 for the whole row.
        bits: bits of an integer.
        symmetric: the zero point is the middle of the range, whatever the weights are.
        least_zero: smallest zero point. GPTQ's first layout stores the zero point minus one, and readers disagree about
            what a stored -1 is, so with that layout zero points start at 1.
    """

    group_size: int
    bits: int = 4
    symmetric: bool = False
    least_zero: int = 0

    @property
    def top(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1

    def columns(self, in_features: int) -> int:
        """Columns of a group in a row of ``in_features``."""
        return in_features if self.group_size == -1 else self.group_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """The integers of a linear's weight, and what turns them into numbers: ``(q - zero) * scale``.

    Attributes:
        q_OI: integers, uint8 [out, in].
        scales_OG: float32 [out, groups]; every value is exact in float16.
        zeros_OG: zero points, uint8 [out, groups].
        group_size: columns of a group, never -1.
    """

    q_OI: torch.Tensor
    scales_OG: torch.Tensor
    zeros_OG: torch.Tensor
    group_size: int

    def dequantize(self) -> torch.Tensor:
        """The weight these integers stand for, float32 [out, in]."""
        out_features, in_features = self.q_OI.shape
        q_OGg = self.q_OI.float().view(out_features, -1, self.group_size)
        weight_OGg = (q_OGg - self.zeros_OG.float()[..., None]) * self.scales_OG[..., None]
        return weight_OGg.view(out_features, in_features)


class Quantizer(Protocol):
    """A way to quantize the linears of a model, one input at a time.

    The stage calls :meth:`input_scales` once for all linears that read the same tensor, folds what it returns into
    whatever computes that tensor, and then calls :meth:`quantize` for each of them.

    Attributes:
        layout: layout of the checkpoint, :data:`GPTQ_LAYOUT` or :data:`AWQ_LAYOUT`.
        least_zero: see :class:`Grid`.
        needs_calibration: whether statistics matter; if not, they may be of no tokens.
        scales_inputs: whether :meth:`input_scales` may return scales at all.
    """

    layout: str
    needs_calibration: bool
    least_zero: int
    scales_inputs: bool

    def input_scales(
        self,
        weights: Mapping[str, torch.Tensor],
        *,
        statistics: ActivationStatistics,
        grid: Grid,
        ties_I: torch.Tensor,
    ) -> torch.Tensor | None:
        """Scales [in] by which the weights' columns are multiplied and their input is divided; None for ones.

        Channels with the same number in ``ties_I``, int64 [in], come from one place and get one scale.
        """

    def quantize(self, weight_OI: torch.Tensor, *, statistics: ActivationStatistics, grid: Grid) -> QuantizedWeight:
        """The integers of one weight, float32 [out, in], whose input ``statistics`` describe. The weight is kept."""


def check_group_size(shapes: Mapping[str, tuple[int, int]], *, group_size: int) -> None:
    """Refuse weights that the packed layouts cannot hold. Costs nothing, so call it before anything long.

    Args:
        shapes: (out, in) by name of the linear.
        group_size: columns of a group; -1 for the whole row.

    Raises:
        InvalidInput: a row is not a whole number of groups, or a side is not a whole number of 32-bit words of eight
            weights. Every offender is listed with its numbers.
    """
    offenders = [
        f"{name} (in {in_features}, out {out_features})"
        for name, (out_features, in_features) in shapes.items()
        if in_features % (in_features if group_size == -1 else group_size) or in_features % 8 or out_features % 8
    ]
    if not offenders:
        return
    shown = ", ".join(offenders[:8]) + (f" and {len(offenders) - 8} more" if len(offenders) > 8 else "")
    raise InvalidInput(
        f"group size {group_size} does not fit {len(offenders)} of {len(shapes)} linears: {shown}. Expected input "
        "widths that are whole numbers of groups, and both widths in multiples of 8.",
        advice=_ways_out(shapes),
    )


def _ways_out(shapes: Mapping[str, tuple[int, int]]) -> str:
    fitting = [size for size in (128, 64, 32, 16) if all(width % size == 0 for _, width in shapes.values())]
    if fitting:
        return f"Use group size {' or '.join(map(str, fitting))}, or -1 for one group per row."
    if all(out_features % 8 == 0 and width % 8 == 0 for out_features, width in shapes.values()):
        return "Use group size -1 (one group per row), or leave the model unquantized."
    return "Leave the model unquantized: its widths are not multiples of 8."
