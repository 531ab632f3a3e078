import pytest
import torch
from torch import nn

from qeff_engine.quantizers import folding
from qeff_engine.quantizers.checkpoint_files import CheckpointReader
from qeff_engine.quantizers.layerwise import LayeredModel
from tests.unit.qeff_engine.quantizers import checkpoints


class LoadedLayer:
    """The first layer of a tiny checkpoint, with what it needs to be run."""

    def __init__(self, tmp_path, model_type, **changes):
        snapshot = checkpoints.save(tmp_path, model_type, **changes)
        self.model = LayeredModel(snapshot, reader=CheckpointReader(snapshot))
        with torch.no_grad():
            hidden, calls = self.model.record(torch.arange(20)[None])
        self.hidden, self.call = hidden[0], calls[0][0]

    def find(self, layer, readers):
        return folding.find(layer, readers=readers, run=lambda: self.call.run(layer, self.hidden))


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "readers", "producer", "offset"),
    [
        ("llama", ATTENTION, "input_layernorm", 0.0),
        ("llama", MLP, "post_attention_layernorm", 0.0),
        ("llama", ("mlp.down_proj",), "mlp.up_proj", 0.0),
        ("qwen2", ("self_attn.o_proj",), "self_attn.v_proj", 0.0),
        ("gemma2", MLP, "pre_feedforward_layernorm", 1.0),
        ("opt", ("fc2",), "fc1", 0.0),
    ],
)
def test_the_module_that_makes_an_input_is_found(tmp_path, model_type, readers, producer, offset):
    loaded = LoadedLayer(tmp_path, model_type)
    with loaded.model.loaded_layer(0) as layer:
        fold = loaded.find(layer, readers)
    assert (fold.producer, fold.offset) == (producer, offset)


@torch.no_grad()
def test_grouped_query_values_feed_the_channels_of_all_their_heads(tmp_path):
    loaded = LoadedLayer(tmp_path, "llama")
    with loaded.model.loaded_layer(0) as layer:
        fold = loaded.find(layer, ("self_attn.o_proj",))
    # Four heads of 16 on two key-value heads: heads 0 and 1 read rows 0 to 15.
    expected_I = torch.cat([torch.arange(16), torch.arange(16), torch.arange(16, 32), torch.arange(16, 32)])
    assert torch.equal(fold.row_of_channel_I, expected_I)


@torch.no_grad()
def test_the_linear_half_of_a_fused_projection_is_found(tmp_path):
    loaded = LoadedLayer(tmp_path, "phi3")
    with loaded.model.loaded_layer(0) as layer:
        fold = loaded.find(layer, ("mlp.down_proj",))
    assert (fold.producer, fold.start, fold.num_rows) == ("mlp.gate_up_proj", 128, 128)


@torch.no_grad()
def test_a_norm_that_also_feeds_something_else_is_no_fold(tmp_path):
    loaded = LoadedLayer(tmp_path, "llama")
    with loaded.model.loaded_layer(0) as layer:
        assert loaded.find(layer, ATTENTION[:2]) is None


@torch.no_grad()
def test_looking_for_folds_leaves_the_weights_as_they_were(tmp_path):
    loaded = LoadedLayer(tmp_path, "llama")
    with loaded.model.loaded_layer(0) as layer:
        before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
        loaded.find(layer, MLP)
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, before[name])


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "readers"),
    [("llama", MLP), ("gemma2", MLP), ("llama", ("self_attn.o_proj",)), ("qwen2", ATTENTION), ("opt", ("fc1",))],
)
def test_applied_scales_leave_the_output_as_it_was(tmp_path, model_type, readers, stored):
    loaded = LoadedLayer(tmp_path, model_type)
    with loaded.model.loaded_layer(0) as layer:
        for parameter in layer.parameters():  # what a checkpoint of that type would hold
            parameter.data.copy_(parameter.to(stored).float())
        before = loaded.call.run(layer, loaded.hidden)
        fold = loaded.find(layer, readers)
        row_scales = torch.rand(fold.num_rows, generator=torch.Generator().manual_seed(0)) + 0.5
        applied = folding.apply(layer, fold, scales_I=row_scales[fold.row_of_channel_I], readers=readers, stored=stored)
        after = loaded.call.run(layer, loaded.hidden)
        producer = layer.get_submodule(fold.producer).weight
    if producer.dim() == 1:
        assert torch.equal(producer.to(stored).float(), producer)
    assert f"{fold.producer}.weight" in applied.changed
    # float32; a bias that is rounded with its norm's scale has no counterpart to take the rounding from.
    limit = 2e-2 if model_type == "opt" and stored == torch.bfloat16 else 1e-4
    torch.testing.assert_close(after, before, atol=limit * float(before.abs().max()), rtol=0)


@torch.no_grad()
def test_a_channel_that_is_always_silent_does_not_prevent_a_fold():
    layer = nn.ModuleDict({"norm": nn.LayerNorm(16), "up": nn.Linear(16, 16)})
    layer["norm"].weight[3], layer["norm"].bias[3] = 0, 0
    inputs = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0))
    fold = folding.find(layer, readers=("up",), run=lambda: layer["up"](layer["norm"](inputs)))
    assert fold.producer == "norm"
    assert torch.equal(fold.row_of_channel_I, torch.arange(16))
