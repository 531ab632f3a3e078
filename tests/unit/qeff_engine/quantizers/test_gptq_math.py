import pytest
import torch

from qeff_engine.errors import Numerics
from qeff_engine.quantizers import gptq_math, rounding
from qeff_engine.quantizers.activations import ActivationStatistics, output_error
from qeff_engine.quantizers.base import Grid
from tests.unit.qeff_engine.quantizers import correlated

SETTINGS = gptq_math.Settings()
ORDERED = gptq_math.Settings(activation_order=True)


def error(quantized, weight_OI, gram_II):
    return output_error(quantized.dequantize() - weight_OI, gram_II=gram_II)


@pytest.mark.parametrize("settings", [SETTINGS, ORDERED], ids=["in order", "by activation"])
@pytest.mark.parametrize("group_size", [16, 32, -1])
@pytest.mark.parametrize("seed", range(5))
def test_output_error_is_below_rounding_to_nearest_on_correlated_inputs(seed, group_size, settings):
    weight_OI, statistics, _ = correlated.layer(seed)
    grid = Grid(group_size=group_size)
    ours = gptq_math.quantize(weight_OI, gram_II=statistics.gram_II, grid=grid, settings=settings)
    nearest = rounding.round_to_nearest(weight_OI, grid=grid)
    assert error(ours, weight_OI, statistics.gram_II) < 0.8 * error(nearest, weight_OI, statistics.gram_II)


def test_blocks_do_not_change_the_result():
    weight_OI, statistics, _ = correlated.layer(7)
    grid = Grid(group_size=16)
    results = [
        gptq_math.quantize(
            weight_OI, gram_II=statistics.gram_II, grid=grid, settings=gptq_math.Settings(block_columns=block)
        )
        for block in (16, 32, 64)
    ]
    # Sums in another order may tip a weight that lies between two integers; a wrong update would move most of them.
    for other in results[1:]:
        assert (other.q_OI != results[0].q_OI).float().mean() < 0.01


def test_uncorrelated_inputs_give_rounding_to_nearest():
    weight_OI, _, _ = correlated.layer(2)
    grid = Grid(group_size=16)
    ours = gptq_math.quantize(weight_OI, gram_II=torch.eye(64), grid=grid, settings=SETTINGS)
    nearest = rounding.round_to_nearest(weight_OI, grid=grid)
    assert torch.equal(ours.q_OI, nearest.q_OI)
    assert torch.equal(ours.scales_OG, nearest.scales_OG)


def test_a_column_follows_the_rule_of_the_paper():
    """Two columns by hand: the second moves by the first one's error times H_12 / H_22."""
    weight_OI = torch.tensor([[0.26, 1.0], [-0.9, 1.5]])
    gram_II = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    ours = gptq_math.quantize(
        weight_OI, gram_II=gram_II, grid=Grid(group_size=-1), settings=gptq_math.Settings(damping=1e-9)
    )
    nearest = rounding.round_to_nearest(weight_OI, grid=Grid(group_size=-1))
    first_error_O = weight_OI[:, 0] - nearest.dequantize()[:, 0]
    expected_O = weight_OI[:, 1] + first_error_O * 0.5
    scales_O, zeros_O = nearest.scales_OG[:, 0], nearest.zeros_OG[:, 0]
    assert torch.equal(ours.q_OI[:, 1].float(), torch.clamp(torch.round(expected_O / scales_O) + zeros_O, 0, 15))


def test_silent_channels_are_rounded_to_nearest_and_not_zeroed():
    weight_OI, _, inputs_TI = correlated.layer(4)
    inputs_TI[:, 5] = 0
    statistics = ActivationStatistics(64)
    statistics.add(inputs_TI)
    ours = gptq_math.quantize(weight_OI, gram_II=statistics.gram_II, grid=Grid(group_size=16), settings=SETTINGS)
    steps_O = ours.scales_OG[:, 0]
    assert ((ours.dequantize()[:, 5] - weight_OI[:, 5]).abs() <= steps_O * 0.51).all()
    assert ours.dequantize()[:, 5].any()


def test_the_weight_is_not_changed():
    weight_OI, statistics, _ = correlated.layer(0)
    before_OI = weight_OI.clone()
    for settings in (SETTINGS, ORDERED):
        gptq_math.quantize(weight_OI, gram_II=statistics.gram_II, grid=Grid(group_size=16), settings=settings)
    assert torch.equal(weight_OI, before_OI)


def test_fewer_tokens_than_channels_are_damped():
    weight_OI, statistics, _ = correlated.layer(3, num_tokens=8)
    ours = gptq_math.quantize(weight_OI, gram_II=statistics.gram_II, grid=Grid(group_size=16), settings=SETTINGS)
    assert torch.isfinite(ours.dequantize()).all()


def test_a_matrix_that_is_no_gram_matrix_is_refused():
    with pytest.raises(Numerics, match="not positive definite"):
        gptq_math.inverse_factor(torch.full((4, 4), float("nan")), damping=0.01)


def test_the_factor_is_that_of_the_inverse():
    _, statistics, _ = correlated.layer(6)
    upper_II = gptq_math.inverse_factor(statistics.gram_II, damping=0.01)
    damped_II = statistics.gram_II + 0.01 * statistics.gram_II.diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(upper_II.T @ upper_II @ damped_II, torch.eye(64), atol=2e-3, rtol=0)
