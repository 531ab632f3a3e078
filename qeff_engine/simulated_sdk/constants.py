"""The constants of a program: in which form each weight is stored, where, and the streamed writing of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from math import prod
from typing import IO

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from qeff_engine.simulated_sdk import mx_formats
from qeff_engine.simulated_sdk.onnx_reading import Weight

_ALIGNMENT = 64
_PIECE_ELEMENTS = 1 << 18  # about 1 MB in fp32, which stays in a core's cache
_FP16_MAX = 65504.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """One stored tensor.

    Attributes:
        name: of the initializer in the program's graph.
        weight: what it is made of.
        onnx_type: of the stored values: the weight's own, or fp16.
        mx_axis: reduction axis along which values are rounded to MXFP6; None for plain fp16 or an exact copy.
        offset: from the beginning of the constants.
    """

    name: str
    weight: Weight
    onnx_type: int
    mx_axis: int | None
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        if self.onnx_type == TensorProto.FLOAT16:
            return prod(self.weight.dims) * 2
        return self.weight.num_bytes

    @property
    def card_bytes(self) -> int:
        """Bytes that the card would need: MXFP6 has 6.25 bits where this file has fp16 of the same values."""
        if self.mx_axis is None:
            return self.num_bytes
        return round(prod(self.weight.dims) * mx_formats.FP6_BITS / 8)

    def pieces(self) -> Iterator[npt.NDArray[np.generic]]:
        """The stored values, piece by piece, in file order."""
        if self.onnx_type != TensorProto.FLOAT16:
            yield from self.weight.raw_pieces(piece_bytes=4 * _PIECE_ELEMENTS)
            return
        for start, stop in self._ranges():
            values = self.weight.floats(start=start, stop=stop)
            if self.mx_axis is not None:
                _, length, inner = self._layout()
                values = mx_formats.round_fp6(values.reshape(-1, min(length, (stop - start) // inner), inner), axis=1)
            yield _to_fp16(values)

    def _layout(self) -> tuple[int, int, int]:
        """Elements before, along and after the rounded axis."""
        dims, axis = self.weight.dims, self.mx_axis or 0
        return prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of flat elements that hold whole blocks of 32."""
        total = prod(self.weight.dims)
        if self.mx_axis is None:
            step = _PIECE_ELEMENTS
        else:
            outer, length, inner = self._layout()
            row = length * inner
            if row <= _PIECE_ELEMENTS:
                step = max(_PIECE_ELEMENTS // row, 1) * row
            else:
                blocks = max(_PIECE_ELEMENTS // (mx_formats.BLOCK * inner), 1) * mx_formats.BLOCK * inner
                for first in range(0, outer * row, row):
                    for start in range(first, first + row, blocks):
                        yield start, min(start + blocks, first + row)
                return
        for start in range(0, total, step):
            yield start, min(start + step, total)


def _to_fp16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Values as fp16; too large ones become the largest number, infinities stay."""
    finite = np.where(np.isinf(values), values, np.clip(values, -_FP16_MAX, _FP16_MAX))
    return finite.astype(np.float16)


def rounded_to_fp16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """fp32 values as the card's fp16 holds them."""
    return _to_fp16(values).astype(np.float32)


def aligned(offset: int) -> int:
    """The next offset at which a constant may begin."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def write(file: IO[bytes], *, constants: Iterable[Constant], start: int) -> None:
    """Write constants to their places in ``file``, whose constants begin at ``start``."""
    for constant in constants:
        file.seek(start + constant.offset)
        for piece in constant.pieces():
            file.write(np.ascontiguousarray(piece).data)
