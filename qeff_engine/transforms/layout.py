"""What each layer of a decoder keeps, found by running it once on shapes alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicIndexedLayer, DynamicLayer

from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import tracing
from qeff_engine.transforms import layer_calls
from qeff_engine.transforms.cache import LayerLayout
from qeff_engine.transforms.weightless import WeightlessModel

_NUM_TOKENS = 3


class _ProbeCache(DynamicCache):  # type: ignore[misc]
    """A type of its own: torch takes the original apart when it flattens arguments.

    It has as many layers as are used, since a config may count those of an encoder.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layer_class_to_replicate = DynamicLayer

    def drop_unused(self) -> None:
        """Drop layers at the end that nothing was written to."""
        while self.layers and type(self.layers[-1]) is DynamicLayer and self.layers[-1].keys is None:
            self.layers.pop()


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
    _refuse_other_states(cache.layers, name=type(model).__name__)
    with weightless.fake_mode:
        ids = torch.ones(1, _NUM_TOKENS, dtype=torch.long)

    def run() -> None:
        with weightless.fake_mode, tracing.untraceable_is_unsupported(type(model).__name__):
            model(input_ids=ids, past_key_values=cache, use_cache=True)

    try:
        layers = layer_calls.find_layers(model, layouts=cache.layers)
    except layer_calls.NoFit:
        run()
        cache.drop_unused()
        same_as = list(range(len(cache.layers)))
    else:
        kinds = [type(layer).__name__ for layer in cache.layers]
        same_as = layer_calls.record(run, layers=layers, hints=kinds).same_as
    _refuse_other_states(cache.layers, name=type(model).__name__)  # a model may have added some
    found = [_layout(layer) for layer in cache.layers]
    return [found[same_as[number]] if number < len(same_as) else item for number, item in enumerate(found)]


def _layout(layer: Any) -> LayerLayout | None:
    keys, values = layer.keys, layer.values
    if isinstance(layer, DummyLayer) or keys is None or values is None:
        return None
    return LayerLayout(
        key_heads=int(keys.shape[1]),
        key_dim=int(keys.shape[3]),
        value_heads=int(values.shape[1]),
        value_dim=int(values.shape[3]),
        is_sliding=bool(getattr(layer, "is_sliding", False)),
        sliding_window=getattr(layer, "sliding_window", None),
    )


def _refuse_other_states(layers: list[Any], *, name: str) -> None:
    for layer in layers:
        if not isinstance(layer, DynamicLayer | DummyLayer) or isinstance(layer, DynamicIndexedLayer):
            raise Unsupported(
                f"{name} keeps a state of the kind {type(layer).__name__}, expected keys and values alone.",
                advice="Decoders with recurrent, convolutional or indexer states cannot be exported yet.",
            )
