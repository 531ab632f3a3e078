"""Architectures that are not in the list of proven ones are tried small before they are exported."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from qeff_engine.architectures import proven, shrinking
from qeff_engine.errors import Unsupported
from qeff_engine.exporters import self_test
from tests import exported_decoder, tiny


class CountsItsCache(modeling_llama.LlamaModel):
    """Adds something that depends on how full the cache is: right in transformers, wrong behind a fixed cache."""

    def forward(self, input_ids=None, past_key_values=None, **kwargs):
        found = super().forward(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        length = 0 if past_key_values is None else past_key_values.get_seq_length()
        found.last_hidden_state = found.last_hidden_state + 0.01 * length
        return found


class CountsItsCacheForCausalLM(transformers.LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = CountsItsCache(config)
        self.post_init()


@pytest.fixture
def nothing_proven(monkeypatch):
    monkeypatch.setattr(proven, "is_proven", lambda model_type: False)


def test_a_large_config_is_made_small_with_every_kind_of_layer():
    large = transformers.Gemma3TextConfig()
    small = shrinking.shrunk(large)
    assert small.layer_types == [*["sliding_attention"] * 5, "full_attention"]
    assert (small.num_hidden_layers, small.hidden_size, small.sliding_window) == (6, 32, 6)
    model = transformers.Gemma3ForCausalLM(small)
    assert model.num_parameters() < 100_000
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, shrinking.VOCAB_SIZE)


def test_an_architecture_that_agrees_is_exported_without_being_proven(nothing_proven, tmp_path):
    _, onnx, _ = exported_decoder.make(tiny.save_model(tmp_path / "source", "llama"), tmp_path)
    assert (onnx / "LlamaForCausalLM.onnx").is_file()


def test_one_that_computes_something_else_is_refused(monkeypatch):
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    monkeypatch.setitem(mapping._extra_content, transformers.LlamaConfig, CountsItsCacheForCausalLM)
    with pytest.raises(
        Unsupported, match=r"'llama' does not compute the same when it is exported: logits behind token"
    ):
        self_test.require_agreement(tiny.config("llama"))


def test_one_that_cannot_be_made_small_is_refused(monkeypatch):
    monkeypatch.setattr(shrinking, "shrunk", lambda config: 1 / 0)
    with pytest.raises(Unsupported, match="not among the proven ones, and no small model of it can be tried"):
        self_test.require_agreement(tiny.config("llama"))
