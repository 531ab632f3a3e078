import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers import packing, reading
from qeff_engine.quantizers.checkpoint_files import CheckpointWriter, TensorInfo

INFOS = {"int32": "I32", "float16": "F16", "float32": "F32"}


def write_checkpoint(directory, modules, *, layout, group_size, zero_offset=1):
    """A checkpoint with the integers of some linears in a layout."""
    tensors = {}
    for name, case in modules.items():
        packed = packing.pack_awq(case) if layout == "awq" else packing.pack_gptq(case, zero_offset=zero_offset)
        tensors.update({f"{name}.{suffix}": values for suffix, values in packed.items()})
    plan = {name: TensorInfo(dtype=INFOS[values.dtype.name], shape=values.shape) for name, values in tensors.items()}
    with CheckpointWriter(directory, plan) as writer:
        for name, values in tensors.items():
            writer.write(name, values)
    return {"quantization_config": {"quant_method": layout, "bits": 4, "group_size": group_size}}


def integers(seed, *, out_features=16, in_features=96, group_size=32, shuffled=False):
    random = np.random.default_rng(seed)
    groups_I = packing.sequential_groups(in_features, group_size=group_size)
    if shuffled:
        groups_I = random.permutation(groups_I).astype(np.int32)
    num_groups = int(groups_I.max()) + 1
    return packing.Integers(
        q_OI=random.integers(0, 16, (out_features, in_features), dtype=np.uint8),
        scales_OG=random.uniform(0.01, 0.1, (out_features, num_groups)).astype(np.float16),
        zeros_OG=random.integers(1, 16, (out_features, num_groups), dtype=np.uint8),
        group_of_column_I=groups_I,
    )


def filled(model, checkpoint, names):
    """The stand-ins' buffers with the checkpoint's tensors, as an exporter would bind them."""
    for name, module in names.items():
        stand_in = model.get_submodule(name)
        for suffix, buffer in list(stand_in.named_buffers()):
            values = torch.from_numpy(checkpoint.tensor(module, suffix))
            assert (values.shape, values.dtype) == (buffer.shape, buffer.dtype)
            setattr(stand_in, suffix, values)
    return model


def run_in_onnx_runtime(model, inputs, tmp_path):
    program = torch.onnx.export(model, (inputs,), dynamo=True, verbose=False)
    path = tmp_path / "model.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]


# torch's own exporter uses a name of torch's that is on its way out.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("layout", "group_size", "in_features", "shuffled"),
    [("gptq", 32, 96, False), ("gptq", -1, 96, False), ("gptq", 32, 80, False), ("gptq", 16, 64, True),
     ("awq", 32, 96, False), ("awq", -1, 40, False)],
)  # fmt: skip
def test_the_node_computes_what_the_integers_stand_for(tmp_path, layout, group_size, in_features, shuffled):
    case = integers(1, in_features=in_features, group_size=group_size, shuffled=shuffled)
    config = write_checkpoint(tmp_path, {"0": case}, layout=layout, group_size=group_size)
    config["quantization_config"]["desc_act"] = shuffled
    checkpoint = reading.QuantizedCheckpoint(tmp_path, scheme=reading.scheme_of(config))
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(in_features, 16)).eval()
    bias_O = torch.linspace(-1, 1, 16)
    model[0].bias = nn.Parameter(bias_O)
    names = reading.replace_linears(model, checkpoint)
    assert names == {"0": "0"}
    inputs = torch.randn(2, 3, in_features, generator=torch.Generator().manual_seed(0))
    actual = run_in_onnx_runtime(filled(model, checkpoint, names), inputs, tmp_path)
    expected = inputs.numpy() @ case.dequantize().T + bias_O.numpy()
    # float32 sums of at most 96 products in another order
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_the_second_gptq_format_stores_zero_points_as_they_are(tmp_path):
    case = integers(2)
    config = write_checkpoint(tmp_path, {"a.b": case}, layout="gptq", group_size=32, zero_offset=0)
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    checkpoint = reading.QuantizedCheckpoint(tmp_path, scheme=reading.scheme_of(config))
    np.testing.assert_array_equal(checkpoint.integers("a.b").zeros_OG, case.zeros_OG)


def test_a_shuffled_g_idx_without_desc_act_is_refused_with_the_name_of_the_layer(tmp_path):
    config = write_checkpoint(tmp_path, {"a.b": integers(3, shuffled=True)}, layout="gptq", group_size=32)
    checkpoint = reading.QuantizedCheckpoint(tmp_path, scheme=reading.scheme_of(config))
    with pytest.raises(Unsupported, match=r"a\.b has a g_idx that is out of order"):
        checkpoint.matmul_nbits("a.b")


def test_names_are_found_with_and_without_the_prefix_of_the_bare_model(tmp_path):
    class Model(nn.Module):
        base_model_prefix = "model"

        def __init__(self):
            super().__init__()
            self.model = nn.ModuleDict({"up": nn.Linear(96, 16, bias=False)})

    config = write_checkpoint(tmp_path, {"up": integers(4)}, layout="awq", group_size=32)
    checkpoint = reading.QuantizedCheckpoint(tmp_path, scheme=reading.scheme_of(config))
    assert reading.replace_linears(Model(), checkpoint) == {"model.up": "up"}


def test_a_quantized_tensor_that_is_no_linear_of_the_model_is_refused(tmp_path):
    config = write_checkpoint(tmp_path, {"nowhere": integers(5)}, layout="awq", group_size=32)
    checkpoint = reading.QuantizedCheckpoint(tmp_path, scheme=reading.scheme_of(config))
    with pytest.raises(Unsupported, match="quantizes nowhere, which is no linear of Sequential"):
        reading.replace_linears(nn.Sequential(nn.Linear(96, 16)), checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "fp8"}, "quantized with 'fp8', expected gptq or awq"),
        ({"quant_method": "gptq", "bits": 8}, "has bits 8, expected 4"),
        ({"quant_method": "awq", "version": "gemv"}, "has version 'gemv', expected 'gemm'"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "has checkpoint_format 'marlin', expected 'gptq'"),
    ],
)
def test_other_methods_are_refused_by_name(settings, message):
    with pytest.raises(Unsupported, match=message):
        reading.scheme_of(json.loads(json.dumps({"quantization_config": settings})))


def test_a_float_config_has_no_scheme():
    assert reading.scheme_of({"model_type": "llama"}) is None


def test_a_checkpoint_without_packed_tensors_is_refused(tmp_path):
    with CheckpointWriter(tmp_path, {"a": TensorInfo(dtype="F32", shape=(2,))}) as writer:
        writer.write("a", np.zeros(2, np.float32))
    scheme = reading.scheme_of({"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(InvalidInput, match=r"has no tensor named \*\.qweight"):
        reading.QuantizedCheckpoint(tmp_path, scheme=scheme)
