"""Encoders that a field of their configuration makes decoders.

Many of them count positions from behind the padding token's number, which must then be small."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

TABLE: Mapping[str, Entry] = {
    "bert": entry(is_decoder=True),
    "bert-generation": entry(is_decoder=True),
    "big_bird": entry(is_decoder=True, attention_type="original_full"),
    "camembert": entry(is_decoder=True, pad_token_id=1),
    "cohere_compass_text": entry(
        logit_scale=1.0,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": _ROPE, "full_attention": _ROPE},
    ),
    "data2vec-text": entry(is_decoder=True, pad_token_id=1),
    "electra": entry(is_decoder=True, embedding_size=16),
    "ernie": entry(is_decoder=True),
    "megatron-bert": entry(is_decoder=True),
    "rembert": entry(is_decoder=True, input_embedding_size=16, output_embedding_size=24),
    "roberta": entry(is_decoder=True, pad_token_id=1),
    "roberta-prelayernorm": entry(is_decoder=True, pad_token_id=1),
    "roc_bert": entry(
        is_decoder=True,
        pronunciation_embed_dim=8,
        pronunciation_vocab_size=16,
        shape_embed_dim=8,
        shape_vocab_size=16,
        pad_token_id=0,
    ),
    "roformer": entry(is_decoder=True, embedding_size=16),
    "xlm-roberta": entry(is_decoder=True, pad_token_id=1),
    "xlm-roberta-xl": entry(is_decoder=True, pad_token_id=1),
    "xmod": entry(is_decoder=True, default_language="en_XX", pad_token_id=1),
}
