"""Which functions the calls of a model's layers need: one for each kind of call."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from qeff_engine.transforms.cache import LayerLayout
from qeff_engine.transforms.layer_calls import PLAIN_TYPES, Call, Site
from qeff_engine.transforms.layer_numbers import NoFit
from qeff_engine.transforms.weightless import fake_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """Calls that are the same code.

    Attributes:
        name: of the function.
        site: the call that stands for them.
        layouts: by number of the caches that it uses, what they keep; None for nothing.
        dynamic: for each tensor argument, the axes whose sizes vary.
        output_shapes: for each tensor result, each size as a number, or as (tensor argument, axis) that it equals.
        weights: names of the weights in the layer, in the order of the function's inputs.
    """

    name: str
    site: Site
    layouts: dict[int, LayerLayout | None]
    dynamic: list[list[int]]
    output_shapes: list[list[int | tuple[int, int]]]
    weights: list[str]

    @property
    def call(self) -> Call:
        """How the layer was called."""
        assert self.site.call is not None
        return self.site.call

    @property
    def states(self) -> dict[str, tuple[int | str, ...]]:
        """Shapes of what is kept, by the names that it has in the function."""
        kept = [layout for layout in self.layouts.values() if layout is not None]
        return {
            stem if len(kept) == 1 else f"{stem}.{number}": shape
            for number, layout in enumerate(kept)
            for stem, shape in layout.states.items()
        }

    def names_of_states(self, site: Site) -> list[str]:
        """The names of what a call of this kind keeps, in the order of :attr:`states`."""
        pairs = zip(dict.fromkeys(site.caches), self.layouts.values(), strict=True)
        return [name for number, layout in pairs if layout is not None for name in layout.names(number)]


def kinds_of(first: Sequence[Site], second: Sequence[Site], *, layouts: Sequence[LayerLayout | None]) -> list[Kind]:
    """The kind of each call, from recordings at two sizes.

    Raises:
        NoFit: the layers are called in a way that functions cannot be called.
    """
    if [(site.path, site.caches, site.same_as) for site in first] != [
        (site.path, site.caches, site.same_as) for site in second
    ]:
        raise NoFit("layers that are alike at one size differ at another")
    _require_owners(first, layouts=layouts)
    by_number: dict[int, Kind] = {}
    for number, (site, other) in enumerate(zip(first, second, strict=True)):
        if site.call is None or other.call is None:
            continue
        kept = {cache: layouts[cache] for cache in site.caches}
        if not any(kept.values()):
            _refuse_hidden_arguments(site)
        pairs = list(zip(site.call.tensors, other.call.tensors, strict=True))
        by_number[number] = Kind(
            name=f"{type(site.layer).__name__}_{len(by_number)}",
            site=site,
            layouts=kept,
            dynamic=[_varying(one, two) for one, two in pairs],
            output_shapes=_output_shapes(pairs, list(zip(site.call.outputs, other.call.outputs, strict=True))),
            weights=[name for name, _ in fake_weights(site.layer)],
        )
    return [by_number[site.same_as] for site in first]


def _require_owners(sites: Sequence[Site], *, layouts: Sequence[LayerLayout | None]) -> None:
    """Require that each cache that keeps something is used by one call."""
    used = [cache for site in sites for cache in dict.fromkeys(site.caches)]
    if any(number < 0 for number in used):
        raise NoFit("a layer counts caches from the last")
    for number, layout in enumerate(layouts):
        if layout is not None and used.count(number) != 1:
            raise NoFit(f"cache {number} is used by {used.count(number)} calls of layers, expected one")


def _refuse_hidden_arguments(site: Site) -> None:
    """Refuse a layer without states that may get those of another one in an object that hides tensors."""
    assert site.call is not None
    for leaf in site.call.leaves:
        if not isinstance(leaf, (torch.Tensor, Cache, MutableMapping, *PLAIN_TYPES)):
            raise NoFit(f"{site.path} keeps nothing and takes a {type(leaf).__name__}")


def _varying(one: torch.Tensor, two: torch.Tensor) -> list[int]:
    return [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]


def _output_shapes(
    inputs: Sequence[tuple[torch.Tensor, torch.Tensor]], outputs: Sequence[tuple[Any, Any]]
) -> list[list[int | tuple[int, int]]]:
    """Where each size of each result comes from."""
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for position, (one, two) in enumerate(inputs):
        for axis in range(one.ndim):
            known.setdefault((int(one.shape[axis]), int(two.shape[axis])), (position, axis))
    shapes: list[list[int | tuple[int, int]]] = []
    for one, two in outputs:
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
