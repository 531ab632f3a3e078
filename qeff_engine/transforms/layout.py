"""What each layer of a decoder keeps, found by running it once on shapes alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DummyLayer, DynamicCache

from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import tracing
from qeff_engine.transforms import layer_calls
from qeff_engine.transforms.cache import LayerLayout
from qeff_engine.transforms.weightless import WeightlessModel

_NUM_TOKENS = 3


class _ProbeCache(DynamicCache):  # type: ignore[misc]
    """A type of its own: torch takes the original apart when it flattens arguments."""


def discover(weightless: WeightlessModel) -> list[LayerLayout | None]:
    """The layout of each layer; None for one that keeps nothing because it uses another layer's keys and values.

    Raises:
        Unsupported: the decoder takes no cache, or keeps something else than keys and values.
    """
    model = weightless.module
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise Unsupported(
            f"{type(model).__name__} takes no KV cache (past_key_values).",
            advice="Decoders that keep no keys and values cannot be exported yet.",
        )
    cache = _ProbeCache(config=model.config)
    with weightless.fake_mode:
        ids = torch.ones(1, _NUM_TOKENS, dtype=torch.long)

    def run() -> None:
        with weightless.fake_mode, tracing.untraceable_is_unsupported(type(model).__name__):
            model(input_ids=ids, past_key_values=cache, use_cache=True)

    try:
        layers = layer_calls.find_layers(model, layouts=cache.layers)
    except layer_calls.NoFit:
        run()
        same_as = list(range(len(cache.layers)))
    else:
        kinds = [type(layer).__name__ for layer in cache.layers]
        same_as = layer_calls.record(run, layers=layers, hints=kinds).same_as
    found = [_layout(layer, model=model) for layer in cache.layers]
    return [found[same_as[number]] if number < len(same_as) else item for number, item in enumerate(found)]


def _layout(layer: Any, *, model: Any) -> LayerLayout | None:
    if isinstance(layer, DummyLayer):
        return None
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    states = {"conv_states", "recurrent_states", "indexer_keys"} & set(vars(layer))
    if any(getattr(layer, name) for name in states if not isinstance(getattr(layer, name), torch.Tensor)):
        raise _unsupported(layer, model=model)
    if not isinstance(keys, torch.Tensor) or keys.ndim != 4 or not isinstance(values, torch.Tensor):
        if states:
            raise _unsupported(layer, model=model)
        return None
    if isinstance(getattr(layer, "indexer_keys", None), torch.Tensor):
        raise _unsupported(layer, model=model)
    return LayerLayout(
        key_heads=int(keys.shape[1]),
        key_dim=int(keys.shape[3]),
        value_heads=int(values.shape[1]),
        value_dim=int(values.shape[3]),
        is_sliding=bool(getattr(layer, "is_sliding", False)),
        sliding_window=getattr(layer, "sliding_window", None),
    )


def _unsupported(layer: Any, *, model: Any) -> Unsupported:
    return Unsupported(
        f"{type(model).__name__} keeps a state of the kind {type(layer).__name__}, expected keys and values alone.",
        advice="Decoders with recurrent or convolutional states cannot be exported yet.",
    )
