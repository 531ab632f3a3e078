"""Every architecture of the table: the exported graph computes what the untouched model of transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from qeff_engine import exported
from tests import exported_decoder, tiny

# Chunks are longer than the sequences that the exporter traced with (6), the context than its context (20), and the
# window of sliding layers (6) is crossed in prefill and in decode.
PROMPTS = [list(b"The capital of"), list(b"Once."), list(b"Let us see")]
CHUNK, CTX_LEN, NUM_TOKENS = 8, 32, 8
TOLERANCE = 1e-4  # float32, sums of up to 50 products of order one


def original(snapshot):
    return transformers.AutoModelForCausalLM.from_pretrained(
        snapshot, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    ).eval()


def assert_equal_to_original(snapshot, onnx):
    decoder = exported_decoder.Decoder(onnx, batch_size=len(PROMPTS), ctx_len=CTX_LEN)
    tokens, logits_BTV = exported_decoder.greedy(decoder, PROMPTS, num_tokens=NUM_TOKENS, chunk=CHUNK)
    expected, expected_BTV = exported_decoder.reference(original(snapshot), PROMPTS, num_tokens=NUM_TOKENS)
    assert tokens == expected
    assert np.abs(expected_BTV).max() > 0.1, "logits near zero would agree by accident"
    np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=0, atol=TOLERANCE)


def assert_padding_wrote_nothing(onnx):
    decoder = exported_decoder.Decoder(onnx, batch_size=len(PROMPTS), ctx_len=CTX_LEN)
    before = decoder.states
    decoder.prefill(PROMPTS, chunk=CHUNK)
    for name, state_BHCD in decoder.states.items():
        for row, prompt in enumerate(PROMPTS):
            np.testing.assert_array_equal(state_BHCD[row, :, len(prompt) :], before[name][row, :, len(prompt) :])
            assert (state_BHCD[row, :, : len(prompt)] != before[name][row, :, : len(prompt)]).any()


def assert_axes_are_dynamic(onnx):
    decoder = exported_decoder.Decoder(onnx, batch_size=1, ctx_len=8)
    shapes = {item.name: item.shape for item in (*decoder.session.get_inputs(), *decoder.session.get_outputs())}
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "seq_len"]
    assert shapes["logits"][:2] == ["batch_size", 1]
    for name in decoder.states:
        for key in (name, name + exported.RETAINED):
            assert [shapes[key][0], shapes[key][2]] == ["batch_size", "ctx_len"]


@pytest.mark.parametrize("model_type", list(tiny.DECODERS))
def test_exported_decoder_equals_the_original(model_type, tmp_path):
    source = tiny.save_model(tmp_path / "source", model_type)
    snapshot, onnx, result = exported_decoder.make(source, tmp_path)
    assert result.figures["num_layer_functions"] > 0, result.figures["why_no_layer_functions"]
    assert_equal_to_original(snapshot, onnx)
    assert_padding_wrote_nothing(onnx)
    assert_axes_are_dynamic(onnx)
