import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

from qeff_engine.transforms import norms


class MeanFreeRMSNorm(nn.Module):
    """Named like one, but it takes off the mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (LlamaRMSNorm(8), ("variance_epsilon", 0.0)),
        (Gemma2RMSNorm(8), ("eps", 1.0)),
        (MambaRMSNormGated(8, group_size=8), None),
        (MeanFreeRMSNorm(), None),
        (nn.LayerNorm(8), None),
    ],
)
def test_a_norm_is_what_it_computes_and_not_what_it_is_called(module, expected):
    found = norms.recognized(nn.Sequential(module))
    assert found == ({type(module): expected} if expected else {})


def test_weights_play_no_part_in_recognizing():
    module = LlamaRMSNorm(8).to("meta")
    assert norms.recognized(nn.Sequential(module)) == {LlamaRMSNorm: ("variance_epsilon", 0.0)}


def test_fusing_ends_with_the_block():
    module = LlamaRMSNorm(8)
    inputs = torch.randn(2, 8)
    expected = module(inputs)
    forward = LlamaRMSNorm.forward
    with norms.fused(nn.Sequential(module)):
        assert LlamaRMSNorm.forward is not forward
    assert LlamaRMSNorm.forward is forward
    torch.testing.assert_close(module(inputs), expected)
