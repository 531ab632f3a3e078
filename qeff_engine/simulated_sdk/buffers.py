"""Buffers of the runtime's surface: data, and the dims of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class QBuffer:
    """Bytes that go to the device or come from it; a zero-length one means that nothing is passed."""

    def __init__(self, data: bytes | bytearray | memoryview | np.ndarray[Any, Any] = b"") -> None:
        """Refer to ``data``; a contiguous array is not copied."""
        if isinstance(data, np.ndarray):
            flat = np.ascontiguousarray(data).reshape(-1)
            self._view = flat.view(np.uint8).data if flat.size else memoryview(b"")
        else:
            self._view = memoryview(data).cast("B")

    @property
    def size(self) -> int:
        """Bytes."""
        return self._view.nbytes

    @property
    def view(self) -> memoryview:
        """The data itself."""
        return self._view

    def __bytes__(self) -> bytes:
        return bytes(self._view)

    def __len__(self) -> int:
        return self.size


class BufferDimensionsVecRef(list[tuple[int, list[int]]]):
    """(element size, dims) of every binding; dims ``[0]`` stand for a binding that is not passed."""

    def __init__(self, entries: Iterable[Any] = ()) -> None:
        super().__init__(_entry(entry) for entry in entries)

    def __setitem__(self, index: Any, entry: Any) -> None:
        super().__setitem__(index, _entry(entry))


def _entry(entry: Any) -> tuple[int, list[int]]:
    size, dims = entry
    return int(size), [int(dim) for dim in dims]
