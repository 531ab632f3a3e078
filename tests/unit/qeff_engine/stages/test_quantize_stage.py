import json

import pytest
import torch
import transformers
from safetensors import safe_open

from qeff_engine.errors import InvalidInput, Numerics, Unsupported
from qeff_engine.quantizers import calibration
from tests.unit.qeff_engine.quantizers import checkpoints, dequantizing

METHODS = ("rtn", "gptq", "awq")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return checkpoints.save(tmp_path_factory.mktemp("llama"), "llama")


def original(snapshot):
    return transformers.AutoModelForCausalLM.from_pretrained(snapshot, dtype=torch.float32).eval()


@torch.no_grad()
def relative_change(snapshot, out):
    """How much the logits change, on text of the kind that quantizers calibrate on."""
    rows_NS = calibration.token_rows(
        transformers.AutoTokenizer.from_pretrained(snapshot),
        text=calibration.default_text(),
        num_samples=8,
        seq_len=48,
        seed=9,
    )
    expected = original(snapshot)(input_ids=rows_NS).logits
    actual = dequantizing.load(out)(input_ids=rows_NS).logits
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "gemma2", "phi3", "opt"])
def test_calibrated_methods_lose_less_than_rounding_to_nearest(tmp_path, model_type):
    snapshot = checkpoints.save(tmp_path / "float", model_type)
    changes = {}
    for method in METHODS:
        checkpoints.quantized(snapshot, tmp_path / method, method=method, num_samples=24)
        changes[method] = relative_change(snapshot, tmp_path / method)
    assert changes["gptq"] < changes["rtn"]
    assert changes["awq"] < changes["rtn"]
    assert changes["rtn"] < 1


