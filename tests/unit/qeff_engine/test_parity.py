import contextlib
import json

import numpy as np
import psutil
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from qeff_engine import parity
from qeff_engine.errors import Numerics

PROMPTS = [[1, 5, 9, 2], [7, 3]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    return directory, [greedy(model, prompt=prompt, num_tokens=6) for prompt in PROMPTS]


def greedy(model, *, prompt, num_tokens):
    """Greedy tokens one by one, the whole sequence anew for each."""
    tokens = []
    with torch.inference_mode():
        for _ in range(num_tokens):
            tokens.append(int(model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens


def test_one_forward_confirms_the_tokens_of_a_decode_loop(llama):
    original, tokens = llama
    found = parity.compare_tokens(original, prompts=PROMPTS, generated=tokens)
    assert found == parity.Parity(tokens_equal=True, num_tokens_equal=12, worst_gap=0.0)
    found.require_exact()


def test_tokens_are_counted_up_to_the_first_difference(llama):
    original, tokens = llama
    wrong = (tokens[1][2] + 1) % 64
    other = [tokens[0], [*tokens[1][:2], wrong, *tokens[1][3:]]]
    found = parity.compare_tokens(original, prompts=PROMPTS, generated=other)
    assert (found.tokens_equal, found.num_tokens_equal) == (False, 8)
    assert f"prompt 1, token 2: {wrong} instead of {tokens[1][2]}, whose logit is" in found.note


def test_tokens_that_the_original_rates_lowest_are_wrong_and_not_rounded(llama):
    original, _ = llama
    model = LlamaForCausalLM.from_pretrained(original).eval()
    with torch.inference_mode():
        logits_V = model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -1]
    worst = int(logits_V.argmin())
    found = parity.compare_tokens(original, prompts=PROMPTS[:1], generated=[[worst]])
    gap = float((logits_V.max() - logits_V[worst]) / logits_V.std())
    assert found.worst_gap == pytest.approx(gap, rel=1e-4)
    with pytest.raises(Numerics, match=r"deviations below the best, expected at most 0\.5 .* First difference"):
        found.require_exact()


@pytest.mark.parametrize(("difference", "wrong"), [(0.0, False), (0.2, False), (0.3, True), (float("nan"), True)])
def test_embeddings_far_from_the_originals_are_wrong(difference, wrong):
    found = parity.Parity(max_abs_diff=difference)
    with pytest.raises(Numerics, match="embeddings are wrong") if wrong else contextlib.nullcontext():
        found.require_exact()


def test_what_was_not_compared_is_not_judged():
    parity.Parity(note="Not asked for.").require_exact()


def test_an_original_too_large_for_this_host_is_skipped_with_a_note(llama, monkeypatch):
    original, tokens = llama
    full = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: full)
    found = parity.compare_tokens(original, prompts=PROMPTS, generated=tokens)
    assert found.tokens_equal is None
    assert found.num_tokens_equal is None
    assert "GiB are available" in found.note


def test_a_quantized_original_is_skipped_with_a_note(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": {}}))
    found = parity.compare_tokens(tmp_path, prompts=[[1]], generated=[[2]])
    assert found.tokens_equal is None
    assert "itself quantized" in found.note


def test_an_original_that_does_not_load_is_skipped_with_a_note(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = parity.compare_tokens(tmp_path, prompts=[[1]], generated=[[2]])
    assert found.tokens_equal is None
    assert "could not be loaded" in found.note


@pytest.mark.parametrize("pooling", ["", "mean", "max", "cls"])
def test_embeddings_are_compared_without_padding(tmp_path, pooling):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    input_ids = np.array([[3, 4, 5, 0, 0], [6, 7, 8, 9, 10]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.inference_mode():
        alone = model(input_ids=torch.tensor([[3, 4, 5]])).last_hidden_state[0]
        full = model(input_ids=torch.tensor([[6, 7, 8, 9, 10]])).last_hidden_state[0]
    pool = {
        "": lambda states: torch.nn.functional.pad(states, (0, 0, 0, 5 - len(states)), value=99.0),
        "mean": lambda states: states.mean(0),
        "max": lambda states: states.amax(0),
        "cls": lambda states: states[0],
    }[pooling]
    embeddings = torch.stack([pool(alone), pool(full)]).numpy()
    found = parity.compare_embeddings(
        tmp_path, embeddings=embeddings, input_ids_NS=input_ids, attention_mask_NS=mask, pooling=pooling
    )
    assert found.max_abs_diff < 1e-5
    embeddings[0, 0] += 0.5
    worse = parity.compare_embeddings(
        tmp_path, embeddings=embeddings, input_ids_NS=input_ids, attention_mask_NS=mask, pooling=pooling
    )
    assert worse.max_abs_diff == pytest.approx(0.5, abs=1e-4)
