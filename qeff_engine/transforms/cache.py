"""A KV cache of fixed length that lives outside the model: keys and values come in and go out as tensors.

Shape legend: B batch, H heads, S tokens of this call, C context length, D head dimension.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SCATTER = "com.qualcomm.cloud::CtxScatter"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerLayout:
    """What one layer keeps.

    Attributes:
        key_heads: heads of the keys.
        key_dim: head dimension of the keys.
        value_heads: heads of the values.
        value_dim: head dimension of the values, which may differ from the keys'.
        is_sliding: the layer attends to a window; its cache has full length all the same.
        sliding_window: positions of the window, or None.
    """

    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    is_sliding: bool
    sliding_window: int | None


def scatter(past_BHCD: torch.Tensor, slots_BS: torch.Tensor, new_BHSD: torch.Tensor) -> torch.Tensor:
    """``past`` with ``new`` written at the positions ``slots``; a negative slot writes nothing.

    One opaque node of the graph; :mod:`qeff_engine.onnx_graph.functions` says what it computes.
    """
    return torch.onnx.ops.symbolic(
        SCATTER, [past_BHCD, slots_BS, new_BHSD], {}, dtype=past_BHCD.dtype, shape=list(past_BHCD.shape), version=1
    )


class RetainedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """The cache of one layer: :meth:`update` scatters at the positions of the tokens and returns all C positions."""

    def __init__(
        self, *, slots_BS: torch.Tensor, key_BHCD: torch.Tensor, value_BHCD: torch.Tensor, layout: LayerLayout
    ) -> None:
        super().__init__()
        self.slots, self.keys, self.values = slots_BS, key_BHCD, value_BHCD
        self.is_sliding, self.sliding_window = layout.is_sliding, layout.sliding_window
        self.is_initialized = True
        self.updated = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the buffers are there from the beginning."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens of this call and return keys and values of all positions."""
        self.keys = scatter(self.keys, self.slots, key_states)
        self.values = scatter(self.values, self.slots, value_states)
        self.updated = True
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All C positions, from the first."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Such that this call's tokens end at C: models that add the two then make masks of width C."""
        return self.keys.shape[2] - self.slots.shape[1]

    def get_max_length(self) -> int:
        """C."""
        return self.keys.shape[2]


class RetainedCache(Cache):  # type: ignore[misc]
    """The caches of all layers, and the positions of this call's tokens for the masks."""

    def __init__(self, layers: list[Any], *, positions_BS: torch.Tensor, ctx_len: int) -> None:
        super().__init__(layers=layers)
        self.positions, self.ctx_len = positions_BS, ctx_len

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update one layer; see :meth:`RetainedLayer.update`."""
        keys, values = self.layers[int(layer_idx)].update(key_states, value_states, *args, **kwargs)
        return keys, values

    def get_query_offset(self, layer_idx: int = 0) -> torch.Tensor:
        """The positions [B, S] in place of an offset: transformers passes them on to the mask function untouched."""
        return self.positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See :meth:`RetainedLayer.get_seq_length`."""
        return self.ctx_len - self.positions.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """See :meth:`RetainedLayer.get_mask_sizes`."""
        return self.ctx_len, 0
