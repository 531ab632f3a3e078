"""Element types at a program's boundary: their numbers in descriptions, in ONNX and in numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from qeff_engine.simulated_sdk.mx_formats import BLOCK


@dataclasses.dataclass(frozen=True, kw_only=True)
class IoType:
    """One element type.

    Attributes:
        code: number in a program's description; 12 (MXINT8) is this simulator's own, clients never pass such buffers.
        onnx: ``TensorProto.DataType`` of graph tensors that may have it at the boundary.
        dtype: numpy type of a client's buffer, None where numpy has none.
        item_bytes: bytes of an element; of MXINT8 without its share of the scale.
    """

    code: int
    onnx: int
    dtype: npt.DTypeLike | None
    item_bytes: int

    def num_bytes(self, dims: Sequence[int]) -> int:
        """Bytes of a buffer with these dims."""
        if self.code == MXINT8.code:
            return prod(dims[:-1]) * (-(-dims[-1] // BLOCK) * (BLOCK + 1))
        return prod(dims) * self.item_bytes

    def to_array(self, data: bytes | memoryview | npt.NDArray[Any], *, dims: Sequence[int]) -> npt.NDArray[Any]:
        """A client's bytes as an array; bf16 becomes fp32, which numpy has."""
        if self.code == BFLOAT16.code:
            widened = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
            return widened.view(np.float32).reshape(dims)
        return np.frombuffer(data, self.dtype).reshape(dims)

    def to_client(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the graph as a client gets it, which is the array itself when types agree."""
        if self.code == BFLOAT16.code:
            bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return rounded.astype(np.uint16)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=self.dtype)


FLOAT = IoType(code=0, onnx=1, dtype=np.float32, item_bytes=4)
FLOAT16 = IoType(code=1, onnx=10, dtype=np.float16, item_bytes=2)
BFLOAT16 = IoType(code=11, onnx=16, dtype=None, item_bytes=2)
MXINT8 = IoType(code=12, onnx=1, dtype=None, item_bytes=1)

_ALL = (
    FLOAT,
    FLOAT16,
    IoType(code=2, onnx=3, dtype=np.int8, item_bytes=1),
    IoType(code=3, onnx=2, dtype=np.uint8, item_bytes=1),
    IoType(code=4, onnx=5, dtype=np.int16, item_bytes=2),
    IoType(code=6, onnx=6, dtype=np.int32, item_bytes=4),
    IoType(code=7, onnx=7, dtype=np.int64, item_bytes=8),
    IoType(code=8, onnx=9, dtype=np.bool_, item_bytes=1),
    BFLOAT16,
    MXINT8,
)
BY_CODE = {item.code: item for item in _ALL}
BY_ONNX = {item.onnx: item for item in _ALL if item is not MXINT8}
FLOATING_ONNX = frozenset({FLOAT.onnx, FLOAT16.onnx, BFLOAT16.onnx})
BY_PRECISION = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16, "mxint8": MXINT8}
