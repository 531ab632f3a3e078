"""The constants of a program: in which form each weight is stored, where, and the streamed writing of them."""

from __future__ import annotations

import dataclasses
import os
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
        onnx_type: of the stored values: the weight's own, fp16, or fp32 for what is packed to MXFP6.
        mx_axis: reduction axis along which values are packed to MXFP6; None for plain fp16 or an exact copy.
        offset: from the beginning of the constants.
    """

    name: str
    weight: Weight
    onnx_type: int
    mx_axis: int | None
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, which are those that the card would need."""
        if self.mx_axis is not None:
            return 3 * self.packed_rows + self.num_scales
        if self.onnx_type == TensorProto.FLOAT16:
            return prod(self.weight.dims) * 2
        return self.weight.num_bytes

    @property
    def is_copy(self) -> bool:
        """Whether the stored bytes are those of the source."""
        return self.mx_axis is None and self.onnx_type == self.weight.onnx_type

    @property
    def packed_rows(self) -> int:
        """Groups of three bytes with four MXFP6 elements, which stand before their scales."""
        return self.num_scales * mx_formats.BLOCK // 4

    @property
    def num_scales(self) -> int:
        """Blocks of MXFP6 elements."""
        before, length, after = self.layout
        return before * -(-length // mx_formats.BLOCK) * after

    @property
    def layout(self) -> tuple[int, int, int]:
        """Elements before, along and after the packed axis."""
        dims, axis = self.weight.dims, self.mx_axis or 0
        return prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])

    def pieces(self) -> Iterator[npt.NDArray[np.generic]]:
        """The stored values, piece by piece, in file order."""
        if self.mx_axis is not None:
            yield from self._packed_pieces()
        elif self.onnx_type == TensorProto.FLOAT16:
            total = prod(self.weight.dims)
            for start in range(0, total, _PIECE_ELEMENTS):
                yield _to_fp16(self.weight.floats(start=start, stop=min(start + _PIECE_ELEMENTS, total)))
        else:
            yield from self.weight.raw_pieces(piece_bytes=4 * _PIECE_ELEMENTS)

    def _packed_pieces(self) -> Iterator[npt.NDArray[np.generic]]:
        """Packed elements, then all scales, which take a 25th of them in memory."""
        scales: list[npt.NDArray[np.uint8]] = []
        _, length, after = self.layout
        for start, stop in self._block_ranges():
            values = self.weight.floats(start=start, stop=stop)
            along = min(length, (stop - start) // after)
            packed, piece_scales = mx_formats.encode_fp6(values.reshape(-1, along, after), axis=1)
            scales.append(piece_scales)
            yield packed
        yield from scales

    def _block_ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of flat elements that hold whole blocks of 32 along the axis."""
        before, length, after = self.layout
        row = length * after
        if row <= _PIECE_ELEMENTS:
            step = max(_PIECE_ELEMENTS // row, 1) * row
            for start in range(0, before * row, step):
                yield start, min(start + step, before * row)
            return
        blocks = max(_PIECE_ELEMENTS // (mx_formats.BLOCK * after), 1) * mx_formats.BLOCK * after
        for first in range(0, before * row, row):
            for start in range(first, first + row, blocks):
                yield start, min(start + blocks, first + row)


def _to_fp16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Values as fp16; too large ones become the largest number, infinities stay."""
    if values.size and not max(values.max(), -values.min()) <= _FP16_MAX:
        values = np.where(np.isinf(values), values, np.clip(values, -_FP16_MAX, _FP16_MAX))
    return values.astype(np.float16)


def rounded_to_fp16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """fp32 values as the card's fp16 holds them."""
    return _to_fp16(values).astype(np.float32)


def aligned(offset: int) -> int:
    """The next offset at which a constant may begin."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def write(file: IO[bytes], *, constants: Iterable[Constant], start: int) -> None:
    """Write constants to their places in ``file``, whose constants begin at ``start``.

    Holes of the source stay holes: zeros are zero bytes in every form. What is stored as it is goes from file to file
    inside the kernel, which shares blocks where the file system can.
    """
    end = start
    for constant in constants:
        place = start + constant.offset
        end = max(end, place + constant.num_bytes)
        if constant.weight.is_hole() or (constant.is_copy and _copied(file, weight=constant.weight, place=place)):
            continue
        file.seek(place)
        for piece in constant.pieces():
            file.write(np.ascontiguousarray(piece).data)
    if file.seek(0, os.SEEK_END) < end:
        file.truncate(end)


def _copied(file: IO[bytes], *, weight: Weight, place: int) -> bool:
    """Copy a weight's bytes to ``place`` in the kernel; False when it cannot do that between these files."""
    if weight.path is None:
        return False
    file.flush()
    done = 0
    with weight.path.open("rb") as source:
        while done < weight.num_bytes:
            try:
                count = os.copy_file_range(
                    source.fileno(), file.fileno(), weight.num_bytes - done, weight.offset + done, place + done
                )
            except OSError:
                return False
            if count == 0:
                return False
            done += count
    return True
