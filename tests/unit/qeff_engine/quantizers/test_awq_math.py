import pytest
import torch

from qeff_engine.quantizers import awq_math, rounding
from qeff_engine.quantizers.activations import ActivationStatistics, output_error
from qeff_engine.quantizers.base import Grid
from tests.unit.qeff_engine.quantizers import correlated

GRID = Grid(group_size=16)


def nearest_error(weights, gram_II):
    return sum(output_error(rounding.round_to_nearest(w, grid=GRID).dequantize() - w, gram_II=gram_II) for w in weights)


@pytest.mark.parametrize("seed", range(5))
def test_searched_scales_beat_rounding_to_nearest_when_few_channels_are_large(seed):
    weight_OI, statistics, _ = correlated.layer(seed)
    other_OI, _, _ = correlated.layer(seed + 100, out_features=8)
    scales_I, error = awq_math.search_scales(
        [weight_OI, other_OI],
        abs_mean_I=statistics.abs_mean_I,
        gram_II=statistics.gram_II,
        grid=GRID,
        ties_I=torch.arange(64),
    )
    assert error < nearest_error([weight_OI, other_OI], statistics.gram_II)
    assert (scales_I > 0).all()
    assert scales_I.std() > 0


def test_the_error_is_that_of_the_outputs():
    weight_OI, statistics, inputs_TI = correlated.layer(1)
    scales_I = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    claimed = awq_math.scaled_error([weight_OI], scales_I=scales_I, gram_II=statistics.gram_II, grid=GRID)
    rounded_OI = rounding.round_to_nearest(weight_OI * scales_I, grid=GRID).dequantize()
    outputs_TO = (inputs_TI / scales_I) @ rounded_OI.T - inputs_TI @ weight_OI.T
    assert claimed == pytest.approx(float((outputs_TO**2).sum(dim=-1).mean()), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_clipping_never_costs_output_error(seed):
    weight_OI, statistics, _ = correlated.layer(seed)
    clipped = awq_math.quantize_clipped(weight_OI, gram_II=statistics.gram_II, grid=GRID)
    error = output_error(clipped.dequantize() - weight_OI, gram_II=statistics.gram_II)
    assert error <= nearest_error([weight_OI], statistics.gram_II)


def test_an_outlier_that_hardly_matters_is_clipped():
    weight_OI, _, _ = correlated.layer(0)
    weight_OI[:, 4] = 5.0
    gram_II = torch.eye(64)
    gram_II[4, 4] = 1e-6
    clipped = awq_math.quantize_clipped(weight_OI, gram_II=gram_II, grid=GRID)
    assert (clipped.dequantize()[:, 4] < 4.0).all()


def test_silent_channels_keep_a_scale_of_one():
    weight_OI, _, inputs_TI = correlated.layer(2)
    inputs_TI[:, 7] = 0
    statistics = ActivationStatistics(64)
    statistics.add(inputs_TI)
    scales_I = awq_math.candidate_scales(
        statistics.abs_mean_I, magnitude_I=awq_math.weight_magnitude([weight_OI], grid=GRID), ratio=0.5
    )
    assert scales_I[7] == 1
    assert torch.isfinite(scales_I).all()


def test_inputs_that_are_all_silent_are_not_scaled():
    scales_I, error = awq_math.search_scales(
        [torch.ones(8, 64)], abs_mean_I=torch.zeros(64), gram_II=torch.zeros(64, 64), grid=GRID, ties_I=torch.arange(64)
    )
    assert torch.equal(scales_I, torch.ones(64))
    assert error == 0


def test_dividing_inputs_divides_their_statistics():
    _, statistics, inputs_TI = correlated.layer(3)
    scales_I = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.5
    direct = ActivationStatistics(64)
    direct.add(inputs_TI / scales_I)
    divided = statistics.divided_by(scales_I)
    torch.testing.assert_close(divided.gram_II, direct.gram_II, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(divided.abs_mean_I, direct.abs_mean_I, rtol=1e-4, atol=1e-5)


def test_tied_channels_get_one_scale():
    scales_I = awq_math.tied(torch.tensor([1.0, 4.0, 3.0, 5.0]), ties_I=torch.tensor([1, 1, 0, 2]))
    torch.testing.assert_close(scales_I, torch.tensor([2.0, 2.0, 3.0, 5.0]))
