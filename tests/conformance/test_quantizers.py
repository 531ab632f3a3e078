"""What every quantizer in the table keeps to. A new method is covered by being in the table."""

import numpy as np
import pytest
import torch

from qeff_engine import quantizers, spec
from qeff_engine.errors import InvalidInput
from qeff_engine.quantizers import base, output, packing, rounding
from qeff_engine.quantizers.activations import ActivationStatistics, output_error

OUT, IN = 32, 128
METHODS = sorted(quantizers.QUANTIZERS)


def correlated_layer(seed):
    """Two weights that read one input, and its statistics: correlated channels, a few of them large."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(OUT, IN, generator=generator) / IN**0.5 for name in ("first", "second")}
    inputs_TI = torch.randn(512, IN, generator=generator) * torch.logspace(0, -1.5, IN)
    inputs_TI = inputs_TI @ torch.randn(IN, IN, generator=generator)
    statistics = ActivationStatistics(IN)
    statistics.add(inputs_TI * torch.where(torch.rand(IN, generator=generator) < 0.05, 20.0, 1.0))
    return weights, statistics


def grid_of(quantizer, group_size=32):
    return base.Grid(group_size=group_size, least_zero=quantizer.least_zero)


def quantize_all(quantizer, weights, statistics, grid):
    """Scales of the input (ones if there are none) and the integers of each weight, as the stage makes them."""
    scales_I = quantizer.input_scales(weights, statistics=statistics, grid=grid, ties_I=torch.arange(IN))
    scales_I = torch.ones(IN) if scales_I is None else scales_I
    scaled = statistics.divided_by(scales_I)
    return scales_I, {
        name: quantizer.quantize(weight_OI * scales_I, statistics=scaled, grid=grid)
        for name, weight_OI in weights.items()
    }


def test_every_method_of_the_spec_has_a_quantizer():
    assert set(METHODS) == set(spec.QUANTIZE_METHODS)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="Did you mean 'gptq'"):
        quantizers.load("gptqq")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [16, 32, 128, -1])
def test_packing_loses_nothing(method, group_size):
    quantizer = quantizers.load(method)
    weights, statistics = correlated_layer(0)
    _, quantized = quantize_all(quantizer, weights, statistics, grid_of(quantizer, group_size))
    weight = quantized["first"]
    packed = output.pack(weight, layout=quantizer.layout)
    unpack = {"gptq": packing.unpack_gptq, "awq": packing.unpack_awq}[quantizer.layout]
    integers = unpack(**packed, group_size=group_size)
    np.testing.assert_array_equal(integers.q_OI, weight.q_OI.numpy())
    np.testing.assert_array_equal(integers.zeros_OG, weight.zeros_OG.numpy())
    np.testing.assert_array_equal(integers.scales_OG.astype(np.float32), weight.scales_OG.numpy())
    node = packing.to_matmul_nbits(integers, name="layer")
    np.testing.assert_array_equal(packing.from_matmul_nbits(node).dequantize(), weight.dequantize().numpy())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_output_error_is_at_most_that_of_rounding_to_nearest(method, seed):
    quantizer = quantizers.load(method)
    weights, statistics = correlated_layer(seed)
    grid = grid_of(quantizer)
    scales_I, quantized = quantize_all(quantizer, weights, statistics, grid)
    ours = nearest = 0.0
    for name, weight_OI in weights.items():
        rounded_OI = rounding.round_to_nearest(weight_OI, grid=grid).dequantize()
        ours += output_error(quantized[name].dequantize() / scales_I - weight_OI, gram_II=statistics.gram_II)
        nearest += output_error(rounded_OI - weight_OI, gram_II=statistics.gram_II)
    # The scaled weight is rounded once more in float32 on its way back.
    assert ours <= nearest * (1 + 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_the_same_every_time(method):
    quantizer = quantizers.load(method)
    weights, statistics = correlated_layer(1)
    results = [quantize_all(quantizer, weights, statistics, grid_of(quantizer)) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0])
    for name in weights:
        assert torch.equal(results[0][1][name].q_OI, results[1][1][name].q_OI)
        assert torch.equal(results[0][1][name].scales_OG, results[1][1][name].scales_OG)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_left_as_they_were(method):
    quantizer = quantizers.load(method)
    weights, statistics = correlated_layer(2)
    before = {name: weight_OI.clone() for name, weight_OI in weights.items()}
    quantize_all(quantizer, weights, statistics, grid_of(quantizer))
    for name, weight_OI in weights.items():
        assert torch.equal(weight_OI, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_integers_and_zero_points_stay_in_the_range_of_the_layout(method):
    quantizer = quantizers.load(method)
    weights, statistics = correlated_layer(3)
    weights["first"] += 1.0  # a group without negative weights has the smallest zero point
    _, quantized = quantize_all(quantizer, weights, statistics, grid_of(quantizer))
    for weight in quantized.values():
        assert weight.q_OI.dtype == torch.uint8
        assert int(weight.q_OI.max()) <= 15
        assert quantizer.least_zero <= int(weight.zeros_OG.min())
        assert int(weight.zeros_OG.max()) <= 15


def test_a_group_size_that_does_not_fit_is_refused_with_the_layers_and_the_ways_out():
    shapes = {"layers.0.down": (64, 576), "layers.0.up": (1536, 512)}
    with pytest.raises(InvalidInput, match=r"layers\.0\.down \(in 576, out 64\)") as caught:
        base.check_group_size(shapes, group_size=128)
    assert "layers.0.up" not in str(caught.value)
    assert "Use group size 64 or 32 or 16, or -1" in str(caught.value)
