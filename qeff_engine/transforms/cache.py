"""A cache that lives outside the model: what a layer keeps between calls comes in and goes out as tensors.

Keys and values have a fixed length C and are written at the positions of the tokens. States of convolutions and
recurrences have no length: they are the sum of what came before, so a row that begins at position 0 begins with zeros,
and padding leaves them as they are. For those states the real tokens of a row come first, its padding behind them.

Shape legend: B batch, H heads, S tokens of this call, C context length, D head dimension or channels, K kernel size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from qeff_engine.transforms.token_order import TokenOrder

SCATTER = "com.qualcomm.cloud::CtxScatter"

KEY, VALUE = "past_key", "past_value"
INDEX = "past_index"  # keys [B, 1, C, D] by which an indexer chooses the positions to attend to
CONV, RECURRENT = "conv_state", "recurrent_state"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerLayout:
    """What one layer keeps.

    Attributes:
        states: shape of each state by stem, such as ``past_key``, the batch first; sizes that vary are symbols. The
            name of a state is its stem and the number of the layer.
        is_sliding: the layer attends to a window; its cache has full length all the same.
        sliding_window: positions of the window, or None.
    """

    states: Mapping[str, tuple[int | str, ...]]
    is_sliding: bool = False
    sliding_window: int | None = None

    def names(self, number: int) -> list[str]:
        """The names of the states of layer ``number``."""
        return [f"{stem}.{number}" for stem in self.states]


def stem_of(kind: str, index: int, *, count: int) -> str:
    """The stem of one of the ``count`` states of a kind (:data:`CONV`, :data:`RECURRENT`) that a layer has."""
    return kind if count == 1 else f"{kind}_{index}"


def scatter(past_BHCD: torch.Tensor, slots_BS: torch.Tensor, new_BHSD: torch.Tensor) -> torch.Tensor:
    """``past`` with ``new`` written at the positions ``slots``; a negative slot writes nothing.

    One opaque node of the graph; :mod:`qeff_engine.onnx_graph.functions` says what it computes.
    """
    return torch.onnx.ops.symbolic(
        SCATTER, [past_BHCD, slots_BS, new_BHSD], {}, dtype=past_BHCD.dtype, shape=list(past_BHCD.shape), version=1
    )


class RetainedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """The cache of one layer.

    Attributes:
        unwritten: stems of the states that have no successor yet.
    """

    def __init__(self, *, order: TokenOrder, states: Mapping[str, torch.Tensor], layout: LayerLayout) -> None:
        super().__init__()
        self._order = order
        self._states = dict(states)
        self.keys, self.values = self._states.get(KEY), self._states.get(VALUE)
        self.is_sliding, self.sliding_window = layout.is_sliding, layout.sliding_window
        self.is_initialized = True
        self.unwritten = set(layout.states)

    def stems(self, kind: str) -> list[str]:
        """The stems of the states of a kind (:data:`CONV`, :data:`RECURRENT`)."""
        return [stem for stem in self._states if stem == kind or stem.startswith(f"{kind}_")]

    def successors(self) -> list[torch.Tensor]:
        """The states after this call, in the order of the layout."""
        return list(self._states.values())

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the buffers are there from the beginning."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens of this call and return keys and values of all positions."""
        self.keys = self._written(KEY, scatter(self._states[KEY], self._order.slots_BS, key_states))
        self.values = self._written(VALUE, scatter(self._states[VALUE], self._order.slots_BS, value_states))
        return self.keys, self.values

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write the index keys of this call [B, S, D] and return those of all positions [B, C, D]."""
        return self._written(INDEX, scatter(self._states[INDEX], self._order.slots_BS, indexer_key_states[:, None]))[
            :, 0
        ]

    @property
    def indexer_position_ids(self) -> torch.Tensor:
        """The positions [3, B, C] of the index keys along three axes; a model puts those of its call behind."""
        size_B, _, size_C, _ = self._states[INDEX].shape
        return torch.arange(size_C).expand(3, size_B, -1)

    @indexer_position_ids.setter
    def indexer_position_ids(self, positions: torch.Tensor) -> None:
        """Nothing to keep: where a key lies says its position."""

    def before(self, stem: str) -> torch.Tensor:
        """A state without length as this call finds it: zeros where a row begins at position 0."""
        state = self._states[stem]
        if stem not in self.unwritten:
            return state
        begins = self._order.begins_B.reshape(-1, *(1 for _ in state.shape[1:]))
        return torch.where(begins, torch.zeros((), dtype=state.dtype), state)

    def append_to_conv(self, stem: str, new_BDS: torch.Tensor) -> torch.Tensor:
        """The last K columns before this call and then its columns [B, D, K + S]; the state becomes the last real K."""
        before_BDK = self.before(stem)
        columns = torch.cat([before_BDK, new_BDS.to(before_BDK.dtype)], dim=-1)
        kernel = torch.arange(before_BDK.shape[2])
        last_BDK = (self._order.num_real_B[:, None] + kernel)[:, None].expand(-1, before_BDK.shape[1], -1)
        self._written(stem, torch.gather(columns, 2, last_BDK))
        return columns

    def replace(self, stem: str, new: torch.Tensor) -> torch.Tensor:
        """Make ``new`` the successor of a state."""
        return self._written(stem, new)

    def _written(self, stem: str, successor: torch.Tensor) -> torch.Tensor:
        self._states[stem] = successor
        self.unwritten.discard(stem)
        return successor

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All C positions, from the first."""
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Such that this call's tokens end at C: models that add the two then make masks of width C."""
        return self.get_max_length() - self._order.slots_BS.shape[1]

    def get_max_length(self) -> int:
        """C."""
        return int(self._states[KEY].shape[2])


