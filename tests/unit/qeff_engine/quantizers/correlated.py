"""Random layers whose input channels are correlated and of very different sizes, as those of language models are."""

import torch

from qeff_engine.quantizers.activations import ActivationStatistics


def layer(seed, *, out_features=24, in_features=64, num_tokens=256):
    """A weight [out, in], and the statistics of inputs with a decaying spectrum and a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    mixing_II = torch.randn(in_features, in_features, generator=generator)
    spectrum_I = torch.logspace(0, -1.5, in_features)
    large_I = torch.where(torch.rand(in_features, generator=generator) < 0.05, 20.0, 1.0)
    inputs_TI = (torch.randn(num_tokens, in_features, generator=generator) * spectrum_I) @ mixing_II * large_I
    statistics = ActivationStatistics(in_features)
    statistics.add(inputs_TI)
    return weight_OI, statistics, inputs_TI
