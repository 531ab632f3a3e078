"""What a piece of code does to tensors, recorded as an :class:`~qeff_engine.onnx_graph.arrangements.Arrangement`.

transformers' rules for checkpoints are code that stacks, joins, splits and transposes. It is run once on tensors
without storage, and every operator that only moves elements is noted; the result of any other operator has no
arrangement, and neither has what follows from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qeff_engine.onnx_graph import arrangements
from qeff_engine.onnx_graph.arrangements import Arrangement

# Operators whose results have the elements of their input in the same order.
_ORDER_KEPT = frozenset(
    {
        "aten::view",
        "aten::_unsafe_view",
        "aten::_reshape_alias",
        "aten::unsqueeze",
        "aten::squeeze",
        "aten::clone",
        "aten::alias",
        "aten::detach",
    }
)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what becomes of tensors while it is active (``with recorder:``)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensors are kept, so that no other one gets the identity of one that is gone.
        self._noted: dict[int, tuple[torch.Tensor, Arrangement]] = {}

    def note(self, tensor: torch.Tensor, arrangement: Arrangement) -> torch.Tensor:
        """Say what a tensor is, and return it."""
        self._noted[id(tensor)] = (tensor, arrangement)
        return tensor

    def arrangement(self, tensor: torch.Tensor) -> Arrangement | None:
        """What a tensor is, if it only was moved; of one dtype throughout."""
        found = self._noted.get(id(tensor))
        return None if found is None else found[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note its results."""
        results = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:  # a tensor is not any more what was noted of it
            self._noted.clear()
            return results
        given = _by_name(func, args, kwargs or {})
        sources = self._sources(given)
        outputs = results if isinstance(results, list | tuple) else [results]
        made = _rule(func._schema.name)(sources, outputs, given) if sources else None
        for output, arrangement in zip(outputs, made or (), strict=False):
            self.note(output, arrangement)
        return results

    def _sources(self, given: Mapping[str, Any]) -> list[Arrangement]:
        """What the operator's tensors are; empty when that of one is not known."""
        tensors = given.get("tensors", [given.get("self")])
        found = [self.arrangement(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        known = [item for item in found if item is not None]
        one_type = len({arrangements.dtype_of(item) for item in known}) == 1
        return known if len(known) == len(found) and one_type else []


_Outputs = Sequence[torch.Tensor]
_Rule = Callable[[list[Arrangement], _Outputs, Mapping[str, Any]], list[Arrangement] | None]


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by name, with defaults."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _rule(name: str) -> _Rule:
    return _same_order if name in _ORDER_KEPT else _RULES.get(name, _unknown)


def _unknown(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> None:
    return None


def _same_order(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    return [arrangements.reshaped(sources[0], outputs[0].shape)]


def _cat(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    return [arrangements.joined(sources, axis=given["dim"] % outputs[0].ndim)]


def _stack(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    return [arrangements.stacked(sources, axis=given["dim"] % outputs[0].ndim)]


def _split(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    axis = given["dim"] % outputs[0].ndim
    sizes = [output.shape[axis] for output in outputs]
    starts = itertools.accumulate(sizes, initial=0)
    return [
        arrangements.cut(sources[0], axis=axis, start=start, size=size)
        for start, size in zip(starts, sizes, strict=False)
    ]


def _slice(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement] | None:
    axis = given["dim"] % outputs[0].ndim
    if given["step"] != 1:
        return None
    size = sources[0].shape[axis]
    start = given["start"] or 0
    start = min(start + size if start < 0 else start, size)
    return [arrangements.cut(sources[0], axis=axis, start=start, size=outputs[0].shape[axis])]


def _select(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    axis = given["dim"] % len(sources[0].shape)
    row = arrangements.cut(sources[0], axis=axis, start=given["index"] % sources[0].shape[axis], size=1)
    return [arrangements.reshaped(row, outputs[0].shape)]


def _permute(sources: list[Arrangement], outputs: _Outputs, given: Mapping[str, Any]) -> list[Arrangement]:
    rank = outputs[0].ndim
    order = list(range(rank))
    if "dims" in given:
        order = [axis % rank for axis in given["dims"]]
    elif rank > 1:  # transpose names two axes, t has only two
        first, second = given.get("dim0", 0) % rank, given.get("dim1", 1) % rank
        order[first], order[second] = order[second], order[first]
    return [arrangements.permuted(sources[0], order)]


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "aten::cat": _cat,
        "aten::stack": _stack,
        "aten::split": _split,
        "aten::split_with_sizes": _split,
        "aten::slice": _slice,
        "aten::select": _select,
        "aten::permute": _permute,
        "aten::transpose": _permute,
        "aten::t": _permute,
    }
)
