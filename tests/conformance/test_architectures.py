"""Architectures of distinct mechanisms: the exported graph computes what the untouched model of transformers computes.

All architectures are compared by ``make parity``.
"""

from __future__ import annotations

import json

import pytest

from tests.parity import checks, configs, table

# By name, what of it no other has.
REPRESENTATIVE = {
    "llama": "rotary positions, grouped heads",
    "qwen2": "biases, windows behind the first layer",
    "mistral": "windows alone",
    "gemma2": "two kinds of layers, soft caps",
    "gemma3_text": "a rotary base for each kind of layer",
    "gpt2": "learned positions, scores scaled by the number of the layer",
    "opt": "positions with an offset",
    "mixtral": "experts",
    "gpt_oss": "attention sinks",
    "bloom": "biases by distance",
    "deepseek_v3": "compressed keys and values, dense and sparse layers",
    "longcat_flash": "two caches in a layer",
    "deepseek_v2": "complex numbers that are passed to layers",
    "llama4_text": "chunks, rotations by complex numbers, scales by position",
    "gpt_neo": "windows from a table",
    "glm_moe_dsa": "positions that an indexer chooses",
    "roberta": "an encoder made a decoder, positions counted from behind the padding token's number",
    "bart": "positions counted from the length of the cache, more layers than the config says",
    "hrm_text": "layers that are called again with other caches, in two stacks",
    "gemma4_unified_text": "keys and values of an earlier layer, passed in an object",
    "emu3": "a decoder inside a larger config",
    "lfm2": "states of convolutions",
    "mamba": "states alone, a decay for each element",
    "bamba": "a decay for each head, written and read by groups of heads",
    "falcon_h1": "keys, values and states in one layer",
    "inkling_text": "several states of convolutions in a layer, biases by learned distance",
    "nemotron_h": "layers that keep nothing",
    "olmo_hybrid": "the gated delta rule",
    "kimi_linear": "the gated delta rule with a decay for each channel",
    "rwkv": "weights without a bound, states passed as arguments, hidden states halved by the number of the layer",
    "xlstm": "exponential gates, states in a cache of the model's own",
}


def test_the_tables_have_every_architecture_of_transformers():
    assert set(configs.TABLE) == set(configs.listed())


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_exported_decoder_equals_the_original(name, tmp_path):
    found = checks.compare(name, tmp_path)
    assert found.num_layer_functions > 0


def test_a_decoder_that_computes_something_else_is_found(tmp_path):
    _, onnx, _ = checks.exported_tiny("llama", tmp_path)
    other = configs.model("llama", seed=1)
    with pytest.raises(checks.Different, match="logits differ by"):
        checks.chunked_with_padding(other, onnx)


def test_the_page_keeps_rows_that_have_no_new_result(tmp_path):
    page, names = tmp_path / "architectures.md", tmp_path / "proven.json"
    result = table.Result(name="llama", key="", status="pass", class_name="LlamaForCausalLM", max_difference=1e-6)
    other = table.Result(name="xlm", key="", status="unsupported", class_name="XLM", reason="a | b")
    table.write({"llama": result, "xlm": other}, page=page, names=names)
    counts = table.write({"xlm": other}, page=page, names=names)
    assert json.loads(names.read_text()) == ["llama"]
    text = page.read_text()
    assert counts == {"pass": 1, "unsupported": 1}
    assert "| llama | LlamaForCausalLM | pass | 1.0e-06 |" in text
    assert "| xlm | XLM | unsupported |  |  |  | a / b |" in text
    assert "2 architectures: 1 pass, 1 unsupported. Of the 2 that can be compared, 50.0 % pass." in text
