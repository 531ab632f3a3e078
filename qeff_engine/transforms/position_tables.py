"""Attention of models that look their positions up in tables by lengths, by the positions of the tokens instead.

Shape legend: B batch, H heads, S tokens of a call, C context length, D head dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.models.roformer import modeling_roformer

_rotate = modeling_roformer.RoFormerSelfAttention.apply_rotary_position_embeddings


def gpt_neo(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B, H, S, D] and weights [B, H, S, C]; the window follows from how many positions the mask allows.

    The scores are not scaled, and local layers see the last ``window_size`` positions.
    """
    scores_BHSC = query.float() @ key.float().transpose(-1, -2) + attention_mask
    if self.attention_type == "local":
        position_B1S1 = (attention_mask == 0).sum(-1, keepdim=True) - 1
        is_near = torch.arange(key.shape[2]) > position_B1S1 - self.config.window_size
        scores_BHSC = torch.where(is_near, scores_BHSC, torch.finfo(scores_BHSC.dtype).min)
    weights_BHSC = torch.softmax(scores_BHSC, dim=-1).to(value.dtype)
    return weights_BHSC @ value, weights_BHSC


def roformer(
    self: Any,
    sinusoidal_pos: torch.Tensor,
    query_layer: torch.Tensor,
    key_layer: torch.Tensor,
    value_layer: torch.Tensor | None = None,
) -> Any:
    """The model's own rotation, by a table [1, 1, S, D], or [1, 1, B, S, D] with one for each sequence."""
    if sinusoidal_pos.ndim == 5:
        sinusoidal_pos = sinusoidal_pos[0, 0][:, None]
    return _rotate(sinusoidal_pos, query_layer, key_layer, value_layer)


def falcon_alibi(attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
    """Biases [B * H, 1, C] by position, in float32 that is rounded where the model computes in bfloat16."""
    positions_BC = (attention_mask.cumsum(-1) - 1) * attention_mask
    slopes_H1 = torch.tensor(_slopes(num_heads))[:, None]
    biases_BHC = _rounded(_rounded(slopes_H1) * _rounded(positions_BC.float())[:, None])
    return biases_BHC.reshape(attention_mask.shape[0] * num_heads, 1, attention_mask.shape[1]).to(dtype)


def _slopes(num_heads: int) -> list[float]:
    """A geometric series for the largest power of two of heads; the rest takes every other one of the next series."""
    power = 2 ** int(math.log2(num_heads))
    found = [2.0 ** (-8.0 * number / power) for number in range(1, power + 1)]
    return found + [2.0 ** (-4.0 * number / power) for number in range(1, 2 * (num_heads - power) + 1, 2)]


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).to(torch.float32)
