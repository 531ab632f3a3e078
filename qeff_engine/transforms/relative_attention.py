"""Attention with a learned bias by distance, with positions of its own for each row of the batch.

Shape legend: B batch, H heads, S tokens of this call, C context length, K head dimension, E distances that have a bias.
"""

from __future__ import annotations

from typing import Any

import torch


def forward(
    self: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    conv_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The forward of an attention whose keys and values go through short convolutions.

    Args:
        self: the module.
        hidden_states: inputs [B, S, D].
        attention_mask: added to the scores [B, 1, S, C].
        conv_mask: tokens that the convolutions take for padding.
        past_key_values: a cache with an order of tokens.
        **kwargs: how the original would compute it.
    """
    batch, length, _ = hidden_states.shape
    split = (batch, length, -1, self.head_dim)
    states = {"past_key_values": past_key_values, "conv_mask": conv_mask}
    query_BHSK = self.q_norm(self.q_proj(hidden_states).view(split)).transpose(1, 2)
    key = self.k_norm(self.k_sconv(self.k_proj(hidden_states), **states).view(split)).transpose(1, 2)
    value = self.v_sconv(self.v_proj(hidden_states), **states).view(split).transpose(1, 2)
    key, value = past_key_values.update(key, value, self.layer_idx)
    positions_BS = past_key_values.order.slots_BS.long()
    relative_BSHR = self.r_proj(hidden_states).view(batch, length, self.num_heads, -1)
    bias_BHSC = _by_distance(
        (relative_BSHR @ self.rel_logits_proj.proj).transpose(1, 2), positions_BS=positions_BS, ctx_len=key.shape[2]
    )
    if not self.is_sliding and self.config.log_scaling_n_floor is not None:
        seen_BS = (positions_BS + 1).float() / self.config.log_scaling_n_floor
        tau = 1.0 + self.config.log_scaling_alpha * torch.log(seen_BS.clamp(min=1.0))[:, None, :, None]
        query_BHSK, bias_BHSC = query_BHSK * tau, bias_BHSC * tau
    key, value = (item.repeat_interleave(self.num_key_value_groups, dim=1) for item in (key, value))
    scores_BHSC = query_BHSK @ key.transpose(2, 3) * self.scaling + bias_BHSC + attention_mask
    mixed_BSHK = (torch.softmax(scores_BHSC, dim=-1) @ value).transpose(1, 2)
    return self.o_proj(mixed_BSHK.reshape(batch, length, -1)), None


def relative_logits(
    self: Any, relative_states: torch.Tensor, query_positions: torch.Tensor, key_positions: torch.Tensor
) -> torch.Tensor:
    """The bias [B, H, S, C] of an attention that numbers the tokens of a call and adds where the call begins.

    Args:
        self: the module.
        relative_states: what is asked of the distances [B, S, H, R].
        query_positions: positions [B, S] with 0 to S - 1 added to them: asked where the call begins, the cache says
            the position of each token.
        key_positions: 0 to C - 1.
    """
    length = relative_states.shape[1]
    bias_BHSE = (relative_states @ self.proj).transpose(1, 2)
    # While states are looked for, there is one row.
    positions_BS = (query_positions - torch.arange(length)).reshape(-1, length)
    return _by_distance(bias_BHSE, positions_BS=positions_BS, ctx_len=key_positions.shape[0])


def _by_distance(bias_BHSE: torch.Tensor, *, positions_BS: torch.Tensor, ctx_len: int) -> torch.Tensor:
    """The bias [B, H, S, C] of each key: that of its distance, and 0 where it has none."""
    extent = bias_BHSE.shape[3]
    distance = (positions_BS[:, :, None] - torch.arange(ctx_len))[:, None]
    index = distance.clamp(0, extent - 1).expand(-1, bias_BHSE.shape[1], -1, -1)
    has_bias = (distance >= 0) & (distance < extent)
    return torch.where(has_bias, torch.gather(bias_BHSE, 3, index), torch.zeros(()))
