"""Integers to and from the standard packed layouts, and from those to ``MatMulNBits``. Numpy only, exact both ways.

==============  =======================================================================================
GPTQ, first     ``qweight`` int32 [in/8, out], nibble j of a word is row 8r+j; ``qzeros`` int32
format          [groups, out/8], nibble j of a word is column 8c+j, zero point **minus one**;
                ``scales`` float16 [groups, out]; ``g_idx`` int32 [in], the group of each row
GPTQ, second    the same with zero points as they are (``checkpoint_format: gptq_v2``)
format
AWQ, GEMM       ``qweight`` int32 [in, out/8] and ``qzeros`` int32 [groups, out/8]: column 8c+j of a row
                is the nibble [0,4,1,5,2,6,3,7][j] of word c; ``scales`` float16 [groups, out]
MatMulNBits     ``qweight`` uint8 [out, blocks, block/2], the low nibble is the even element; ``scales``
                [out, blocks]; ``qzeros`` uint8 [out, ceil(blocks/2)], the low nibble is the even block
==============  =======================================================================================

Sources: the layouts that AutoGPTQ, AutoAWQ and ONNX Runtime's contrib operator documentation define.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from qeff_engine.errors import InvalidInput, Unsupported

Array = npt.NDArray[Any]

NIBBLES = 8  # of a 32-bit word
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble that holds column 8c+j
LEAST_BLOCK = 16  # of MatMulNBits; blocks are powers of two
_SHIFTS = np.arange(NIBBLES, dtype=np.uint32) * 4
_AWQ_SHIFTS = np.array(AWQ_ORDER, dtype=np.uint32) * 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integers:
    """A quantized weight outside any layout: ``(q - zero) * scale``.

    Attributes:
        q_OI: uint8 [out, in], 0 to 15.
        scales_OG: [out, groups], in the layout's own float type.
        zeros_OG: uint8 [out, groups], 0 to 15.
        group_of_column_I: int32 [in], the group of each input column.
    """

    q_OI: Array
    scales_OG: Array
    zeros_OG: Array
    group_of_column_I: Array

    def dequantize(self) -> Array:
        """The weight, float32 [out, in]."""
        zeros_OI = self.zeros_OG[:, self.group_of_column_I].astype(np.float32)
        scales_OI = self.scales_OG[:, self.group_of_column_I].astype(np.float32)
        return (self.q_OI.astype(np.float32) - zeros_OI) * scales_OI


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatMulNBits:
    """Inputs and attributes of a ``com.microsoft::MatMulNBits`` node.

    Attributes:
        qweight_OBb: uint8 [out, blocks, block/2].
        scales_OB: float32 [out, blocks].
        qzeros_Oz: uint8 [out, ceil(blocks/2)].
        in_features: the attribute K.
        block_size: a power of two of at least 16.
        order_I: int64 [in] when the columns of the weight are in another order than the input's channels: column i
            belongs to channel ``order_I[i]``; None when they are in the same order.
    """

    qweight_OBb: Array
    scales_OB: Array
    qzeros_Oz: Array
    in_features: int
    block_size: int
    order_I: Array | None = None


def sequential_groups(in_features: int, *, group_size: int) -> Array:
    """The group of each column when groups are consecutive columns; -1 for one group."""
    columns = in_features if group_size == -1 else group_size
    return (np.arange(in_features) // columns).astype(np.int32)


def pack_gptq(integers: Integers, *, zero_offset: int = 1) -> dict[str, Array]:
    """Tensors by suffix of GPTQ's layout; ``zero_offset`` is what is taken off the stored zero points."""
    return {
        "qweight": _pack_words(_words_view(integers.q_OI.T, axis=0), _SHIFTS, axis=1),
        "qzeros": _pack_words(_words_view((integers.zeros_OG.T - zero_offset) & 15, axis=1), _SHIFTS, axis=2),
        "scales": np.ascontiguousarray(integers.scales_OG.T.astype(np.float16)),
        "g_idx": integers.group_of_column_I.astype(np.int32),
    }


