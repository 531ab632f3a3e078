"""How a model calls its decoder layers, and which of them are the same code."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache

from qeff_engine import patching
from qeff_engine.transforms.cache import LayerLayout
from qeff_engine.transforms.weightless import fake_weights, is_fake

_PLAIN_TYPES = (int, float, str, bool, type(None), torch.dtype)
_NUMBER = "layer_idx"
NUMBERS = (_NUMBER, "layer_id")  # attributes that have the number of a layer
_NOT_COMPARED = (*NUMBERS, "training")


class NoFit(Exception):
    """The layers of a model cannot be calls of functions; the message says why."""


class NumberUsed(NoFit):
    """A layer computes with its own number."""


class LayerNumber(int):
    """The number of a layer, to find its cache with; anything else that is done with it makes layers differ by it."""

    def _refused(self, *_: Any) -> Any:
        raise NumberUsed("a layer computes with its own number")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = _refused
    __truediv__ = __rtruediv__ = __float__ = __pow__ = __hash__ = _refused
    __lt__ = __le__ = __gt__ = __ge__ = _refused


class OwnNumber:
    """Stands among the arguments of a call for the number of the layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """How the model called a layer.

    Attributes:
        leaves: arguments, flattened.
        spec: how they were nested.
        outputs: results, flattened.
        output_spec: how they were nested.
    """

    leaves: list[Any]
    spec: Any
    outputs: list[Any]
    output_spec: Any

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the arguments."""
        return [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One run of a model.

    Attributes:
        calls: by number of the layer that really ran.
        same_as: for each layer, the number of the one that ran in its place.
    """

    calls: dict[int, Call]
    same_as: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """Layers that are the same code.

    Attributes:
        name: of the function.
        number: of the layer that stands for them.
        layer: that layer.
        layout: what each of them keeps; None for nothing.
        call: how the layer was called.
        dynamic: for each tensor argument, the axes whose sizes vary.
        output_shapes: for each tensor result, each size as a number, or as (tensor argument, axis) that it equals.
        weights: names of the weights in the layer, in the order of the function's inputs.
    """

    name: str
    number: int
    layer: nn.Module
    layout: LayerLayout | None
    call: Call
    dynamic: list[list[int]]
    output_shapes: list[list[int | tuple[int, int]]]
    weights: list[str]


def find_layers(model: nn.Module, *, layouts: Sequence[Any]) -> nn.ModuleList:
    """The list of decoder layers.

    Raises:
        NoFit: there is none with one layer for each cache.
    """
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == len(layouts)]
    if not found:
        raise NoFit(f"no list of {len(layouts)} layers")
    return max(found, key=lambda module: sum(parameter.numel() for parameter in module.parameters()))


def record(run: Callable[[], Any], *, layers: nn.ModuleList, hints: Sequence[Hashable] = ()) -> Recording:
    """Run a model and write down how it calls its layers; a layer that is like an earlier one does not really run.

    Args:
        run: runs the model.
        layers: its layers.
        hints: for each layer something that must be equal, too, for two to be alike.
    """
    calls: dict[int, Call] = {}
    alike: dict[Hashable, int] = {}
    by_number: set[Hashable] = set()
    same_as = list(range(len(layers)))

    def replaced(number: int, original: Callable[..., Any], signature: Hashable) -> Callable[..., Any]:
        place = _NumberPlace(original, number=number)

        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = pytree.tree_flatten(place.filled(OwnNumber(), args, kwargs))
            key = (signature, tuple(_described(leaf) for leaf in leaves), str(spec))
            if key not in alike and key not in by_number:
                try:
                    own_args, own_kwargs = place.filled(LayerNumber(number), args, kwargs)
                    calls[number] = _call(leaves, spec, results=original(*own_args, **own_kwargs))
                    alike[key] = number
                except NumberUsed:
                    by_number.add(key)
            if key in by_number:
                leaves, spec = pytree.tree_flatten((args, kwargs))
                calls[number] = _call(leaves, spec, results=original(*args, **kwargs))
            same_as[number] = alike.get(key, number)
            known = calls[same_as[number]]
            return pytree.tree_unflatten(known.outputs, known.output_spec)

        return forward

    changes = []
    for number, layer in enumerate(layers):
        signature = (_signature(layer), hints[number] if hints else None)
        changes.append((layer, "forward", replaced(number, layer.forward, signature)))
    with patching.attributes(changes):
        run()
    return Recording(calls=calls, same_as=same_as)