class CacheLayers(list[Any]):
    """The caches of layers, which note by what numbers they are asked for.

    Attributes:
        used: those numbers.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        super().__init__(layers)
        self.used: list[int] = []

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, int):
            self.used.append(number)
        return super().__getitem__(number)


class RetainedCache(Cache):  # type: ignore[misc]
    """The caches of all layers, and the order of this call's tokens.

    Attributes:
        order: of the tokens.
        asked: the recurrent state that was asked for last, for recurrences that are not told the state they begin with.
        num_taken: how many parts of it were taken; see :meth:`take_asked`.
    """

    def __init__(self, layers: list[Any], *, order: TokenOrder, positions_BS: torch.Tensor, ctx_len: int) -> None:
        super().__init__(layers=CacheLayers(layers))
        self.order, self.positions, self.ctx_len = order, positions_BS, ctx_len
        self.asked: torch.Tensor | None = None
        self.num_taken = 0

    def take_asked(self, num_axes: int) -> torch.Tensor:
        """The state that was asked for last; one with an axis too many is taken part by part along axis 1."""
        assert self.asked is not None
        if self.asked.ndim == num_axes:
            return self.asked
        part = self.asked[:, self.num_taken]
        self.num_taken += 1
        return part

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Update one layer; see :meth:`RetainedLayer.update`."""
        keys, values = self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)
        return keys, values

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Update the index keys of one layer; see :meth:`RetainedLayer.update_indexer`."""
        keys_BCD: torch.Tensor = self.layers[layer_idx].update_indexer(indexer_key_states)
        return keys_BCD

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """The last columns that a convolution saw before this call [B, D, K]."""
        layer = self.layers[layer_idx]
        before_BDK: torch.Tensor = layer.before(layer.stems(CONV)[state_idx])
        return before_BDK

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Append the columns of this call; see :meth:`RetainedLayer.append_to_conv`."""
        layer = self.layers[layer_idx]
        columns: torch.Tensor = layer.append_to_conv(layer.stems(CONV)[state_idx], conv_states)
        return columns

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor:
        """The state of a recurrence before this call."""
        layer = self.layers[layer_idx]
        self.asked = layer.before(layer.stems(RECURRENT)[state_idx])
        self.num_taken = 0
        return self.asked

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Replace the state of a recurrence."""
        layer = self.layers[layer_idx]
        successor: torch.Tensor = layer.replace(layer.stems(RECURRENT)[state_idx], recurrent_states)
        return successor

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Always: a row that begins has a state of zeros."""
        return True

    def is_recording_past(self, layer_idx: int) -> bool:
        """Never: there is no way back."""
        return False

    def get_query_offset(self, layer_idx: int = 0) -> torch.Tensor:
        """The positions [B, S] in place of an offset: transformers passes them on to the mask function untouched."""
        return self.positions

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See :meth:`RetainedLayer.get_seq_length`."""
        return self.ctx_len - self.positions.shape[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """See :meth:`RetainedLayer.get_mask_sizes`."""
        return self.ctx_len, 0