def unpack_gptq(
    *, qweight: Array, qzeros: Array, scales: Array, g_idx: Array | None, group_size: int, zero_offset: int = 1
) -> Integers:
    """The integers in GPTQ's tensors; without ``g_idx`` groups are consecutive.

    A stored zero point of 15 is read as 15 + 1 = 16 = 0 in four bits: nothing runs over into the next column.
    """
    q_IO = _unpack_words(qweight, _SHIFTS, axis=1).reshape(-1, qweight.shape[1])
    zeros_GO = _unpack_words(qzeros, _SHIFTS, axis=2).reshape(qzeros.shape[0], -1)
    groups_I = sequential_groups(q_IO.shape[0], group_size=group_size) if g_idx is None else g_idx
    return Integers(
        q_OI=np.ascontiguousarray(q_IO.T),
        scales_OG=np.ascontiguousarray(scales.T),
        zeros_OG=np.ascontiguousarray(((zeros_GO + zero_offset) & 15).T),
        group_of_column_I=np.asarray(groups_I, dtype=np.int32),
    )


def pack_awq(integers: Integers) -> dict[str, Array]:
    """Tensors by suffix of AWQ's GEMM layout."""
    return {
        "qweight": _pack_words(_words_view(integers.q_OI.T, axis=1), _AWQ_SHIFTS, axis=2),
        "qzeros": _pack_words(_words_view(integers.zeros_OG.T, axis=1), _AWQ_SHIFTS, axis=2),
        "scales": np.ascontiguousarray(integers.scales_OG.T.astype(np.float16)),
    }


def unpack_awq(*, qweight: Array, qzeros: Array, scales: Array, group_size: int) -> Integers:
    """The integers in AWQ's tensors."""
    q_IO = _unpack_words(qweight, _AWQ_SHIFTS, axis=2).reshape(qweight.shape[0], -1)
    zeros_GO = _unpack_words(qzeros, _AWQ_SHIFTS, axis=2).reshape(qzeros.shape[0], -1)
    return Integers(
        q_OI=np.ascontiguousarray(q_IO.T),
        scales_OG=np.ascontiguousarray(scales.T),
        zeros_OG=np.ascontiguousarray(zeros_GO.T),
        group_of_column_I=sequential_groups(q_IO.shape[0], group_size=group_size),
    )


