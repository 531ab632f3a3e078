"""How a model calls its decoder layers, and which of the calls are the same code.

A call may use any number of caches, a layer may be called several times with other caches, and layers may pass tensors
to later ones in a mapping that all of them get.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache

from qeff_engine import patching
from qeff_engine.transforms import layer_numbers
from qeff_engine.transforms.layer_numbers import LayerNumber, NoFit, NumberUsed, Place, Sum
from qeff_engine.transforms.shared_entries import SharedEntries, entry
from qeff_engine.transforms.weightless import is_fake

PLAIN_TYPES = (int, float, str, bool, type(None), torch.dtype)
_NOT_COMPARED = (*layer_numbers.NAMES, "training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """How the model called a layer that really ran.

    Attributes:
        leaves: arguments, flattened; caches and mappings are left whole.
        spec: how they were nested.
        entries: values by key that the layer read from a mapping among the arguments, by its place there.
        results: what the layer returned.
        written: values by key that the layer wrote into a mapping among the arguments, by its place there.
        told: the numbers that it was told.
        sums: how the layer came to the numbers of the caches that it used.
        followed: places of numbers that it did nothing else with.
    """

    leaves: list[Any]
    spec: Any
    entries: dict[int, dict[Any, Any]]
    results: Any
    written: dict[int, dict[Any, Any]]
    told: dict[Place, int]
    sums: list[Sum]
    followed: frozenset[Place]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments, and then those that were read from mappings."""
        return passed_tensors(self.leaves, self.entries)

    @property
    def outputs(self) -> list[Any]:
        """Results, and then what was written into mappings, flattened."""
        return pytree.tree_leaves((self.results, self.written))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One of the calls of layers in a run of a model.

    Attributes:
        path: name of the layer in the model.
        layer: the layer.
        caches: numbers of the caches that it uses.
        same_as: number of the site whose call really ran and is the same code.
        call: how it was called, for one that really ran.
    """

    path: str
    layer: nn.Module
    caches: tuple[int, ...]
    same_as: int
    call: Call | None


def find_layers(model: nn.Module, *, num_caches: int) -> dict[str, nn.Module]:
    """The decoder layers by name: those of a list with one for each cache, or else of the lists that know numbers.

    Raises:
        NoFit: there are none.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = {name: module for name, module in lists.items() if len(module) == num_caches}
    if found:
        name = max(found, key=lambda item: sum(parameter.numel() for parameter in found[item].parameters()))
        return _numbered(name, found[name])
    layers: dict[str, nn.Module] = {}
    for name, module in lists.items():
        is_inside = any(name.startswith(f"{other}.") for other in layers)
        if not is_inside and len(module) and all(layer_numbers.of_attributes(layer) for layer in module):
            layers.update(_numbered(name, module))
    if not layers:
        raise NoFit(f"no list of {num_caches} layers, and none whose layers know numbers of caches")
    return layers