@pytest.mark.parametrize("method", METHODS)
def test_the_checkpoint_is_in_its_standard_layout(tmp_path, llama, method):
    checkpoints.quantized(llama, tmp_path, method=method)
    config = json.loads((tmp_path / "config.json").read_text())
    settings = config["quantization_config"]
    layout = "awq" if method == "awq" else "gptq"
    assert (settings["quant_method"], settings["bits"], settings["group_size"]) == (layout, 4, 32)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        down = {name.rpartition(".")[2]: file.get_tensor(name) for name in file.keys() if "1.mlp.down_proj" in name}  # noqa: SIM118
        assert "model.layers.0.self_attn.q_proj.weight" not in file.keys()  # noqa: SIM118
        assert torch.equal(file.get_tensor("model.embed_tokens.weight"), original(llama).model.embed_tokens.weight)
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in down.items()}
    expected = {"qzeros": ((4, 8), torch.int32), "scales": ((4, 64), torch.float16)}
    if layout == "awq":
        assert shapes == {**expected, "qweight": ((128, 8), torch.int32)}
        assert (settings["version"], settings["zero_point"]) == ("gemm", True)
        assert settings["modules_to_not_convert"] == ["lm_head"]
    else:
        assert shapes == {**expected, "qweight": ((16, 64), torch.int32), "g_idx": ((128,), torch.int32)}
        assert (settings["checkpoint_format"], settings["desc_act"], settings["sym"]) == ("gptq", False, False)
        assert torch.equal(down["g_idx"], torch.arange(128, dtype=torch.int32) // 32)


def test_all_other_files_are_the_snapshots_own(tmp_path, llama):
    checkpoints.quantized(llama, tmp_path, method="rtn")
    names = {path.name for path in llama.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names - {"config.json", "model.safetensors"}:
        assert (tmp_path / name).samefile(llama / name)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bytes(tmp_path, llama, method):
    for name in ("first", "second"):
        checkpoints.quantized(llama, tmp_path / name, method=method)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_another_seed_calibrates_on_other_text(tmp_path, llama):
    for seed in (0, 1):
        checkpoints.quantized(llama, tmp_path / str(seed), method="gptq", seed=seed)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "01")
    assert first != second


def test_a_bfloat16_checkpoint_keeps_its_types(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "llama", dtype=torch.bfloat16)
    checkpoints.quantized(snapshot, tmp_path / "awq", method="awq")
    with safe_open(tmp_path / "awq" / "model.safetensors", framework="pt") as file:
        for name in ("model.layers.0.input_layernorm.weight", "model.embed_tokens.weight", "model.norm.weight"):
            assert file.get_slice(name).get_dtype() == "BF16"
    checkpoints.quantized(snapshot, tmp_path / "rtn", method="rtn")
    assert relative_change(snapshot, tmp_path / "awq") < relative_change(snapshot, tmp_path / "rtn")


def test_many_shards_are_read(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "llama", max_shard_size="60KB")
    assert len(list(snapshot.glob("*.safetensors"))) > 3
    checkpoints.quantized(snapshot, tmp_path / "rtn", method="rtn")
    assert {path.name for path in (tmp_path / "rtn").glob("*safetensors*")} == {"model.safetensors"}
    assert relative_change(snapshot, tmp_path / "rtn") < 1


def test_experts_stay_in_float_and_the_stage_says_so(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "mixtral")
    result, emitted = checkpoints.quantized(snapshot, tmp_path / "awq", method="awq")
    assert result.figures["num_stacked_expert_weights_in_float"] == 4
    assert any("4 stacked expert weights (196608 parameters) stay in float" in event.message for event in emitted)
    assert relative_change(snapshot, tmp_path / "awq") < 0.5


def test_a_linear_of_an_odd_width_stays_in_float_and_readers_are_told(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "llama", num_attention_heads=16, num_key_value_heads=1, head_dim=4)
    name = "model.layers.0.self_attn.k_proj"
    settings = {}
    for method in ("gptq", "awq"):
        result, emitted = checkpoints.quantized(snapshot, tmp_path / method, method=method)
        assert result.figures["num_linears_in_float"] == 4
        assert any(event.message.startswith(f"{name} stays in float: its widths 64 and 4") for event in emitted)
        settings[method] = json.loads((tmp_path / method / "config.json").read_text())["quantization_config"]
        assert relative_change(snapshot, tmp_path / method) < 1
    assert name in settings["awq"]["modules_to_not_convert"]
    assert f"-:^{name.replace('.', '[.]')}$" in settings["gptq"]["dynamic"]


def test_progress_says_how_much_is_done_and_how_long_it_takes(tmp_path, llama):
    _, emitted = checkpoints.quantized(llama, tmp_path, method="gptq")
    layers = [event for event in emitted if "quantized layer" in event.message]
    assert [event.fraction for event in layers] == [0.5, 1.0]
    assert layers[0].message.startswith("quantized layer 1 of 2 (gptq:4:32), about ")
    assert layers[1].message.endswith("about 0 s left")


def test_figures_say_what_was_done(tmp_path, llama):
    result, _ = checkpoints.quantized(llama, tmp_path, method="awq")
    figures = result.figures
    assert (figures["num_layers_quantized"], figures["num_linears_quantized"]) == (2, 14)
    assert (figures["num_scaled_inputs"], figures["num_inputs"]) == (8, 8)
    assert 0 < figures["weight_error_mean"] < 0.02
    assert 0 < figures["output_error_vs_rtn_mean"] < 1
    assert figures["weights_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert figures["peak_rss_bytes"] > 0


def test_one_group_per_row_is_possible(tmp_path, llama):
    checkpoints.quantized(llama, tmp_path, method="gptq", group_size=-1)
    assert relative_change(llama, tmp_path) < 1


def test_a_group_size_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "llama", intermediate_size=96)
    with pytest.raises(InvalidInput, match=r"group size 64 does not fit 2 of 14 linears: model\.layers\.0\.mlp\.down"):
        checkpoints.quantized(snapshot, tmp_path / "out", method="gptq", group_size=64)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_quantized_checkpoint_is_not_quantized_again(tmp_path, llama):
    checkpoints.quantized(llama, tmp_path / "once", method="rtn")
    with pytest.raises(InvalidInput, match="already quantized with gptq"):
        checkpoints.quantized(tmp_path / "once", tmp_path / "twice", method="awq")


def test_layers_that_are_no_linears_are_refused_with_their_type(tmp_path):
    snapshot = checkpoints.save(tmp_path / "float", "gpt2")
    with pytest.raises(Unsupported, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        checkpoints.quantized(snapshot, tmp_path / "out", method="rtn")


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_refused(tmp_path, method):
    snapshot = checkpoints.save(tmp_path / "float", "llama")
    model = original(snapshot)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(snapshot)
    with pytest.raises(Numerics, match=r"model\.layers\.1\.mlp\.up_proj is not finite"):
        checkpoints.quantized(snapshot, tmp_path / "out", method=method)
