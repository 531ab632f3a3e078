"""The numbers that layers are told, followed to the caches that they find with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from qeff_engine import patching

NAMES = ("layer_idx", "layer_id")  # attributes of modules

Place = str | int  # the name of an attribute below a layer, or a place among the arguments of a call


class NoFit(Exception):
    """The layers of a model cannot be calls of functions; the message says why."""


class NumberUsed(NoFit):
    """A layer computes with a number that it may only find a cache with.

    Attributes:
        places: where it had the number from.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        super().__init__("a layer computes with its own number")
        self.places = frozenset(places)


class LayerNumber(int):
    """A number to find a cache with. Added to others it stays one; anything else that is done with it is refused.

    Attributes:
        places: where the numbers that it is the sum of are from; what it has beyond them is constant.
    """

    places: tuple[Place, ...]

    def __new__(cls, value: int, *, places: Iterable[Place]) -> LayerNumber:
        """A number from those places."""
        made = super().__new__(cls, value)
        made.places = tuple(places)
        return made

    def __add__(self, other: Any) -> LayerNumber:
        if not isinstance(other, int):
            self._refused()
        return LayerNumber(int(self) + int(other), places=(*self.places, *_places(other)))

    __radd__ = __add__

    def _refused(self, *_: Any) -> Any:
        raise NumberUsed(self.places)

    __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = __truediv__ = __rtruediv__ = _refused
    __float__ = __pow__ = __bool__ = __hash__ = _refused
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refused


def _places(number: int) -> tuple[Place, ...]:
    return number.places if isinstance(number, LayerNumber) else ()


class Sum:
    """How a call comes to the number of a cache: numbers that it is told, and a constant."""

    def __init__(self, number: int, *, told: Mapping[Place, int]) -> None:
        """Take apart a number that a call has come to when it was told these."""
        self.places = _places(number)
        self._constant = int(number) - self._told(told)

    def value(self, told: Mapping[Place, int]) -> int:
        """The number that another call comes to."""
        return self._told(told) + self._constant

    def _told(self, told: Mapping[Place, int]) -> int:
        return sum(told[place] for place in self.places)


class WatchedOperators(TorchFunctionMode):
    """Refuses operators of torch that are given a :class:`LayerNumber`, for the time of a block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator."""
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, LayerNumber):
                raise NumberUsed(leaf.places)
        return func(*args, **(kwargs or {}))


def of_attributes(layer: nn.Module) -> dict[Place, int]:
    """The numbers that the parts of a layer have, by the names of the attributes."""
    return {place: vars(owner)[name] for place, owner, name in _owners(layer)}


@contextlib.contextmanager
def followed(layer: nn.Module, *, places: Iterable[Place]) -> Iterator[None]:
    """Let the parts of a layer have the numbers at ``places`` as :class:`LayerNumber`, for the time of a block."""
    wanted = set(places)
    changes = [
        (owner, name, LayerNumber(vars(owner)[name], places=(place,)))
        for place, owner, name in _owners(layer)
        if place in wanted
    ]
    with patching.attributes(changes):
        yield


def _owners(layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for path, part in layer.named_modules():
        for name in NAMES:
            if type(vars(part).get(name)) is int:
                yield f"{path}.{name}", part, name
