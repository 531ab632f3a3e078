"""The n-gram embeddings of Qwen4-Exp beside those of transformers."""

from __future__ import annotations

import torch
from transformers.models.qwen4_exp.configuration_qwen4_exp import Qwen4ExpTextConfig
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextNGramEmbedding

from qeff_engine.transforms import block_indexing

_END = 1


def test_ngrams_do_not_reach_over_the_end_of_a_text() -> None:
    config = Qwen4ExpTextConfig(
        vocab_size=70_000, eos_token_id=_END, ngram_vocab_size_base=64, heads_per_ngram=2, num_hidden_layers=1
    )
    embedding = Qwen4ExpTextNGramEmbedding(config, 12, 0)
    ids = torch.tensor([[69_999, 5, _END, 7, 65_535, _END, _END, 300, 255], [_END, 2, 3, 4, 5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = embedding(ids, None)
        torch.testing.assert_close(block_indexing.embed_ngrams(embedding, ids, None), expected, rtol=0, atol=0)
        half = embedding.half()
        torch.testing.assert_close(block_indexing.embed_ngrams(half, ids, None), half(ids, None), rtol=0, atol=0)
    assert not torch.equal(expected[0, 3], expected[0, 8])
