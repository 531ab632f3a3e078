"""Tensors put together from stored ones by changes of layout alone: joined, cut, permuted, reshaped.

A checkpoint often has in several tensors what a model has in one (stacked experts), or the other way round (fused
projections). Nodes before the first use arrange them, so that no byte is copied into an artifact; what is a range of
bytes of one file after all becomes that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from qeff_engine.safetensors_header import TensorPlace

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A range of bytes of a checkpoint's file.

    Attributes:
        name: of the checkpoint's tensor that it belongs to.
        place: where it lies, with the shape that it is taken for.
    """

    name: str
    place: TensorPlace

    @property
    def shape(self) -> Shape:
        """Sizes."""
        return self.place.shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """Tensors one after another along an axis."""

    parts: tuple[Arrangement, ...]
    axis: int
    shape: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A range of a tensor along an axis, from ``start`` on."""

    source: Arrangement
    axis: int
    start: int
    shape: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permuted:
    """A tensor with its axes in another order: axis i is the source's axis ``order[i]``."""

    source: Arrangement
    order: Shape
    shape: Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshaped:
    """A tensor with other sizes and the same elements in the same order."""

    source: Arrangement
    shape: Shape


Arrangement = Part | Joined | Cut | Permuted | Reshaped


def dtype_of(arrangement: Arrangement) -> str:
    """Type of the elements, as safetensors spells it."""
    while not isinstance(arrangement, Part):
        arrangement = arrangement.parts[0] if isinstance(arrangement, Joined) else arrangement.source
    return arrangement.place.dtype


def joined(parts: Sequence[Arrangement], *, axis: int) -> Arrangement:
    """The parts one after another along an axis; one part alone is itself."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return Joined(parts=tuple(parts), axis=axis, shape=tuple(shape))


def stacked(parts: Sequence[Arrangement], *, axis: int) -> Arrangement:
    """The parts one after another along a new axis."""
    return joined([reshaped(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts], axis=axis)


def reshaped(source: Arrangement, shape: Sequence[int]) -> Arrangement:
    """The same elements in other sizes."""
    new = tuple(shape)
    if new == source.shape:
        return source
    if isinstance(source, Part):
        return dataclasses.replace(source, place=dataclasses.replace(source.place, shape=new))
    return Reshaped(source=source.source if isinstance(source, Reshaped) else source, shape=new)


def cut(source: Arrangement, *, axis: int, start: int, size: int) -> Arrangement:
    """``size`` elements along an axis from ``start`` on; contiguous bytes stay a part."""
    if size == source.shape[axis]:
        return source
    shape = (*source.shape[:axis], size, *source.shape[axis + 1 :])
    if not isinstance(source, Part) or math.prod(source.shape[:axis]) != 1:
        return Cut(source=source, axis=axis, start=start, shape=shape)
    place = source.place
    bytes_of_one = place.nbytes // place.shape[axis]
    range_of_bytes = dataclasses.replace(
        place, shape=shape, offset=place.offset + start * bytes_of_one, nbytes=size * bytes_of_one
    )
    return dataclasses.replace(source, place=range_of_bytes)


def permuted(source: Arrangement, order: Sequence[int]) -> Arrangement:
    """The axes in another order."""
    if tuple(order) == tuple(range(len(source.shape))):
        return source
    return Permuted(source=source, order=tuple(order), shape=tuple(source.shape[axis] for axis in order))