class _NumberPlace:
    """Where a layer takes its own number."""

    def __init__(self, forward: Callable[..., Any], *, number: int) -> None:
        names = list(inspect.signature(forward).parameters)
        self._place = names.index(_NUMBER) if _NUMBER in names else None
        self._number = number

    def filled(
        self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with ``value`` there."""
        place = self._place
        if place is not None and place < len(args) and args[place] == self._number:
            return (*args[:place], value, *args[place + 1 :]), kwargs
        if place is not None and kwargs.get(_NUMBER) == self._number:
            return args, {**kwargs, _NUMBER: value}
        return args, kwargs


def _call(leaves: list[Any], spec: Any, *, results: Any) -> Call:
    outputs, output_spec = pytree.tree_flatten(results)
    return Call(leaves=leaves, spec=spec, outputs=outputs, output_spec=output_spec)


def kinds_of(
    first: Recording, second: Recording, *, layers: nn.ModuleList, layouts: Sequence[LayerLayout | None]
) -> list[Kind]:
    """The kind of each layer, from recordings at two sizes.

    Raises:
        NoFit: the layers are called in a way that functions cannot be called.
    """
    if first.same_as != second.same_as:
        raise NoFit("layers that are alike at one size differ at another")
    by_number: dict[int, Kind] = {}
    for number in sorted(set(first.same_as)):
        if number not in first.calls:
            raise NoFit(f"layer {number} is not called")
        call, other = first.calls[number], second.calls[number]
        layout = layouts[number]
        if layout is None:
            _refuse_hidden_arguments(call, number=number)
        by_number[number] = Kind(
            name=f"{type(layers[number]).__name__}_{len(by_number)}",
            number=number,
            layer=layers[number],
            layout=layout,
            call=call,
            dynamic=[_varying(one, two) for one, two in zip(call.tensors, other.tensors, strict=True)],
            output_shapes=_output_shapes(call, other),
            weights=[name for name, _ in fake_weights(layers[number])],
        )
    return [by_number[number] for number in first.same_as]


def _refuse_hidden_arguments(call: Call, *, number: int) -> None:
    """Refuse a layer without states that may get those of another one in an object that hides tensors."""
    for leaf in call.leaves:
        if not isinstance(leaf, (torch.Tensor, Cache, OwnNumber, *_PLAIN_TYPES)):
            raise NoFit(f"layer {number} keeps nothing and takes a {type(leaf).__name__}")


def _varying(one: torch.Tensor, two: torch.Tensor) -> list[int]:
    return [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]


def _output_shapes(call: Call, other: Call) -> list[list[int | tuple[int, int]]]:
    """Where each size of each result comes from."""
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for position, (one, two) in enumerate(zip(call.tensors, other.tensors, strict=True)):
        for axis in range(one.ndim):
            known.setdefault((int(one.shape[axis]), int(two.shape[axis])), (position, axis))
    shapes: list[list[int | tuple[int, int]]] = []
    for one, two in zip(call.outputs, other.outputs, strict=True):
        if not isinstance(one, torch.Tensor):
            if one is not None:
                raise NoFit(f"a layer returns a {type(one).__name__}")
            continue
        sizes = [(int(a), int(b)) for a, b in zip(one.shape, two.shape, strict=True)]
        unknown = [pair for pair in sizes if pair[0] != pair[1] and pair not in known]
        if unknown:
            raise NoFit(f"a layer returns an axis of {unknown[0][0]} and {unknown[0][1]} that none of its inputs has")
        shapes.append([pair[0] if pair[0] == pair[1] else known[pair] for pair in sizes])
    return shapes


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
    if isinstance(value, _PLAIN_TYPES):
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


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), str(leaf.dtype)
    return "cache" if isinstance(leaf, Cache) else _frozen(leaf)
