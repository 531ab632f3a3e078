"""Attention whose queries and keys are mixed by convolutions, and whose values are half those of the token before.

Shape legend: B batch, S tokens of this call, D hidden size, H heads, G heads of keys and values, K head dimension, X
channels, R heads that share keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def projection(
    self: Any, hidden_states: torch.Tensor, past_key_values: Any, conv_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, S, H, K], keys and values [B, S, G, K] of a compressed convolutional attention.

    Queries, keys and what the next token's values take from this one are columns of one state, of which the cache
    keeps the last that belong to tokens. Before the first token they are zeros, so the delayed half of the values gets
    its bias behind the state.

    Source: https://arxiv.org/abs/2510.04476.

    Args:
        self: the module.
        hidden_states: inputs [B, S, D].
        past_key_values: a cache with an order of tokens.
        conv_mask: tokens that the convolutions take for padding; not used, since padding comes last.
    """
    length = hidden_states.shape[1]
    query, key = self.q_proj(hidden_states), self.k_proj(hidden_states)
    delayed = functional.linear(hidden_states, self.v_proj_delayed.weight)
    width = self.conv_kernel_size
    num_queries, num_mixed = query.shape[2], query.shape[2] + key.shape[2]
    columns = past_key_values.update_conv_state(
        torch.cat([query, key, delayed], dim=-1).transpose(1, 2), self.layer_idx, conv_kernel_size=width
    )
    columns = functional.pad(columns, (width, 0))[..., -(width + length) :]
    mixed_BSX = self.conv_qk_grouped(self.conv_qk_depthwise(columns[:, :num_mixed])).transpose(1, 2)
    query_residual_BSHK, key_residual_BSGK = _residuals(self, query, key)
    before = columns[:, num_mixed:, width - 1 : -1].transpose(1, 2)
    if self.v_proj_delayed.bias is not None:
        before = before + self.v_proj_delayed.bias
    value = torch.cat([self.v_proj_current(hidden_states), before], dim=-1)
    return (
        _in_heads(mixed_BSX[..., :num_queries], head_dim=self.head_dim) + query_residual_BSHK,
        _in_heads(mixed_BSX[..., num_queries:], head_dim=self.head_dim) + key_residual_BSGK,
        _in_heads(value, head_dim=self.head_dim),
    )


def _residuals(module: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of each query and its key [B, S, H, K], and the mean of those of a key's queries [B, S, G, K]."""
    shared, head_dim = module.num_key_value_groups, module.head_dim
    keys_BSHK = _in_heads(key, head_dim=head_dim).repeat_interleave(shared, dim=2)
    means_BSHK = (_in_heads(query, head_dim=head_dim) + keys_BSHK) * 0.5
    by_key_BSGRK = means_BSHK.reshape(*means_BSHK.shape[:2], -1, shared, head_dim)
    return means_BSHK, by_key_BSGRK.mean(3)


def _in_heads(values_BSX: torch.Tensor, *, head_dim: int) -> torch.Tensor:
    return values_BSX.reshape(*values_BSX.shape[:2], -1, head_dim)
