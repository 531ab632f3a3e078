"""OCP Microscaling formats: values rounded to what blocks of MXFP6 and MXINT8 can hold.

A block is 32 elements that share one power-of-two scale (E8M0). Rounding is to nearest, halves to even, saturating; the
standard leaves the rounding open. Source: OCP Microscaling Formats v1.0 and Microsoft's reference emulator
(microsoft/microxcaling), which rounds halves away from zero by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

BLOCK = 32
FP6_BITS = 6 + 8 / BLOCK  # E2M3 element and its share of the scale
INT8_BITS = 8 + 8 / BLOCK

_E2M3_EMAX, _E2M3_MAX = 2, 7.5
_MANTISSA_BITS = 3
_MIN_SCALE, _MAX_SCALE = -127, 127
_SCALE_BIAS = 127

# All E2M3 magnitudes by code: exponent 0 is subnormal; and the code of each magnitude in eighths.
E2M3_MAGNITUDES = tuple(code / 8 if code < 8 else 2.0 ** (code // 8 - 1) * (1 + code % 8 / 8) for code in range(32))
_VALUE_OF_CODE = np.array([*E2M3_MAGNITUDES, *(-value for value in E2M3_MAGNITUDES)], np.float32)
_CODE_OF_EIGHTHS = np.zeros(61, np.uint8)
_CODE_OF_EIGHTHS[[round(magnitude * 8) for magnitude in E2M3_MAGNITUDES]] = np.arange(32)

_FIELD_SHIFT = 23
_EXPONENT_FIELD = 0xFF << _FIELD_SHIFT
_SMALLEST_FAST = 16 << _FIELD_SHIFT

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def round_fp6(values: Float32, *, axis: int) -> Float32:
    """``values`` rounded to MXFP6 (E2M3, bias 1, subnormals, no infinities) in blocks of 32 along ``axis``.

    Args:
        values: any shape; finite.
        axis: the reduction axis of a matrix product.
    """
    return _round(values, axis=axis, emax=_E2M3_EMAX, largest=_E2M3_MAX, floats=True)


def round_int8(values: Float32) -> Float32:
    """``values`` rounded to MXINT8 (two's complement with six fractional bits, at most 127/64) along the last axis."""
    return _round(values, axis=-1, emax=0, largest=127 / 64, floats=False)


def encode_fp6(values: Float32, *, axis: int) -> tuple[Bytes, Bytes]:
    """The MXFP6 form of ``values``: elements packed four to three bytes, and scales.

    Returns:
        Packed elements of the array [before, axis filled up to whole blocks, after] in its flat order, lowest bits
        first; scales (E8M0, bias 127) of [before, blocks, after]. An element's code is sign, exponent, mantissa.
    """
    blocks = _blocks(values, axis=axis % values.ndim)
    rounded = _round_blocks(blocks, emax=_E2M3_EMAX, largest=_E2M3_MAX, floats=True)
    scale_exponent = np.clip(_exponent(np.abs(blocks).max(axis=2, keepdims=True)) - _E2M3_EMAX, _MIN_SCALE, _MAX_SCALE)
    # In two steps, since fp32 has no number as large as the inverse of the smallest scale.
    half = scale_exponent // 2
    eighths = rounded * np.ldexp(np.float32(8), -half)
    eighths *= np.ldexp(np.float32(1), half - scale_exponent)
    signs = (rounded.view(np.uint32) >> 26).astype(np.uint8) & 32
    codes = _CODE_OF_EIGHTHS[np.abs(eighths, out=eighths).astype(np.uint8)] | signs
    first, second, third, fourth = np.ascontiguousarray(codes.reshape(-1, 4).T)
    packed = np.stack([first | (second << 6), (second >> 2) | (third << 4), (third >> 4) | (fourth << 2)], axis=1)
    return packed.astype(np.uint8), (scale_exponent + _SCALE_BIAS).astype(np.uint8)


def decode_fp6(data: Bytes, *, dims: Sequence[int], axis: int) -> Float32:
    """The values of a weight that :func:`encode_fp6` has packed.

    Args:
        data: packed elements, then scales.
        dims: shape of the weight.
        axis: that it was packed along.
    """
    outer, length, inner = prod(dims[:axis]), dims[axis], prod(dims[axis + 1 :])
    num_blocks = -(-length // BLOCK)
    num_packed = outer * num_blocks * BLOCK * inner * 3 // 4
    first, second, third = np.ascontiguousarray(data[:num_packed].reshape(-1, 3).T)
    codes = np.empty((len(first), 4), np.uint8)
    codes[:, 0] = first & 63
    codes[:, 1] = (first >> 6) | ((second & 15) << 2)
    codes[:, 2] = (second >> 4) | ((third & 3) << 4)
    codes[:, 3] = third >> 2
    values = _VALUE_OF_CODE[codes].reshape(outer, num_blocks, BLOCK, inner)
    exponents = data[num_packed:].reshape(outer, num_blocks, 1, inner).astype(np.int32) - _SCALE_BIAS
    values *= np.ldexp(np.float32(1), exponents)
    return np.ascontiguousarray(values.reshape(outer, num_blocks * BLOCK, inner)[:, :length].reshape(dims))


def _round(values: Float32, *, axis: int, emax: int, largest: float, floats: bool) -> Float32:
    if values.size == 0:
        return values.astype(np.float32)
    axis %= values.ndim
    blocks = _blocks(values, axis=axis)
    result = _round_blocks(blocks, emax=emax, largest=largest, floats=floats)
    outer, num_blocks, _, inner = blocks.shape
    return result.reshape(outer, num_blocks * BLOCK, inner)[:, : values.shape[axis]].reshape(values.shape)


def _blocks(values: Float32, *, axis: int) -> Float32:
    """``values`` as [before, blocks, 32, after], the axis filled with zeros."""
    outer, length, inner = prod(values.shape[:axis]), values.shape[axis], prod(values.shape[axis + 1 :])
    whole = np.asarray(values, dtype=np.float32).reshape(outer, length, inner)
    if length % BLOCK:
        whole = np.pad(whole, ((0, 0), (0, -length % BLOCK), (0, 0)))
    return whole.reshape(outer, -1, BLOCK, inner)


def _round_blocks(blocks: Float32, *, emax: int, largest: float, floats: bool) -> Float32:
    """Round blocks along axis 2, on the exponent fields of the numbers alone as long as no power of two underflows."""
    field = blocks.view(np.int32) & _EXPONENT_FIELD
    top = field.max(axis=2, keepdims=True)
    # The field of subnormal numbers is that of zero.
    small = top < _SMALLEST_FAST
    if np.any(top == _EXPONENT_FIELD) or (np.any(small) and np.any(np.where(small, blocks, 0))):
        return _round_extreme_blocks(blocks, emax=emax, largest=largest, floats=floats)
    scale = np.maximum(top, _SMALLEST_FAST) - (emax << _FIELD_SHIFT)
    # Below 1.0 elements of a floating format are subnormal, so the step stops shrinking there.
    step = (np.maximum(field, scale) - (_MANTISSA_BITS << _FIELD_SHIFT)) if floats else scale - (6 << _FIELD_SHIFT)
    steps = step.view(np.float32)
    rounded: Float32 = np.divide(blocks, steps)
    np.rint(rounded, out=rounded)
    rounded *= steps
    limit = scale.view(np.float32) * np.float32(largest)
    np.clip(rounded, -limit, limit, out=rounded)
    return rounded


def _round_extreme_blocks(blocks: Float32, *, emax: int, largest: float, floats: bool) -> Float32:
    """The same with steps that fp32 itself could not hold."""
    top = np.max(np.abs(blocks), axis=2, keepdims=True)
    scale_exponent = np.clip(_exponent(top) - emax, _MIN_SCALE, _MAX_SCALE)
    step_exponent = np.maximum(_exponent(blocks), scale_exponent) - _MANTISSA_BITS if floats else scale_exponent - 6
    wide = blocks.astype(np.float64)
    rounded = np.ldexp(np.rint(np.ldexp(wide, -step_exponent)), step_exponent)
    limit = np.ldexp(np.float64(largest), scale_exponent)
    return np.clip(rounded, -limit, limit).astype(np.float32)


def _exponent(values: Float32) -> npt.NDArray[np.int32]:
    """floor(log2 |x|); of zero, less than of any number."""
    mantissa, exponent = np.frexp(values)
    return np.where(mantissa == 0, -(1 << 10), exponent - 1).astype(np.int32)