def to_matmul_nbits(integers: Integers, *, name: str) -> MatMulNBits:
    """The same integers as ``MatMulNBits`` takes them; nothing is rounded again.

    Columns whose groups are out of order (``desc_act``) are brought together, and ``order_I`` says how. A group size
    that is no power of two becomes several blocks with one scale.

    Args:
        name: the linear, for messages.

    Raises:
        Unsupported: groups have different widths, or a width that no block of 16 or more divides.
    """
    order_I, columns = _consecutive_groups(integers.group_of_column_I, name=name)
    q_OI = integers.q_OI if order_I is None else integers.q_OI[:, order_I]
    out_features, in_features = q_OI.shape
    block = block_size(in_features, group_size=columns, name=name)
    # With one scale per row and an odd width, the single block is wider than the row.
    repeats = max(columns // block, 1)
    num_blocks = -(-in_features // block)
    scales_OB = np.repeat(integers.scales_OG, repeats, axis=1)[:, :num_blocks]
    zeros_OB = np.repeat(integers.zeros_OG, repeats, axis=1)[:, :num_blocks]
    padded_OK = np.pad(q_OI, ((0, 0), (0, num_blocks * block - in_features)))
    return MatMulNBits(
        qweight_OBb=_pack_pairs(padded_OK).reshape(out_features, num_blocks, block // 2),
        scales_OB=np.ascontiguousarray(scales_OB, dtype=np.float32),
        qzeros_Oz=_pack_pairs(np.pad(zeros_OB, ((0, 0), (0, num_blocks % 2)))),
        in_features=in_features,
        block_size=block,
        order_I=order_I,
    )


def block_size(in_features: int, *, group_size: int, name: str) -> int:
    """Columns of a block of ``MatMulNBits`` for a linear with these groups.

    It is the largest power of two that divides a group, so that a block has one scale. For one group per row whose
    width no such block divides, it is the power of two that holds the row.

    Raises:
        Unsupported: there is none of at least 16; the message has ``name``, the linear's.
    """
    single = group_size == -1 or group_size >= in_features
    columns = in_features if single else group_size
    divisor = columns & -columns
    if divisor >= LEAST_BLOCK:
        return divisor
    if single:
        return 1 << max(columns - 1, LEAST_BLOCK - 1).bit_length()
    raise Unsupported(
        f"{name} has groups of {columns} columns, expected a multiple of {LEAST_BLOCK} (blocks of MatMulNBits)."
    )


def from_matmul_nbits(tensors: MatMulNBits) -> Integers:
    """The integers in a ``MatMulNBits`` node, in the order of the input's channels, a group per block."""
    out_features, num_blocks, _ = tensors.qweight_OBb.shape
    q_OI = _unpack_pairs(tensors.qweight_OBb.reshape(out_features, -1))[:, : tensors.in_features]
    groups_I = sequential_groups(tensors.in_features, group_size=tensors.block_size)
    if tensors.order_I is not None:
        inverse_I = np.argsort(tensors.order_I)
        q_OI, groups_I = q_OI[:, inverse_I], groups_I[inverse_I]
    return Integers(
        q_OI=np.ascontiguousarray(q_OI),
        scales_OG=tensors.scales_OB,
        zeros_OG=_unpack_pairs(tensors.qzeros_Oz)[:, :num_blocks],
        group_of_column_I=groups_I,
    )


def _consecutive_groups(groups_I: Array, *, name: str) -> tuple[Array | None, int]:
    """The order that brings groups together (None when they are) and the columns of a group (the last may be short)."""
    counts = np.bincount(groups_I)
    columns = int(counts[0])
    if (counts[:-1] != columns).any() or counts[-1] > columns:
        raise Unsupported(
            f"{name} has groups of different widths (g_idx gives {sorted(set(counts.tolist()))} columns), "
            "expected one width with at most a shorter last group."
        )
    if (np.diff(groups_I) >= 0).all():
        return None, columns
    return np.argsort(groups_I, kind="stable").astype(np.int64), columns


def _words_view(values: Array, *, axis: int) -> Array:
    """``values`` with ``axis`` split into words of eight."""
    size = values.shape[axis]
    if size % NIBBLES:
        raise InvalidInput(f"a packed axis has {size} elements, expected a multiple of {NIBBLES}.")
    return values.reshape(*values.shape[:axis], size // NIBBLES, NIBBLES, *values.shape[axis + 1 :])


def _pack_words(values: Array, shifts: Array, *, axis: int) -> Array:
    shape = [NIBBLES if i == axis else 1 for i in range(values.ndim)]
    words = np.bitwise_or.reduce(values.astype(np.uint32) << shifts.reshape(shape), axis=axis)
    return np.ascontiguousarray(words).view(np.int32)


def _unpack_words(words: Array, shifts: Array, *, axis: int) -> Array:
    """Nibbles uint8 of 32-bit words, along a new axis."""
    shape = [NIBBLES if i == axis else 1 for i in range(words.ndim + 1)]
    expanded = np.expand_dims(np.ascontiguousarray(words).view(np.uint32), axis)
    return ((expanded >> shifts.reshape(shape)) & 15).astype(np.uint8)


def _pack_pairs(values: Array) -> Array:
    """Bytes of pairs along the last axis, the even element low."""
    return np.ascontiguousarray(values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)


def _unpack_pairs(packed: Array) -> Array:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
