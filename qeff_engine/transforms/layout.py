"""What each layer of a decoder keeps, found by running it once on shapes alone."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import cache_utils
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import tracing
from qeff_engine.transforms import layer_calls
from qeff_engine.transforms.cache import CONV, INDEX, KEY, RECURRENT, VALUE, CacheLayers, LayerLayout, stem_of
from qeff_engine.transforms.layer_calls import Site
from qeff_engine.transforms.layer_numbers import NoFit
from qeff_engine.transforms.token_order import TokenOrder
from qeff_engine.transforms.weightless import WeightlessModel

_CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state")
_NUM_TOKENS = 3


class _ProbeCache(DynamicCache):  # type: ignore[misc]
    """A type of its own: torch takes the original apart when it flattens arguments.

    It has as many layers as are used, since a config may count those of an encoder.
    """

    layers: CacheLayers

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = CacheLayers(self.layers)
        self.layer_class_to_replicate = DynamicLayer

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Any:
        """See the original."""
        return super().get_conv_state(self._with_room(layer_idx, state_idx), state_idx)

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
        """See the original."""
        return super().update_conv_state(conv_states, self._with_room(layer_idx, state_idx), state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Any:
        """See the original."""
        return super().get_recurrent_state(self._with_room(layer_idx, state_idx), state_idx)

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Any:
        """See the original."""
        number = self._with_room(layer_idx, state_idx)
        return super().update_recurrent_state(recurrent_states, number, state_idx, **kwargs)

    def _with_room(self, number: int, state_idx: int) -> int:
        """Let a layer of which the config says nothing keep so many states; returns its number."""
        layer = self.layers[number]
        if type(layer) is DynamicLayer and layer.keys is None:
            layer = self.layers[number] = LinearAttentionLayer()
        if isinstance(layer, LinearAttentionLayer) and state_idx >= layer.number_of_states:
            for name, value in vars(LinearAttentionLayer(number_of_states=state_idx + 1)).items():
                if isinstance(value, dict):
                    setattr(layer, name, value | getattr(layer, name))
            layer.number_of_states = state_idx + 1
        return number

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """See the original, which compares the number."""
        while len(self.layers) <= int(layer_idx):
            self.layers.append(self.layer_class_to_replicate())
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def drop_unused(self, *, but: Collection[int] = ()) -> None:
        """Drop layers at the end that nothing was written to, ``but`` those of these numbers."""
        while self.layers and type(self.layers[-1]) is DynamicLayer and self.layers[-1].keys is None:
            if len(self.layers) - 1 in but:
                break
            self.layers.pop()


def cache_argument(model: Any) -> str:
    """The argument of a model's forward that takes the cache.

    Raises:
        Unsupported: there is none.
    """
    parameters = inspect.signature(model.forward).parameters
    found = [name for name in _CACHE_ARGUMENTS if name in parameters]
    if not found:
        raise Unsupported(
            f"{type(model).__name__} takes no cache ({', '.join(_CACHE_ARGUMENTS)}).",
            advice="Decoders that keep nothing between calls, or in a form of their own, cannot be exported yet.",
        )
    return found[0]


def discover(weightless: WeightlessModel) -> list[LayerLayout | None]:
    """The layout of each layer; None for one that keeps nothing.

    Raises:
        Unsupported: the decoder takes no cache, or keeps something else than keys, values and states of convolutions
            and recurrences.
    """
    name = type(weightless.module).__name__
    argument = cache_argument(weightless.module)
    cache = _probe(weightless)
    _refuse_other_states(cache.layers, name=name)
    try:
        sites = _recorded(weightless, {argument: cache})
    except (NoFit, Unsupported):
        cache, sites = _probe(weightless), []
        _run(weightless, {argument: cache})
        cache.drop_unused()
    _refuse_other_states(cache.layers, name=name)  # a model may have added some
    found = dict(enumerate(map(_layout, cache.layers)))
    for site in sites:
        found.update(zip(site.caches, map(found.get, sites[site.same_as].caches), strict=True))
    return [found.get(number) for number in range(max(found, default=-1) + 1)]


def _probe(weightless: WeightlessModel) -> _ProbeCache:
    model = weightless.module
    with tracing.untraceable_is_unsupported(type(model).__name__):
        cache = _ProbeCache(config=model.config)
    with weightless.fake_mode:
        cache.order = TokenOrder(torch.arange(_NUM_TOKENS, dtype=torch.int32)[None])
    return cache


def _run(weightless: WeightlessModel, argument: Mapping[str, _ProbeCache]) -> None:
    model = weightless.module
    with weightless.fake_mode, tracing.untraceable_is_unsupported(type(model).__name__):
        ids = torch.ones(1, _NUM_TOKENS, dtype=torch.long)
        model(input_ids=ids, use_cache=True, **argument)


def _recorded(weightless: WeightlessModel, argument: Mapping[str, _ProbeCache]) -> list[Site]:
    """The calls of layers in a run with a cache by the name of its argument; those that are alike do not use it."""
    (cache,) = argument.values()
    num_caches = len(cache.layers)
    layers = layer_calls.find_layers(weightless.module, num_caches=num_caches)
    if len(layers) == num_caches:
        _remind_of_numbers(layers.values())
    kinds = dict(enumerate(map(type, cache.layers)))
    sites = layer_calls.record(
        lambda: _run(weightless, argument),
        layers=layers,
        kept=lambda number: kinds.get(number, cache.layer_class_to_replicate),
    )
    if len(layers) != num_caches:
        cache.drop_unused(but={number for site in sites for number in site.caches})
    return sites


def _remind_of_numbers(layers: Iterable[nn.Module]) -> None:
    """Number the parts of layers that were told their layer's number and forgot it."""
    part: Any
    for number, layer in enumerate(layers):
        for part in layer.modules():
            if "layer_idx" in inspect.signature(type(part).__init__).parameters and not hasattr(part, "layer_idx"):
                part.layer_idx = number


def _layout(layer: Any) -> LayerLayout | None:
    states: dict[str, tuple[int | str, ...]] = {}
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is not None and values is not None:
        for stem, tensor in ((KEY, keys), (VALUE, values)):
            states[stem] = ("batch_size", int(tensor.shape[1]), "ctx_len", int(tensor.shape[3]))
    index_keys = getattr(layer, "indexer_keys", None)
    if index_keys is not None:
        states[INDEX] = ("batch_size", 1, "ctx_len", int(index_keys.shape[2]))
    for kind, tensors in (
        (CONV, getattr(layer, "conv_states", {})),
        (RECURRENT, getattr(layer, "recurrent_states", {})),
    ):
        for index, tensor in tensors.items():
            if tensor is not None:
                states[stem_of(kind, index, count=len(tensors))] = ("batch_size", *map(int, tensor.shape[1:]))
    if not states:
        return None
    return LayerLayout(
        states=states,
        is_sliding=bool(getattr(layer, "is_sliding", False)),
        sliding_window=getattr(layer, "sliding_window", None),
    )


def _refuse_other_states(layers: list[Any], *, name: str) -> None:
    known = (DynamicLayer, DummyLayer, LinearAttentionCacheLayerMixin)
    for layer in layers:
        # A kind that a model has for itself keeps more than the common one that it is made from.
        if not isinstance(layer, known) or type(layer).__module__ != cache_utils.__name__:
            raise Unsupported(
                f"{name} keeps a state of the kind {type(layer).__name__}, expected keys and values, keys of an "
                "indexer, or states of convolutions and recurrences.",
                advice="Decoders with other states cannot be exported yet.",
            )
