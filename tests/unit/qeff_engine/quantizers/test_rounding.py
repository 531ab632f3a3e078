import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_engine.quantizers import rounding
from qeff_engine.quantizers.base import Grid


def weights(draw_seed, scale, shift):
    generator = torch.Generator().manual_seed(draw_seed)
    return (torch.randn(8, 64, generator=generator) + shift) * scale


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-6, 1e-3, 0.05, 1.0, 300.0]),
    shift=st.sampled_from([-3.0, 0.0, 0.7, 5.0]),
    symmetric=st.booleans(),
    least_zero=st.sampled_from([0, 1]),
    group_size=st.sampled_from([16, 32, -1]),
)
def test_no_weight_moves_by_more_than_half_a_step(seed, scale, shift, symmetric, least_zero, group_size):
    weight_OI = weights(seed, scale, shift)
    grid = Grid(group_size=group_size, symmetric=symmetric, least_zero=least_zero)
    quantized = rounding.round_to_nearest(weight_OI, grid=grid)
    steps_OI = quantized.scales_OG.repeat_interleave(quantized.group_size, dim=1)
    # One part in a million of a step is float32's own rounding.
    assert ((quantized.dequantize() - weight_OI).abs() <= steps_OI * 0.500001).all()
    assert quantized.q_OI.max() <= 15
    assert quantized.zeros_OG.min() >= least_zero


def test_weights_on_the_grid_come_back_exactly():
    q_OI = torch.randint(0, 16, (4, 32), generator=torch.Generator().manual_seed(1))
    q_OI[:, ::16], q_OI[:, 1::16] = (0, 15)
    quantized = rounding.round_to_nearest((q_OI - 8) * 0.25, grid=Grid(group_size=16))
    assert torch.equal(quantized.q_OI, q_OI.to(torch.uint8))
    assert torch.equal(quantized.dequantize(), (q_OI - 8) * 0.25)


def test_scales_are_exact_in_float16():
    quantized = rounding.round_to_nearest(weights(3, 0.37, 0.0), grid=Grid(group_size=16))
    assert torch.equal(quantized.scales_OG.half().float(), quantized.scales_OG)


def test_a_group_of_zeros_stays_zero():
    for grid in (Grid(group_size=16), Grid(group_size=16, symmetric=True), Grid(group_size=16, least_zero=1)):
        assert not rounding.round_to_nearest(torch.zeros(2, 32), grid=grid).dequantize().any()


def test_zero_itself_is_a_grid_point():
    weight_OI = weights(5, 0.1, 2.0)
    weight_OI[:, 3] = 0
    assert not rounding.round_to_nearest(weight_OI, grid=Grid(group_size=32)).dequantize()[:, 3].any()
