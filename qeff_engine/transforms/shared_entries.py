"""Mappings that a model passes to all of its layers, so that one finds in them what an earlier one has put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from qeff_engine.transforms.layer_numbers import NoFit


class Absent:
    """Stands for the value of a key that a mapping does not have."""


class AllKeys:
    """Stands among the keys that were read for what keys there are."""


class SharedEntries(MutableMapping[Any, Any]):
    """A mapping in the place of another one, which notes what a layer reads from it and keeps what the layer puts in.

    Attributes:
        read: values by key that the layer found there; :class:`Absent` for those that it looked for in vain. With
            :class:`AllKeys` among the keys, it asked which there are.
        written: values by key that it put there.
    """

    def __init__(self, original: Mapping[Any, Any]) -> None:
        self._original = original
        self.read: dict[Any, Any] = {}
        self.written: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        if key in self.written:
            return self.written[key]
        self.read[key] = value = entry(self._original, key)
        if isinstance(value, Absent):
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.written[key] = value

    def __iter__(self) -> Iterator[Any]:
        self.read.update({key: self._original[key] for key in self._original})
        self.read[AllKeys] = entry(self._original, AllKeys)
        return iter(dict.fromkeys([*self._original, *self.written]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __delitem__(self, key: Any) -> None:
        self._refused()

    def __getattr__(self, name: str) -> Any:
        self._refused()

    def _refused(self) -> None:
        raise NoFit(f"a layer does more with a {type(self._original).__name__} than to read and write entries")


def entry(mapping: Mapping[Any, Any], key: Any) -> Any:
    """The value of a key, or :class:`Absent`; of :class:`AllKeys` the keys that there are."""
    if key is AllKeys:
        return tuple(mapping)
    return mapping[key] if key in mapping else Absent()


def as_read(read: Mapping[Any, Any]) -> SharedEntries:
    """A mapping in which a layer finds what it has read."""
    return SharedEntries(
        {key: value for key, value in read.items() if key is not AllKeys and not isinstance(value, Absent)}
    )
