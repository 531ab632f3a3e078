"""Llama 4 with positions in real numbers, and its scale of long contexts by the positions of the tokens.

The model rotates by complex numbers, which no graph has, and counts positions from the length of the cache.

Shape legend: B batch, S tokens, H heads, D head dimension, P pairs of it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.llama4 import modeling_llama4

from qeff_engine import patching

_attend = modeling_llama4.Llama4TextAttention.forward


def frequencies(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Cosines and sines [B, S, P, 2]."""
    angles_BSP = position_ids[..., None].float() * self.inv_freq.float()
    rotations_BSP2: torch.Tensor = torch.stack([torch.cos(angles_BSP), torch.sin(angles_BSP)], dim=-1)
    return rotations_BSP2 * float(self.attention_scaling)


def rotate(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, S, H, D], each pair of neighbours rotated by :func:`frequencies`."""
    return _rotated(xq, freqs_cis), _rotated(xk, freqs_cis)


def _rotated(x_BSHD: torch.Tensor, frequencies_BSP2: torch.Tensor) -> torch.Tensor:
    cos, sin = frequencies_BSP2[:, :, None].unbind(-1)
    real, imaginary = x_BSHD.float().reshape(*x_BSHD.shape[:-1], -1, 2).unbind(-1)
    pairs = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return pairs.flatten(3).type_as(x_BSHD)


def attend(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: torch.Tensor,
    attention_mask: torch.Tensor,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """The model's own attention, with queries that are scaled by their positions beforehand where it would do so.

    Layers that scale see everything before, so that the mask allows as many positions as the token's number.
    """
    changes: list[tuple[Any, str, Any]] = []
    if self.attn_temperature_tuning and not self.use_rope:
        number_BS1 = (attention_mask[:, 0] == 0).sum(-1, keepdim=True)
        scale_BS1 = torch.log1p(torch.floor(number_BS1.float() / self.floor_scale)) * self.attn_scale + 1.0
        project = self.q_proj.forward
        changes = [
            (self, "attn_temperature_tuning", False),
            (self.q_proj, "forward", lambda inputs: project(inputs) * scale_BS1),
        ]
    with patching.attributes(changes):
        return _attend(self, hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
