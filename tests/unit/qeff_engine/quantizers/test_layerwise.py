import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers.checkpoint_files import CheckpointReader
from qeff_engine.quantizers.layerwise import LayeredModel
from tests.unit.qeff_engine.quantizers import checkpoints


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2", "opt", "mixtral", "xlstm"])
def test_running_layer_by_layer_is_running_the_model(tmp_path, model_type):
    snapshot = checkpoints.save(tmp_path, model_type)
    rows_NS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    model = LayeredModel(snapshot, reader=CheckpointReader(snapshot))
    hidden, calls = model.record(rows_NS)
    for number in range(2):
        with model.loaded_layer(number) as layer:
            hidden = [calls[row][number].run(layer, hidden[row]) for row in range(2)]
    whole = transformers.AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32)
    seen = []
    whole.get_submodule(model.layer_names[-1]).register_forward_hook(lambda module, args, output: seen.append(output))
    for row in range(2):
        whole(input_ids=rows_NS[row][None], use_cache=False)
    for ours, theirs in zip(hidden, seen, strict=True):
        expected = theirs[0] if isinstance(theirs, tuple) else theirs
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_states_that_change_between_layers_are_refused(tmp_path):
    snapshot = checkpoints.save(tmp_path, "rwkv", rescale_every=1)
    with pytest.raises(Unsupported, match="RwkvForCausalLM changes hidden states between its decoder layers"):
        LayeredModel(snapshot, reader=CheckpointReader(snapshot)).record(torch.arange(10)[None])


@torch.no_grad()
def test_only_one_layer_is_in_memory_at_a_time(tmp_path):
    snapshot = checkpoints.save(tmp_path, "llama")
    model = LayeredModel(snapshot, reader=CheckpointReader(snapshot))
    model.record(torch.arange(10)[None])
    assert all(parameter.is_meta for parameter in model.module.parameters())
    with model.loaded_layer(1) as layer:
        inside = {id(parameter) for parameter in layer.parameters()}
        assert not any(parameter.is_meta for parameter in layer.parameters())
        assert all(parameter.is_meta for parameter in model.module.parameters() if id(parameter) not in inside)
    assert all(parameter.is_meta for parameter in model.module.parameters())


def test_a_checkpoint_without_a_tensor_of_a_layer_is_refused_with_its_name(tmp_path):
    snapshot = checkpoints.save(tmp_path, "llama")
    lost = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(snapshot / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, snapshot / "model.safetensors")
    model = LayeredModel(snapshot, reader=CheckpointReader(snapshot))
    with pytest.raises(InvalidInput, match=lost), model.loaded_layer(1):
        pass


def test_a_model_that_is_no_causal_language_model_is_refused(tmp_path):
    snapshot = checkpoints.save(tmp_path, "llama")
    transformers.AutoConfig.for_model("vit").save_pretrained(snapshot)
    with pytest.raises(Unsupported, match="'vit' is not a causal language model"):
        LayeredModel(snapshot, reader=CheckpointReader(snapshot))
