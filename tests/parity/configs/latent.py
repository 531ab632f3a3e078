"""Attention to compressed keys and values, and to chosen positions."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

DOTS = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "head_dim": 16,
    "shared_experts_intermediate_size": 16,
}

TABLE: Mapping[str, Entry] = {
    "axk1": entry(num_key_value_heads=4),
    "axk2": entry(num_key_value_heads=4, gated_norm_rank=4),
    "deepseek_v2": entry(num_key_value_heads=4, num_hidden_layers=2),
    "deepseek_v3": entry(num_key_value_heads=4, n_group=2, topk_group=1),
    "deepseek_v32": entry(num_key_value_heads=4),
    "deepseek_v4": entry(
        num_hidden_layers=4,
        num_key_value_heads=1,
        layer_types=[
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "compressed_sparse_attention",
        ],
        mlp_layer_types=["hash_moe", "moe", "moe", "moe"],
        hc_mult=2,
        o_groups=2,
        o_lora_rank=16,
        partial_rotary_factor=0.5,
    ),
    "dots3_note_text": entry(**DOTS),
    "glm4_moe_lite": entry(num_key_value_heads=4),
    "glm_moe_dsa": entry(num_key_value_heads=4),
    "hy_v4": entry(num_key_value_heads=4, num_hidden_layers=3, hc_mult=2),
    "longcat_flash": entry(
        num_key_value_heads=4,
        num_layers=2,
        ffn_hidden_size=48,
        expert_ffn_hidden_size=16,
        moe_topk=2,
        zero_expert_num=2,
    ),
    "minicpm3": entry(num_key_value_heads=4, dim_model_base=32),
    # transformers makes the padding token's row 0 when it loads.
    "youtu": entry(num_key_value_heads=4, pad_token_id=None),
}
