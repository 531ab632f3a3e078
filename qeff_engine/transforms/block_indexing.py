"""Qwen4-Exp's choice of blocks of positions, and its embeddings of hashed n-grams, without asking tensors for values.

After ``Qwen4ExpTextQSAIndexer`` and ``Qwen4ExpTextNGramEmbedding`` of transformers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

_DIGIT = 256  # float16 and bfloat16 hold whole numbers exactly up to here
_NUM_DIGITS = 3


def choose(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor,
    past_key_values: Any,
) -> torch.Tensor:
    """Which positions [B, 1, S, C] each token may attend to: those of the best blocks, and of blocks not complete yet.

    Args:
        self: the indexer.
        hidden_states: [B, S, H].
        position_embeddings: cosines and sines [B, C + S, R], of all positions and then of this call's tokens.
        attention_mask: [B, 1, S, C], bool or what is added to scores.
        past_key_values: the cache, or None.
    """
    num_tokens, ratio, dim = hidden_states.shape[1], self.compress_ratio, self.index_head_dim
    cos, sin = position_embeddings
    projected = self.index_qk_proj(hidden_states).unflatten(-1, (-1, dim))
    q_BSHD = self.q_layernorm(projected[:, :, : self.index_n_heads])
    q_BSHD = _rotated(q_BSHD, cos[:, -num_tokens:, None], sin[:, -num_tokens:, None])
    keys_BCD = projected[:, :, self.index_n_heads]
    if past_key_values is not None:
        keys_BCD = past_key_values.update_indexer(keys_BCD, self.layer_idx)

    ctx_len = attention_mask.shape[-1]
    starts_N = torch.arange((ctx_len + ratio - 1) // ratio) * ratio
    members_NR = starts_N[:, None] + torch.arange(ratio)
    means_BND = keys_BCD[:, members_NR.clamp(max=ctx_len - 1)].float().mean(dim=2).to(keys_BCD.dtype)
    blocks_BND = _rotated(self.k_layernorm(means_BND), cos[:, starts_N], sin[:, starts_N])
    scores_BSHN = torch.matmul(q_BSHD.float(), blocks_BND[:, None].float().transpose(-1, -2))
    scores_BSN = torch.relu(scores_BSHN).sum(dim=2) / math.sqrt(dim)

    visible_BSC = (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)[:, 0]
    ends_N = members_NR[:, -1]
    complete_BSN = visible_BSC[..., ends_N.clamp(max=ctx_len - 1)] & (ends_N < ctx_len)
    num_chosen = torch.sym_min(self.block_topk, starts_N.shape[0])  # type: ignore[no-untyped-call]
    best = scores_BSN.masked_fill(~complete_BSN, -1.0).topk(num_chosen, dim=-1).indices
    chosen_BSN = torch.zeros_like(scores_BSN).scatter(-1, best, 1.0) > 0
    allowed_BSN = chosen_BSN | ~complete_BSN
    selected_BSC: torch.Tensor = visible_BSC & allowed_BSN[..., torch.arange(ctx_len) // ratio]
    return selected_BSC[:, None]


def embed_ngrams(self: Any, input_ids: torch.Tensor, past_key_values: Any) -> torch.Tensor:
    """The embeddings [B, S, E] of the n-grams that end at each token of ``input_ids`` [B, S].

    The last tokens are kept in a convolution's state as the digits of their number plus one, so that half precision
    holds them and zeros stand for no token. The hashes are products of 64 bits.
    """
    num_tokens, kept = input_ids.shape[1], self.context_len
    numbers_BS = input_ids.long() + 1
    digits = torch.stack([numbers_BS // _DIGIT**place % _DIGIT for place in range(_NUM_DIGITS)], dim=1).to(
        self.ngram_embedding.weight.dtype
    )
    if past_key_values is not None:
        digits = past_key_values.update_conv_state(digits, self.layer_idx, state_idx=2, conv_kernel_size=kept)
    digits = F.pad(digits, (kept, 0))[..., -(kept + num_tokens) :].long()
    numbers_BT = sum(digits[:, place] * _DIGIT**place for place in range(_NUM_DIGITS))
    history_BT = torch.where(numbers_BT > 0, numbers_BT - 1, self.eos_token_id)

    mixed_BS = history_BT[:, kept:] * self.layer_multipliers[0]
    ended_BS = torch.zeros_like(mixed_BS, dtype=torch.bool)
    found = []
    for shift in range(1, self.ngram_size):
        earlier_BS = history_BT[:, kept - shift : kept - shift + num_tokens]
        earlier_BS = torch.where(ended_BS, self.eos_token_id, earlier_BS)
        ended_BS = earlier_BS == self.eos_token_id
        mixed_BS = torch.bitwise_xor(mixed_BS, earlier_BS * self.layer_multipliers[shift])
        heads = slice((shift - 1) * self.heads_per_ngram, shift * self.heads_per_ngram)
        found.append(
            torch.remainder(mixed_BS[..., None], self.ngram_heads_vocab_sizes[heads]) + self.ngram_heads_offsets[heads]
        )
    embedded: torch.Tensor = self.ngram_embedding(torch.cat(found, dim=-1))
    return embedded.flatten(-2)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)
