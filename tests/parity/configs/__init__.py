"""A tiny configuration for every entry of transformers' mapping of causal language models, as data by family.

Every kind of layer of a family is among its layers. Sliding windows are shorter than the prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

from tests import tiny
from tests.parity.configs import dense, encoders, experts, latent, legacy, multimodal, recurrent, sequence, sliding
from tests.parity.configs.entry import Entry

TABLE: Mapping[str, Entry] = MappingProxyType(
    {
        name: entry
        for family in (dense, sliding, latent, experts, recurrent, multimodal, encoders, sequence, legacy)
        for name, entry in family.TABLE.items()
    }
)

# Applied where the configuration has a field of that name.
COMMON: Mapping[str, Any] = MappingProxyType(
    {
        **tiny.COMMON,
        "sliding_window": tiny.SLIDING_WINDOW,
        # encoders and decoders in one
        "d_model": 32,
        "decoder_layers": 2,
        "encoder_layers": 1,
        "decoder_attention_heads": 4,
        "encoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "encoder_ffn_dim": 48,
        # attention with compressed keys and values
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        # attention to chosen positions
        "index_topk": 6,
        "index_head_dim": 8,
        # So many that hardly any position has a score of exactly 0, between which the choice would be open.
        "index_n_heads": 8,
        # experts
        "num_experts": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }
)


def listed() -> list[str]:
    """All names of transformers' mapping."""
    return list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(name: str) -> str:
    """The class of an architecture in transformers."""
    return str(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])


def config(name: str) -> Any:
    """The tiny config of an architecture."""
    entry = TABLE[name]
    kind = configuration_auto.CONFIG_MAPPING[name]
    if not entry.text:
        return kind(**{**_common(kind), **entry.fields})
    fields = dict(entry.fields)
    text = dict(fields.pop(entry.text, {}))
    inner = (
        configuration_auto.CONFIG_MAPPING[text["model_type"]] if "model_type" in text else kind.sub_configs[entry.text]
    )
    return kind(**{**fields, entry.text: {**_common(inner), **text}})


def model(name: str, *, seed: int = 0) -> Any:
    """The model of a tiny config in memory with random weights, in ``eval`` mode."""
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config(name), dtype=torch.float32, attn_implementation="eager")
    tiny.randomize(made)
    return made.eval()


def _common(kind: Any) -> dict[str, Any]:
    has = {field.name for field in dataclasses.fields(kind)}
    aliases = getattr(kind, "attribute_map", {})
    # A class may have a field under both names, of which the later one counts.
    return {key: value for name, value in COMMON.items() for key in {name, aliases.get(name, name)} & has}
