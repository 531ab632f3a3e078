import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from qeff_engine.errors import InvalidInput
from qeff_engine.tokenizer import Tokenizer

VOCAB = {"<s>": 0, "the": 1, "capital": 2, "of": 3, "unknown": 4}


@pytest.fixture
def snapshot(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.WordLevel(VOCAB, unk_token="unknown"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_special_tokens_of_the_model_are_added_and_left_out_again(snapshot):
    tokenizer = Tokenizer(snapshot)
    assert tokenizer.encode("the capital of") == [0, 1, 2, 3]
    assert tokenizer.decode([0, 1, 2, 3]) == "the capital of"


def test_texts_are_neither_cut_nor_padded(snapshot):
    assert len(Tokenizer(snapshot).encode("the capital of the capital of")) == 7


def test_a_snapshot_without_any_tokenizer_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match=r"has no tokenizer\. Expected tokenizer.json"):
        Tokenizer(tmp_path)


def test_a_tokenizer_of_vocabulary_and_merges_is_read(tmp_path):
    letters = {letter: number for number, letter in enumerate(["<|endoftext|>", *"abcdefgh", "Ġ"])}
    (tmp_path / "vocab.json").write_text(json.dumps({**letters, "ab": 10}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("abc ab") == [10, 3, 9, 10]
    assert tokenizer.decode([10, 3, 0, 9, 10]) == "abc ab"


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InvalidInput, match="is not a tokenizer"):
        Tokenizer(tmp_path)