def _numbered(name: str, layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {f"{name}.{number}": layer for number, layer in enumerate(layers)}


def record(
    run: Callable[[], Any], *, layers: Mapping[str, nn.Module], kept: Callable[[int], Any] = lambda number: None
) -> list[Site]:
    """Run a model and write down how it calls its layers; a call that is like an earlier one does not really run.

    Args:
        run: runs the model.
        layers: its layers, by name.
        kept: says of the number of a cache what must be equal for calls to be alike that use it.

    Raises:
        NoFit: the layers are called in a way that cannot be followed.
    """
    recorder = _Recorder(kept)
    with patching.attributes([(layer, "forward", recorder.watched(path, layer)) for path, layer in layers.items()]):
        run()
    return recorder.sites


class _Recorder:
    def __init__(self, kept: Callable[[int], Any]) -> None:
        self.sites: list[Site] = []
        self._kept = kept
        self._alike: dict[Hashable, list[int]] = {}

    def watched(self, path: str, layer: nn.Module) -> Callable[..., Any]:
        """What a layer does in the place of its forward."""
        original, signature = layer.forward, _signature(layer)

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = flatten(args, kwargs)
            told = _told(layer, leaves)
            key = (signature, tuple(_described(leaf) for leaf in leaves), str(spec))
            earlier = self._alike.setdefault(key, [])
            found = next((number for number in earlier if self._is_like(number, told=told, leaves=leaves)), None)
            number = len(self.sites)
            call = None
            if found is None:
                named = _named_numbers(original, args, kwargs)
                call = _really_called(original, layer=layer, leaves=leaves, spec=spec, named=named)
                earlier.append(number)
            known = call or self._call(found)
            caches = tuple(item.value(told) for item in known.sums)
            self.sites.append(
                Site(path=path, layer=layer, caches=caches, same_as=number if found is None else found, call=call)
            )
            for place, values in known.written.items():
                leaves[place].update(values)
            return pytree.tree_map(lambda leaf: leaf, known.results)

        return forward

    def _call(self, number: int | None) -> Call:
        call = self.sites[number].call if number is not None else None
        assert call is not None
        return call

    def _is_like(self, number: int, *, told: Mapping[Place, int], leaves: Sequence[Any]) -> bool:
        """Whether a call of the same key, told these numbers, is the same code as an earlier one."""
        site, call = self.sites[number], self._call(number)
        if told.keys() != call.told.keys() or any(
            told[place] != call.told[place] for place in told.keys() - call.followed
        ):
            return False
        caches = [item.value(told) for item in call.sums]
        pairs = set(zip(caches, site.caches, strict=True))
        if len(pairs) != len(set(caches)) or len(pairs) != len(set(site.caches)):
            return False
        return all(self._kept(one) == self._kept(other) for one, other in pairs) and all(
            _entry_key(entry(leaves[place], key)) == _entry_key(value)
            for place, values in call.entries.items()
            for key, value in values.items()
        )


def _really_called(
    original: Callable[..., Any], *, layer: nn.Module, leaves: list[Any], spec: Any, named: set[int]
) -> Call:
    """Call a layer with numbers that are followed; those that it computes with are given to it as they are."""
    plain: set[Place] = set()
    told = _told(layer, leaves)
    caches = [leaf for leaf in leaves if isinstance(leaf, Cache)]
    before = [[copy.copy(layer) for layer in cache.layers] for cache in caches]
    while True:
        given = [SharedEntries(leaf) if isinstance(leaf, MutableMapping) else leaf for leaf in leaves]
        for place in _numbers_among(leaves).keys() - plain:
            given[place] = LayerNumber(leaves[place], places=(place,))
        for cache in caches:
            cache.layers.used.clear()
        args, kwargs = pytree.tree_unflatten(given, spec)
        try:
            with layer_numbers.followed(layer, places=told.keys() - plain), layer_numbers.WatchedOperators():
                results = original(*args, **kwargs)
            break
        except NumberUsed as error:
            if error.places <= plain:
                raise
            plain |= error.places
            for cache, kept in zip(caches, before, strict=True):
                cache.layers[:] = map(copy.copy, kept)
    mappings = {place: item for place, item in enumerate(given) if isinstance(item, SharedEntries)}
    sums = [Sum(number, told=told) for cache in caches for number in cache.layers.used]
    # Nobody knows what a number is for that finds no cache, unless its name says so.
    known = named | {place for item in sums for place in item.places}
    followed = {place for place in told if place not in plain and (isinstance(place, str) or place in known)}
    return Call(
        leaves=leaves,
        spec=spec,
        entries={place: item.read for place, item in mappings.items() if item.read},
        results=results,
        told=told,
        written={place: item.written for place, item in mappings.items() if item.written},
        sums=sums,
        followed=frozenset(followed),
    )


def _signature(layer: nn.Module) -> Hashable:
    """Everything that makes a layer compute what it computes, but for the values of its weights."""
    parts = []
    for name, module in layer.named_modules():
        plain = [
            (key, _frozen(value))
            for key, value in sorted(vars(module).items())
            if not key.startswith("_") and key not in _NOT_COMPARED
        ]
        weights = [(key, tuple(value.shape), str(value.dtype)) for key, value in module.named_parameters(recurse=False)]
        buffers = [(key, _buffer_key(value)) for key, value in module.named_buffers(recurse=False)]
        parts.append((name, type(module), tuple(plain), tuple(weights), tuple(buffers)))
    return tuple(parts)


def _frozen(value: Any) -> Any:
    if isinstance(value, PLAIN_TYPES):
        return (type(value), value)
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((str(key), _frozen(item)) for key, item in value.items())
    if isinstance(value, torch.Tensor):
        return _buffer_key(value)
    return type(value)


def _buffer_key(tensor: torch.Tensor) -> Hashable:
    """Shape of a weight, content of a constant."""
    shape = (tuple(tensor.shape), str(tensor.dtype))
    if is_fake(tensor):
        return shape
    return (*shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _described(leaf: Any) -> Any:
    """What must be equal of an argument for calls to be alike, before it is known what they do with it."""
    if type(leaf) is int or isinstance(leaf, MutableMapping):
        return type(leaf)
    return _read_key(leaf)


def _entry_key(value: Any) -> Hashable:
    leaves, spec = pytree.tree_flatten(value)
    return tuple(_read_key(leaf) for leaf in leaves), str(spec)


def _read_key(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), str(leaf.dtype)
    return "cache" if isinstance(leaf, Cache) else _frozen(leaf)


def _told(layer: nn.Module, leaves: Sequence[Any]) -> dict[Place, int]:
    """The numbers that a layer has, and those among the arguments of a call."""
    among: dict[Place, int] = dict(_numbers_among(leaves).items())
    return {**layer_numbers.of_attributes(layer), **among}


def _named_numbers(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """The places of the numbers among the arguments of a call that are called like those of layers."""
    mark = object()
    names = itertools.chain(inspect.signature(forward).parameters, itertools.repeat(""))
    marked = [mark if name in layer_numbers.NAMES else item for name, item in zip(names, args, strict=False)]
    leaves, _ = flatten(
        tuple(marked), {name: mark if name in layer_numbers.NAMES else item for name, item in kwargs.items()}
    )
    return {place for place, leaf in enumerate(leaves) if leaf is mark}


def _numbers_among(leaves: Sequence[Any]) -> dict[int, int]:
    """The numbers among the arguments of a call."""
    return {place: leaf for place, leaf in enumerate(leaves) if type(leaf) is int}


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The arguments of a call, flattened, and how they were nested; mappings are left whole."""
    return pytree.tree_flatten(
        (args, kwargs), is_leaf=lambda item: isinstance(item, MutableMapping) and item is not kwargs
    )


def passed_tensors(leaves: Sequence[Any], entries: Any) -> list[torch.Tensor]:
    """The tensors among flattened arguments, mappings apart, and then those among the entries of mappings."""
    return [*(leaf for leaf in leaves if isinstance(leaf, torch.Tensor)), *tensors_of(entries)]


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested containers."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
