"""An encoder with its pooling as one module, as it is exported.

Shape legend: B batch, S tokens, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch

INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAME = "output"


class PooledEncoder(torch.nn.Module):
    """Token ids and attention mask [B, S] to last hidden states [B, S, H], or to one vector [B, H] for each text."""

    def __init__(self, model: Any, *, pooling: str) -> None:
        """Wrap a base model of transformers; ``pooling`` is empty, ``mean``, ``max`` or ``cls``."""
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The embeddings; padding has mask 0 and takes no part in pooling."""
        states_BSH = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pooled(states_BSH, attention_mask_BS=attention_mask, pooling=self.pooling)


def pooled(states_BSH: torch.Tensor, *, attention_mask_BS: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector for each text from the states of its tokens, or the states themselves without pooling."""
    mask_BS1 = attention_mask_BS[:, :, None]
    if pooling == "mean":
        weights_BS1 = mask_BS1.to(states_BSH.dtype)
        # A row of padding alone, which fills a batch, must not divide by zero.
        return (states_BSH * weights_BS1).sum(1) / weights_BS1.sum(1).clamp(min=1)
    if pooling == "max":
        lowest = torch.full((), torch.finfo(torch.float16).min, dtype=states_BSH.dtype)
        return torch.where(mask_BS1 == 1, states_BSH, lowest).amax(1)
    if pooling == "cls":
        return states_BSH[:, 0]
    return states_BSH
