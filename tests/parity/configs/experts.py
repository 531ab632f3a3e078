"""Decoders that choose experts for each token."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

WINDOW_AND_ALL = ["sliding_attention", "full_attention"]
DENSE_AND_SPARSE = ["dense", "sparse"]

TABLE: Mapping[str, Entry] = {
    "afmoe": entry(layer_types=WINDOW_AND_ALL),
    "aria_text": entry(moe_num_experts=4),
    "beam": entry(layer_types=WINDOW_AND_ALL, mlp_layer_types=DENSE_AND_SPARSE),
    "cohere2_moe": entry(logit_scale=1.0, layer_types=WINDOW_AND_ALL, mlp_layer_types=DENSE_AND_SPARSE),
    "dbrx": entry(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=128,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 0.5},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    ),
    "dots1": entry(n_shared_experts=1, max_window_layers=1),
    "ernie4_5_moe": entry(moe_num_experts=4, moe_k=2),
    "exaone_moe": entry(layer_types=WINDOW_AND_ALL, mlp_layer_types=DENSE_AND_SPARSE),
    "flex_olmo": entry(),
    "flint": entry(layer_types=["full_attention", "sliding_attention"], mlp_only_layers=[0]),
    "glm4_moe": entry(),
    "gpt_oss": entry(),
    "granitemoe": entry(attention_multiplier=0.35),
    "granitemoe_swa": entry(attention_multiplier=0.35, layer_types=WINDOW_AND_ALL, shared_intermediate_size=16),
    "granitemoeshared": entry(attention_multiplier=0.35, shared_intermediate_size=16),
    "hunyuan_v1_moe": entry(moe_topk=2),
    "hy_v3": entry(),
    "jetmoe": entry(kv_channels=8),
    "kolibri1": entry(layer_types=WINDOW_AND_ALL),
    "laguna": entry(layer_types=WINDOW_AND_ALL, gating=True),
    "llama4_text": entry(
        intermediate_size_mlp=48,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 0],
        attention_chunk_size=6,
        layer_types=["chunked_attention", "full_attention"],
        floor_scale=8,
    ),
    "mellum": entry(layer_types=WINDOW_AND_ALL, mlp_layer_types=DENSE_AND_SPARSE),
    "mimo_v2_flash": entry(),
    "minimax_m2": entry(),
    "minimax_m3_vl_text": entry(
        dense_intermediate_size=48, shared_intermediate_size=16, rotary_dim=4, mlp_layer_types=DENSE_AND_SPARSE
    ),
    "mixtral": entry(),
    "olmoe": entry(),
    "phimoe": entry(),
    "qwen2_moe": entry(use_sliding_window=True, max_window_layers=1, mlp_only_layers=[0]),
    "qwen3_moe": entry(mlp_only_layers=[0], use_sliding_window=True),
    "solar_open": entry(),
}
