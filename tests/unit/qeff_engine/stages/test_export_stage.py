import json
import resource
import shutil

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.onnx._internal.exporter import _fx_passes, _registration
from transformers import masking_utils
from transformers.integrations import moe
from transformers.models.llama import modeling_llama

from qeff_engine import checkpoint, exported, spec
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.stage import SNAPSHOT, StageContext
from qeff_engine.stages import export, resolve
from tests import exported_decoder, tiny
from tests.parity import checks, configs

SIDE_FILE = "decoder.side.bin"


def exported_to(out, *, snapshot):
    out.mkdir()
    return export.run(spec.ExportSpec(), StageContext(out=out, work=out, inputs={SNAPSHOT: snapshot}))


def changed(snapshot, change):
    """The snapshot with its tensors changed."""
    path = snapshot / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return snapshot


def graph_of(onnx_dir):
    return onnx.load(onnx_dir / exported.load(onnx_dir).components[exported.DECODER].file, load_external_data=False)


def places(graph):
    """File, offset and length of each initializer by name."""
    found = {}
    for tensor in graph.graph.initializer:
        fields = {item.key: item.value for item in tensor.external_data}
        if fields:
            found[tensor.name] = (fields["location"], int(fields["offset"]), int(fields["length"]))
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Snapshot, exported model and result."""
    root = tmp_path_factory.mktemp("llama")
    return exported_decoder.make(tiny.save_model(root / "source", "llama"), root)


def test_weights_are_the_snapshots_own_bytes(llama):
    snapshot, out, result = llama
    index = checkpoint.safetensors_index(snapshot)
    assert places(graph_of(out)) == {name: (item.file, item.offset, item.nbytes) for name, item in index.items()}
    assert (out / "model.safetensors").samefile(snapshot / "model.safetensors")
    assert result.figures["written_bytes"] < 40_000
    assert not (out / SIDE_FILE).exists()


def test_description_says_what_a_runner_needs(llama):
    _, out, _ = llama
    described = exported.load(out)
    assert (described.task, described.class_name, described.model_type) == (
        "text-generation",
        "LlamaForCausalLM",
        "llama",
    )
    assert (described.vocab_size, described.eos_token_ids, described.max_positions) == (260, (tiny.EOS,), 128)
    assert described.num_parameters == tiny.model("llama").num_parameters()
    decoder = described.components[exported.DECODER]
    assert decoder.file == "LlamaForCausalLM.onnx"
    assert list(decoder.inputs) == [
        "input_ids", "position_ids", "past_key.0", "past_value.0", "past_key.1", "past_value.1"
    ]  # fmt: skip
    assert decoder.symbols == ["batch_size", "seq_len", "ctx_len"]
    assert decoder.outputs["logits"] == exported.Tensor(dtype="float32", shape=("batch_size", 1, 260))
    assert len(decoder.retained) == 4
    kinds = {output: node.op_type for node in graph_of(out).graph.node for output in node.output}
    assert {kinds[name] for name in decoder.fp32_values} >= {"Cast", "Mul", "Cos", "Sin"}, "angles of positions"


def test_graph_is_valid_and_of_the_promised_opset(llama, tmp_path):
    _, out, _ = llama
    assert {item.domain: item.version for item in graph_of(out).opset_import}[""] == 18
    shutil.copytree(out, tmp_path / "copy")  # the checker refuses hard links
    onnx.checker.check_model(tmp_path / "copy" / "LlamaForCausalLM.onnx")


def test_the_same_snapshot_gives_the_same_bytes(llama, tmp_path):
    snapshot, out, _ = llama
    exported_to(tmp_path / "again", snapshot=snapshot)
    for name in ("LlamaForCausalLM.onnx", "export.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_layers_of_one_kind_are_calls_of_one_function(llama):
    _, out, result = llama
    calls = [(node.name, node.op_type) for node in graph_of(out).graph.node if node.domain == "qeff.layers"]
    assert calls == [(f"model.layers.{number}", "LlamaDecoderLayer_0") for number in range(2)]
    assert result.figures["num_layer_functions"] == 1


def test_more_layers_add_calls_and_no_functions(tmp_path):
    source = tiny.save_model(tmp_path / "source", "llama", fields={"num_hidden_layers": 9})
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layer_functions"] == 1
    checks.equal_to_original(snapshot, out)


def test_a_layer_that_is_called_again_has_numbered_calls(tmp_path):
    _, out, result = checks.exported_tiny("hrm_text", tmp_path)
    calls = [node for node in graph_of(out).graph.node if node.domain == "qeff.layers"]
    assert [node.name for node in calls] == [
        "model.L_module.layers.0",
        "model.L_module.layers.1",
        "model.L_module.layers.0/call.1",
        "model.L_module.layers.1/call.1",
        "model.H_module.layers.0",
        "model.H_module.layers.1",
        "model.L_module.layers.0/call.2",
        "model.L_module.layers.1/call.2",
        "model.L_module.layers.0/call.3",
        "model.L_module.layers.1/call.3",
        "model.H_module.layers.0/call.1",
        "model.H_module.layers.1/call.1",
    ]
    kept = [name for node in calls for name in node.input if name.startswith("past_key.")]
    assert kept == [f"past_key.{number}" for number in range(12)]
    assert result.figures["num_layer_functions"] == 1


def test_bfloat16_weights_in_shards_stay_where_they_are(tmp_path):
    source = tiny.save_model(tmp_path / "source", "llama", dtype=torch.bfloat16, max_shard_size="20KB")
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    files = {file for file, _, _ in places(graph_of(out)).values()}
    assert len(files) > 2
    assert files == {path.name for path in out.glob("*.safetensors")}
    assert all((out / file).samefile(snapshot / file) for file in files)
    assert result.figures["side_bytes"] == 0
    checks.equal_to_original(snapshot, out)


def test_a_tied_float16_weight_is_bound_once(tmp_path):
    source = tiny.save_model(tmp_path / "source", "qwen2", dtype=torch.float16)
    snapshot, out, _ = exported_decoder.make(source, tmp_path)
    names = list(places(graph_of(out)))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    checks.equal_to_original(snapshot, out)


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tie_that_the_checkpoint_contradicts_is_undone(tmp_path, is_equal):
    source = tiny.save_model(tmp_path / "source", "qwen2")

    def add_head(tensors):
        table = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = table.clone() if is_equal else table.flip(0).contiguous()

    snapshot, out, _ = exported_decoder.make(changed(source, add_head), tmp_path)
    assert ("lm_head.weight" in places(graph_of(out))) is not is_equal
    if is_equal:
        checks.equal_to_original(snapshot, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stacked_experts_are_the_checkpoints_own_bytes_expert_by_expert(tmp_path, dtype):
    source = tiny.save_model(tmp_path / "source", "mixtral", dtype=dtype, max_shard_size="40KB")
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    index = checkpoint.safetensors_index(snapshot)
    assert len(list(snapshot.glob("*.safetensors"))) > 2
    bytes_of_checkpoint = [(item.file, item.offset, item.nbytes) for item in index.values()]
    assert sorted(places(graph_of(out)).values()) == sorted(bytes_of_checkpoint)
    names = [f"model.layers.{i}.mlp.experts.{name}" for i in (0, 1) for name in ("gate_up_proj", "down_proj")]
    assert set(names) <= {name for node in graph_of(out).graph.node for name in node.output}
    assert result.figures["side_bytes"] == 0
    checks.equal_to_original(snapshot, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("1.block_sparse_moe.experts.2.w1.weight"),
            r"lacks .*layers\.1\..*\.2\.w1\.weight",
        ),
        (
            lambda tensors: tensors.pop("1.block_sparse_moe.experts.3.w2.weight"),
            r"lacks .*layers\.1\..*\.3\.w2\.weight",
        ),
        (
            lambda tensors: tensors.update({"0.block_sparse_moe.experts.4.w2.weight": torch.ones(32, 48)}),
            r"has .*layers\.0\..*\.4\.w2\.weight, expected 4",
        ),
        (
            lambda tensors: tensors.update({"0.block_sparse_moe.experts.1.w3.weight": torch.ones(48, 31)}),
            r"layers\.0\..*\.1\.w3\.weight has the shape \[48, 31\], expected \[48, 32\]",
        ),
    ],
)
def test_an_expert_that_does_not_belong_to_the_config_is_named(tmp_path, change, message):
    source = tiny.save_model(tmp_path / "source", "mixtral")

    def in_layers(tensors):
        prefix = "model.layers."
        layers = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        change(layers)
        tensors.update({prefix + name: tensor for name, tensor in layers.items()})

    with pytest.raises(InvalidInput, match=message):
        exported_to(tmp_path / "out", snapshot=changed(source, in_layers))


def test_layers_that_differ_by_a_constant_are_kinds_of_their_own(tmp_path):
    source = tiny.save_model(tmp_path / "source", "gpt2", fields={"scale_attn_by_inverse_layer_idx": True})
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layer_functions"] == 2
    checks.equal_to_original(snapshot, out)


def test_layers_whose_number_is_called_otherwise_are_of_one_kind(tmp_path):
    source = tiny.save_model(tmp_path / "source", "gpt_neo")
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layers"] == 4
    assert result.figures["num_layer_functions"] == 2
    checks.equal_to_original(snapshot, out)


def test_states_without_length_know_no_longest_sequence(tmp_path):
    source = tiny.save_model(tmp_path / "source", "mamba", fields={"max_position_embeddings": 64})
    _, out, _ = exported_decoder.make(source, tmp_path)
    assert exported.load(out).max_positions == 0


def test_layers_that_compute_with_their_number_are_kinds_of_their_own(tmp_path, monkeypatch):
    original = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "layer_idx", 0, raising=False)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: original(self, x) * (self.layer_idx + 1))
    initialize = modeling_llama.LlamaDecoderLayer.__init__

    def with_number(self, config, layer_idx):
        initialize(self, config, layer_idx)
        self.mlp.layer_idx = layer_idx

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "__init__", with_number)
    source = tiny.save_model(tmp_path / "source", "llama")
    snapshot, out, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layer_functions"] == 2
    checks.equal_to_original(snapshot, out)


def test_layers_that_cannot_be_functions_are_traced_one_by_one(tmp_path, monkeypatch):
    original = modeling_llama.LlamaDecoderLayer.forward

    def looking_at_the_first(self, *args, past_key_values, **kwargs):
        assert past_key_values.layers[0] is not None
        return original(self, *args, past_key_values=past_key_values, **kwargs)

    source = tiny.save_model(tmp_path / "source", "llama")
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaDecoderLayer, "forward", looking_at_the_first)
        snapshot, out, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layer_functions"] == 0
    assert result.figures["why_no_layer_functions"] == "cache 0 is used by 2 calls of layers, expected one"
    checks.equal_to_original(snapshot, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks 1 tensors of LlamaForCausalLM: model\.norm\.weight"),
        (lambda tensors: tensors.update({"model.extra": torch.ones(2)}), r"does not have: model\.extra\."),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}),
            r"model\.norm\.weight has the shape \[31\], expected \[32\]",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_belong_to_the_config_are_named(tmp_path, change, message):
    snapshot = changed(tiny.save_model(tmp_path / "source", "llama"), change)
    with pytest.raises(InvalidInput, match=message):
        exported_to(tmp_path / "out", snapshot=snapshot)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("llama", {"num_hidden_layers": 10**9}, "1000000000 for num_hidden_layers, expected at most 21"),
        ("llama", {"num_attention_heads": 10**9}, "1000000000 for num_attention_heads, expected at most"),
        ("mixtral", {"num_local_experts": 10**9}, "1000000000 for num_local_experts, expected at most"),
        ("llama", {"num_hidden_layers": -1}, "-1 for num_hidden_layers, expected at least 0"),
        ("llama", {"hidden_size": 10**12, "head_dim": None}, "cannot be made from this config|expected"),
        ("llama", {"hidden_size": 10**30}, "refused|cannot be made from this config"),
        ("llama", {"vocab_size": -5}, "refused|cannot be made from this config"),
        ("llama", {"vocab_size": 10**12}, r"has the shape \[260, 32\], expected \[1000000000000, 32\]"),
        ("llama", {"hidden_size": "many"}, "refused|cannot be made from this config"),
        ("llama", {"num_attention_heads": 0, "head_dim": None}, "refused|cannot be made from this config"),
        ("llama", {"hidden_act": "__import__('os')"}, "refused|cannot be made from this config"),
        ("llama", {"rope_parameters": {"rope_type": "none such"}}, "refused|cannot be made from this config"),
        ("gpt2", {"n_positions": 10**6}, r"has the shape \[128, 32\]|bias of the shape .* bytes, expected at most"),
    ],
)
def test_a_config_whose_sizes_cannot_be_true_is_refused(tmp_path, model_type, fields, message):
    source = tiny.save_model(tmp_path / "source", model_type)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidInput, match=message):
        exported_to(tmp_path / "out", snapshot=source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200_000


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_config_that_lacks_a_size_is_refused(tmp_path, name):
    source = tiny.save_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    del config[name]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="belongs to these weights"):
        exported_to(tmp_path / "out", snapshot=source)


def test_code_beside_a_checkpoint_is_not_run(tmp_path):
    source = tiny.save_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "evil.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    snapshot, out, _ = exported_decoder.make(source, tmp_path)
    assert not (tmp_path / "was_here").exists()
    assert not (snapshot / "evil.py").exists()
    checks.equal_to_original(snapshot, out)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "does not know the architecture 'lama'. Did you mean"),
        ({"model_type": "company_secret"}, "does not know the architecture 'company_secret'. See docs/adding"),
    ],
)
def test_an_architecture_that_transformers_does_not_know_is_unsupported(tmp_path, fields, message):
    source = tiny.save_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(Unsupported, match=message):
        resolve.run(checkpoint.resolve_spec(str(source)), StageContext(out=tmp_path, work=tmp_path))


def test_a_decoder_that_takes_no_cache_is_unsupported(tmp_path):
    config = transformers.OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    transformers.OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path / "source")
    with pytest.raises(Unsupported, match="OpenAIGPTLMHeadModel takes no cache"):
        exported_to(tmp_path / "out", snapshot=tmp_path / "source")


def test_a_decoder_with_states_of_an_unknown_kind_is_unsupported(tmp_path):
    configs.model("deepseek_v4").save_pretrained(tmp_path / "source")
    with pytest.raises(Unsupported, match="keeps a state of the kind DeepseekV4"):
        exported_to(tmp_path / "out", snapshot=tmp_path / "source")


def test_a_buffer_that_nothing_computes_is_refused(tmp_path, monkeypatch):
    tiny.save_model(tmp_path / "source", "llama")
    monkeypatch.setattr(transformers.LlamaPreTrainedModel, "_init_weights", lambda self, module: None)
    with pytest.raises(Unsupported, match=r"rotary_emb\.inv_freq of LlamaForCausalLM is neither in the checkpoint nor"):
        exported_to(tmp_path / "out", snapshot=tmp_path / "source")


def test_nothing_stays_patched(llama, tmp_path, monkeypatch):
    def patched_things():
        return [
            dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping),
            modeling_llama.LlamaRMSNorm.forward,
            modeling_llama.LlamaDecoderLayer.forward,
            torch.where,
            torch.Tensor.split,
            torch.nn.functional.scaled_dot_product_attention,
            _fx_passes.decompose_with_registry,
            vars(_registration.ONNXRegistry)["from_torchlib"],
            vars(moe.ExpertsInterface)["get_interface"],
            torch.is_grad_enabled(),
        ]

    before = patched_things()
    exported_to(tmp_path / "good", snapshot=llama[0])
    assert patched_things() == before
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, inputs: torch.linalg.eig(inputs))
    with pytest.raises(Unsupported, match="cannot be traced"):
        exported_to(tmp_path / "bad", snapshot=llama[0])
    assert patched_things() == before


def test_export_reads_no_weights(tmp_path):
    """A checkpoint of 8 GB whose bytes were never written: reading them would take that much memory or time."""
    source = tiny.save_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    config.update(hidden_size=2048, intermediate_size=16384, vocab_size=128_000, num_hidden_layers=10, head_dim=128)
    (source / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(source))
    write_sparse(source / "model.safetensors", model.state_dict())
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = exported_to(tmp_path / "out", snapshot=source)
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024
    assert (source / "model.safetensors").stat().st_size > 5e9
    assert grown_bytes < 3e8
    assert result.figures["written_bytes"] < 200_000


def write_sparse(path, tensors):
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)


def test_logits_of_a_row_that_is_padding_alone_harm_no_other_row(llama):
    _, out, _ = llama
    prompt = list(b"Hello")
    alone = exported_decoder.Decoder(out, batch_size=1, ctx_len=16).prefill([prompt], chunk=8)[0]
    beside = exported_decoder.Decoder(out, batch_size=2, ctx_len=16).prefill([prompt, []], chunk=8)[0]
    np.testing.assert_allclose(alone, beside, rtol=0, atol=1e-5)
