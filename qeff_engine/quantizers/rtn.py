"""Round to nearest: no calibration, the bar for the others. Written in GPTQ's layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qeff_engine.quantizers import base, rounding
from qeff_engine.quantizers.activations import ActivationStatistics
from qeff_engine.quantizers.base import Grid, QuantizedWeight


class RoundToNearest:
    """Each weight to the nearest point of its group's grid."""

    layout = base.GPTQ_LAYOUT
    needs_calibration = False
    least_zero = 1
    scales_inputs = False

    def input_scales(
        self,
        weights: Mapping[str, torch.Tensor],
        *,
        statistics: ActivationStatistics,
        grid: Grid,
        ties_I: torch.Tensor,
    ) -> torch.Tensor | None:
        """None: inputs stay as they are."""
        return None

    def quantize(self, weight_OI: torch.Tensor, *, statistics: ActivationStatistics, grid: Grid) -> QuantizedWeight:
        """See :func:`qeff_engine.quantizers.rounding.round_to_nearest`; the statistics are not used."""
        return rounding.round_to_nearest(weight_OI, grid=grid)


QUANTIZER = RoundToNearest()
