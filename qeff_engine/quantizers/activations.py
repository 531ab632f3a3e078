"""What is remembered of a linear's input, and the output error that a changed weight then gives."""

from __future__ import annotations

import torch


class ActivationStatistics:
    """Second moments of a linear's input over the calibration tokens; the tokens themselves are not kept.

    The expected squared error of the outputs of a linear whose weight changes by D is ``trace(D H D^T)`` with the
    Gram matrix H = E[x x^T]: so one [in, in] matrix answers every question about every candidate weight.

    Attributes:
        num_tokens: tokens seen.
    """

    def __init__(self, in_features: int) -> None:
        self.num_tokens = 0
        self._gram_sum_II = torch.zeros(in_features, in_features)
        self._abs_sum_I = torch.zeros(in_features)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in the tokens of ``inputs``, [..., in]."""
        x_TI = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self._gram_sum_II.addmm_(x_TI.T, x_TI)
        self._abs_sum_I += x_TI.abs().sum(dim=0)
        self.num_tokens += x_TI.shape[0]

    @property
    def gram_II(self) -> torch.Tensor:
        """E[x x^T], float32 [in, in]."""
        return self._gram_sum_II / max(self.num_tokens, 1)

    @property
    def abs_mean_I(self) -> torch.Tensor:
        """E[abs(x)], float32 [in]."""
        return self._abs_sum_I / max(self.num_tokens, 1)

    def divided_by(self, scales_I: torch.Tensor) -> ActivationStatistics:
        """The statistics of the same tokens with every channel divided by its (positive) scale."""
        scaled = ActivationStatistics(0)
        scaled.num_tokens = self.num_tokens
        scaled._gram_sum_II = self._gram_sum_II / (scales_I[:, None] * scales_I[None, :])
        scaled._abs_sum_I = self._abs_sum_I / scales_I
        return scaled


def output_error(change_OI: torch.Tensor, *, gram_II: torch.Tensor) -> float:
    """Expected squared length of ``change @ x``: what a change of a weight does to the outputs."""
    return float(((change_OI @ gram_II) * change_OI).sum())
