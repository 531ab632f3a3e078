"""Decoders of equal layers with attention to everything before."""

from __future__ import annotations

from collections.abc import Mapping

from tests.parity.configs.entry import Entry, entry

TABLE: Mapping[str, Entry] = {
    "apertus": entry(),
    "arcee": entry(),
    "bitnet": entry(),
    "bloom": entry(n_layer=2, n_head=4),
    "codegen": entry(rotary_dim=4),
    "cohere": entry(logit_scale=1.0),
    "cpmant": entry(dim_head=8, dim_ff=48, prompt_types=4, prompt_length=4, segment_types=4),
    "ctrl": entry(dff=48),
    "diffllama": entry(),
    "doge": entry(keep_window_size=6),
    "ernie4_5": entry(),
    "falcon": entry(alibi=True),
    "gemma": entry(),
    "glm": entry(),
    "glm4": entry(),
    "gpt-sw3": entry(),
    "gpt2": entry(scale_attn_by_inverse_layer_idx=True),
    "gpt_bigcode": entry(),
    "gpt_neox": entry(),
    "gpt_neox_japanese": entry(),
    "gptj": entry(rotary_dim=4),
    "granite": entry(attention_multiplier=0.35, residual_multiplier=0.5),
    "helium": entry(),
    "hrm_text": entry(num_hidden_layers=12, num_layers_per_stack=2, H_cycles=2, L_cycles=2, L_bp_cycles=[1]),
    "hunyuan_v1_dense": entry(),
    "hyperclovax": entry(),
    "internlm3": entry(),
    "iquestcoder": entry(),
    "jais2": entry(),
    "llama": entry(),
    "ministral3": entry(),
    "mpt": entry(n_heads=4, n_layers=2, max_seq_len=128),
    "nanochat": entry(),
    "nemotron": entry(),
    "olmo": entry(clip_qkv=0.5),
    "olmo2": entry(),
    "opt": entry(ffn_dim=48, word_embed_proj_dim=16),
    "persimmon": entry(),
    "phi": entry(qk_layernorm=True),
    "seed_oss": entry(attention_dropout=0.0, residual_dropout=0.0),
    "smollm3": entry(no_rope_layers=[1, 0]),
    "stablelm": entry(qk_layernorm=True),
    # transformers fills its table of positions from the padding token on.
    "xglm": entry(ffn_dim=48, num_layers=2, attention_heads=4, pad_token_id=1),
}
