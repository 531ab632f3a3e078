"""Tiny models of real architectures with a tokenizer, from a seed: a few thousand numbers each, saved as checkpoints.

Sliding windows are shorter than the texts of the tests, and weights are large enough that a wrong mask, a wrong
position or a lost layer changes the greedy token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers
import torch
import transformers

BOS, EOS, PAD = 256, 257, 258
VOCAB_SIZE = 260  # 256 bytes, the three special tokens, one that no text has
SLIDING_WINDOW = 6

COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
)
_TIED: Mapping[str, Any] = MappingProxyType({"tie_word_embeddings": True})

# Fields of the config by model_type, over the common ones.
DECODERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {},
        "qwen2": _TIED,
        "qwen3": _TIED,
        "mistral": {"sliding_window": SLIDING_WINDOW},
        "gemma2": {**_TIED, "sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": 8},
        "gemma3_text": {
            **_TIED,
            "sliding_window": SLIDING_WINDOW,
            "query_pre_attn_scalar": 8,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "phi3": {"sliding_window": SLIDING_WINDOW},
        "gpt2": {**_TIED, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "opt": {**_TIED, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "gpt_neo": {
            **_TIED,
            "num_hidden_layers": 4,
            "window_size": SLIDING_WINDOW,
            "attention_types": [[["global", "local"], 2]],
        },
        "mamba": {"state_size": 4, "time_step_rank": 4},
        "qwen3_5_text": {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "rwkv": {},
        "xlstm": {"num_heads": 4, "chunk_size": 8},
    }
)


def config(model_type: str, *, fields: Mapping[str, Any] | None = None) -> Any:
    """The tiny config of an architecture of :data:`DECODERS`, with ``fields`` over it."""
    values = {**COMMON, "tie_word_embeddings": False, **DECODERS[model_type], **(fields or {})}
    return transformers.AutoConfig.for_model(model_type, **values)


def model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, fields: Mapping[str, Any] | None = None
) -> Any:
    """A model in memory with random weights, in ``eval`` mode."""
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config(model_type, fields=fields), dtype=torch.float32)
    randomize(made)
    return made.to(dtype).eval()


def randomize(made: Any) -> None:
    """Give a model weights that are large enough for wrong masks and lost layers to show."""
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def save_model(
    directory: Path,
    model_type: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    fields: Mapping[str, Any] | None = None,
    max_shard_size: str = "1GB",
) -> Path:
    """A checkpoint with a tokenizer in ``directory``, which is returned.

    Args:
        directory: made when it does not exist.
        model_type: a key of :data:`DECODERS`.
        seed: of the weights.
        dtype: of the saved weights.
        fields: fields of the config over the tiny ones.
        max_shard_size: as ``save_pretrained`` takes it; ``"20KB"`` makes several shards and an index.
    """
    made = model(model_type, seed=seed, dtype=dtype, fields=fields)
    made.save_pretrained(directory, max_shard_size=max_shard_size)
    tokenizer().save_pretrained(directory)
    return directory


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte of UTF-8, and the special tokens ``<s>``, ``</s>`` and ``<pad>``."""
    # The byte-level alphabet in the order of the bytes, so that a token id is its byte.
    alphabet = {letter: number for number, letter in enumerate(_byte_letters())}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<pad>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
