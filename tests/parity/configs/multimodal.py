"""Decoders that have their fields inside the configuration of a model with vision or sound."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry, impossible
from tests.parity.configs.latent import DOTS
from tests.parity.configs.recurrent import GATED_DELTA, LINEAR_AND_FULL, QWEN4
from tests.parity.configs.sliding import SHARING, WINDOW_AND_ALL

_PART = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 48}
BLT = {
    "cross_attn_k": 1,
    "encoder_hash_byte_group_size": [3, 4],
    "encoder_hash_byte_group_vocab": 64,
    "patcher_config": _PART,
    "encoder_config": {**_PART, "hidden_size_global": 32, "cross_attn_k": 1},
    "decoder_config": {**_PART, "hidden_size_global": 32, "cross_attn_k": 1},
    "global_config": _PART,
}

TABLE: Mapping[str, Entry] = {
    "blt": entry(**BLT),
    "dots3_note": entry(
        text="text_config",
        text_config=DOTS,
        vision_config={"adapter_out_dim": 32},
        audio_config={"adapter_out_dim": 32},
    ),
    "emu3": entry(text="text_config"),
    "fuyu": entry(text="text_config", text_config={"model_type": "persimmon"}),
    "gemma3": entry(
        text="text_config",
        text_config={"query_pre_attn_scalar": 8, "layer_types": WINDOW_AND_ALL},
        mm_tokens_per_image=4,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    "gemma3n": impossible("its vision tower needs the package timm; gemma3n_text is its decoder"),
    "gemma4": entry(
        text="text_config",
        text_config={
            "num_hidden_layers": 5,
            "layer_types": SHARING,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 260,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 16,
        },
    ),
    "gemma4_assistant": impossible("it drafts for another model, whose keys and values and hidden states it takes"),
    "gemma4_unified": entry(
        text="text_config",
        text_config={"num_hidden_layers": 5, "layer_types": SHARING, "num_kv_shared_layers": 2, "global_head_dim": 16},
    ),
    "gemma4_unified_assistant": impossible(
        "it drafts for another model, whose keys and values and hidden states it takes"
    ),
    "git": entry(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
    ),
    "got_ocr2": entry(
        text="text_config",
        text_config={"model_type": "qwen2"},
        vision_config={
            "hidden_size": 16,
            "output_channels": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mlp_dim": 16,
            "image_size": 32,
            "patch_size": 16,
        },
    ),
    "llama4": entry(
        text="text_config",
        text_config={
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0],
            "attention_chunk_size": 6,
            "layer_types": ["chunked_attention", "full_attention"],
            "floor_scale": 8,
        },
    ),
    "mllama": entry(text="text_config"),
    "moss_transcribe_diarize": entry(
        text="text_config",
        text_config={"model_type": "qwen3"},
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 16,
            "vocab_size": 260,
            "pad_token_id": 258,
            "max_source_positions": 16,
        },
    ),
    "musicgen": impossible("its decoder takes codes of several codebooks, not tokens"),
    "musicgen_melody": impossible("its decoder takes codes of several codebooks, not tokens"),
    "phi4_multimodal": entry(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "crop_size": 28,
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    ),
    "qwen3_5": entry(text="text_config", text_config={"layer_types": LINEAR_AND_FULL, **GATED_DELTA}),
    "qwen3_5_moe": entry(text="text_config", text_config={"layer_types": LINEAR_AND_FULL, **GATED_DELTA}),
    "qwen4_exp": entry(text="text_config", text_config=QWEN4),
}
