"""AWQ as the stage uses it; its mathematics are in :mod:`qeff_engine.quantizers.awq_math`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qeff_engine.quantizers import awq_math, base
from qeff_engine.quantizers.activations import ActivationStatistics
from qeff_engine.quantizers.base import Grid, QuantizedWeight


class Awq:
    """Scaled input channels, then rounding to nearest with clipped ranges."""

    layout = base.AWQ_LAYOUT
    needs_calibration = True
    least_zero = 0
    scales_inputs = True

    def input_scales(
        self,
        weights: Mapping[str, torch.Tensor],
        *,
        statistics: ActivationStatistics,
        grid: Grid,
        ties_I: torch.Tensor,
    ) -> torch.Tensor | None:
        """See :func:`qeff_engine.quantizers.awq_math.search_scales`."""
        scales_I, _ = awq_math.search_scales(
            list(weights.values()),
            abs_mean_I=statistics.abs_mean_I,
            gram_II=statistics.gram_II,
            grid=grid,
            ties_I=ties_I,
        )
        return scales_I

    def quantize(self, weight_OI: torch.Tensor, *, statistics: ActivationStatistics, grid: Grid) -> QuantizedWeight:
        """See :func:`qeff_engine.quantizers.awq_math.quantize_clipped`."""
        return awq_math.quantize_clipped(weight_OI, gram_II=statistics.gram_II, grid=grid)


QUANTIZER = Awq()
