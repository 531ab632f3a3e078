"""A small config of the same architecture: fewer and smaller layers, with every kind of layer among them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

VOCAB_SIZE = 128
_MOST_LAYERS = 8
_FEW_LAYERS = 16  # so many are left as they are
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LARGEST: Mapping[str, int] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
        **dict.fromkeys(("intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim"), 48),
        **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
        **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
        "head_dim": 8,
        "max_position_embeddings": 64,
        "sliding_window": 6,
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
        **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    }
)


def shrunk(config: Any) -> Any:
    """A small config of the same class.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the class refuses it.
    """
    fields = config.to_dict()
    fields.pop("quantization_config", None)  # what the checkpoint's weights are packed in, not what is computed
    text = config.get_text_config(decoder=True)
    inner = next((name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is text), None)
    if inner is None:
        return type(config)(**_renamed_small(fields, config=config))
    return type(config)(**{**fields, inner: _renamed_small(fields[inner], config=text)})


def _renamed_small(fields: Mapping[str, Any], *, config: Any) -> dict[str, Any]:
    """Small fields of a class that may have names of its own for what others call ``num_hidden_layers``."""
    own_names = dict(getattr(config, "attribute_map", None) or {})
    common_names = {own: common for common, own in own_names.items()}
    small = _small({common_names.get(name, name): value for name, value in fields.items()})
    return {own_names.get(name, name): value for name, value in small.items()}


def _small(fields: Mapping[str, Any]) -> dict[str, Any]:
    small = {name: _limited(name, value) for name, value in fields.items()}
    heads, key_heads = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(key_heads, int):
        small["num_key_value_heads"] = _fewer(key_heads, of=heads, among=small["num_attention_heads"])
    counts = [fields[name] for name in _LAYERS if isinstance(fields.get(name), int)]
    if counts:
        number = _layers_with_all_kinds(fields, count=counts[0])
        small.update({name: number for name in _LAYERS if isinstance(fields.get(name), int)})
        small.update({name: value[:number] for name, value in fields.items() if _is_by_layer(value, count=counts[0])})
    return small


def _limited(name: str, value: Any) -> Any:
    if name in _TOKENS and isinstance(value, int):
        return min(value, _TOKENS.index(name))
    if name in _LARGEST and isinstance(value, int) and not isinstance(value, bool):
        return min(value, _LARGEST[name])
    return value


def _fewer(key_heads: int, *, of: int, among: int) -> int:
    """As many heads of keys as queries, one, or some number between, as the large config has it."""
    if key_heads == of:
        return among
    return 1 if key_heads == 1 else min(2, among)


def _is_by_layer(value: Any, *, count: int) -> bool:
    return isinstance(value, list) and len(value) == count > 1


def _layers_with_all_kinds(fields: Mapping[str, Any], *, count: int) -> int:
    """The fewest first layers that have every kind of layer, at least two and at most :data:`_MOST_LAYERS`.

    A model of few layers keeps them all: their number may be bound to others.
    """
    if count <= _FEW_LAYERS:
        return count
    kinds = [tuple(map(str, kind)) for kind in zip(*_by_layer(fields, count=count), strict=True)] or [()] * count
    number = next(number for number in range(1, count + 1) if set(kinds[:number]) == set(kinds))
    return min(max(number, 2), _MOST_LAYERS)


def _by_layer(fields: Mapping[str, Any], *, count: int) -> list[list[Any]]:
    return [value for value in fields.values() if _is_by_layer(value, count=count)]
