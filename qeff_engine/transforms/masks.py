"""Attention masks from the positions of the tokens, by the model's own rule (causal, window, chunk)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import masking_utils


def position_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> torch.Tensor:
    """The additive mask [batch, 1, q_length, kv_length]: 0 where attention is allowed.

    The signature is that of ``transformers.masking_utils.AttentionMaskInterface``. ``q_offset`` may be the positions
    [batch, q_length] of the queries.
    """
    if isinstance(q_offset, torch.Tensor) and q_offset.ndim == 2:
        queries = q_offset[:, None, :, None]
    else:
        queries = (torch.arange(q_length) + q_offset)[None, None, :, None]
    keys = (torch.arange(kv_length) + kv_offset)[None, None, None, :]
    rows = torch.arange(batch_size)[:, None, None, None]
    heads = torch.zeros(1, dtype=torch.long)[:, None, None, None]
    allowed = mask_function(rows, heads, queries, keys).expand(batch_size, 1, q_length, kv_length)
    if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[-1] == kv_length:
        allowed = allowed & attention_mask.bool()[:, None, None, :]
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(allowed, torch.zeros((), dtype=dtype), lowest)


@contextlib.contextmanager
def from_positions() -> Iterator[None]:
    """Let models with eager attention make their masks with :func:`position_mask`, for the time of a block."""
    mapping = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    saved = dict(mapping)
    mapping["eager"] = position_mask
    try:
        yield
    finally:
        mapping.clear()
        mapping.update(saved)
