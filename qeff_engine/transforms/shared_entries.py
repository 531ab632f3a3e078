"""Mappings that a model passes to all of its layers, so that one finds in them what an earlier one has put there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from qeff_engine.transforms.layer_numbers import NoFit


class Absent:
    """Stands for the value of a key that a mapping does not have."""


class SharedEntries(MutableMapping[Any, Any]):
    """A mapping in the place of another one, which notes what a layer reads from it and keeps what the layer puts in.

    Attributes:
        read: values by key that the layer found there; :class:`Absent` for those that it looked for in vain.
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

    def _refused(self, *_: Any) -> Any:
        raise NoFit(f"a layer does more with a {type(self._original).__name__} than to read and write single entries")

    def __delitem__(self, key: Any) -> None:
        self._refused()

    def __iter__(self) -> Iterator[Any]:
        self._refused()
        yield

    def __len__(self) -> int:
        number: int = self._refused()
        return number

    def __getattr__(self, name: str) -> Any:
        self._refused()


def entry(mapping: Mapping[Any, Any], key: Any) -> Any:
    """The value of a key, or :class:`Absent`."""
    return mapping[key] if key in mapping else Absent()
