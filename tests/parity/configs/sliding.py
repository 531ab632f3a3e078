"""Decoders with layers that attend to a window."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

WINDOW_AND_ALL = ["sliding_attention", "full_attention"]
# The last two use the keys and values of earlier ones.
SHARING = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]

TABLE: Mapping[str, Entry] = {
    "cohere2": entry(logit_scale=1.0, layer_types=WINDOW_AND_ALL),
    "cwm": entry(layer_types=WINDOW_AND_ALL),
    "exaone4": entry(layer_types=WINDOW_AND_ALL),
    "gemma2": entry(query_pre_attn_scalar=8, layer_types=WINDOW_AND_ALL),
    "gemma3_text": entry(
        query_pre_attn_scalar=8, num_hidden_layers=3, layer_types=[*WINDOW_AND_ALL, "sliding_attention"]
    ),
    "gemma3n_text": entry(
        num_hidden_layers=5,
        intermediate_size=[48] * 5,
        layer_types=SHARING,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=260,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        activation_sparsity_pattern=[0.5, 0.5, 0.0, 0.0, 0.0],
    ),
    "gemma4_text": entry(
        num_hidden_layers=5,
        layer_types=SHARING,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=260,
        hidden_size_per_layer_input=8,
        enable_moe_block=True,
        top_k_experts=2,
        global_head_dim=16,
    ),
    "gemma4_unified_text": entry(num_hidden_layers=5, layer_types=SHARING, num_kv_shared_layers=2, global_head_dim=16),
    "gpt_neo": entry(num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4, window_size=6),
    "granite_swa": entry(attention_multiplier=0.35, layer_types=WINDOW_AND_ALL),
    "ministral": entry(layer_types=WINDOW_AND_ALL),
    "mistral": entry(),
    "modernbert-decoder": entry(local_attention=12, layer_types=WINDOW_AND_ALL),
    "moshi": entry(ffn_dim=48),
    "olmo3": entry(layer_types=WINDOW_AND_ALL),
    "phi3": entry(),
    "qwen2": entry(use_sliding_window=True, max_window_layers=1),
    "qwen3": entry(use_sliding_window=True, max_window_layers=1),
    "starcoder2": entry(),
    "vaultgemma": entry(query_pre_attn_scalar=8, layer_types=WINDOW_AND_ALL),
}
