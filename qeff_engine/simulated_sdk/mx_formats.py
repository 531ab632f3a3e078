"""OCP Microscaling formats: values rounded to what blocks of MXFP6 and MXINT8 can hold.

A block is 32 elements that share one power-of-two scale (E8M0). Rounding is to nearest, halves to even, saturating; the
standard leaves the rounding open. Source: OCP Microscaling Formats v1.0 and Microsoft's reference emulator
(microsoft/microxcaling), which rounds halves away from zero by default.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 32
FP6_BITS = 6 + 8 / BLOCK  # E2M3 element and its share of the scale
INT8_BITS = 8 + 8 / BLOCK

_E2M3_EMAX, _E2M3_MAX = 2, 7.5
_MANTISSA_BITS = 3
_MIN_SCALE, _MAX_SCALE = -127, 127

_FIELD_SHIFT = 23
_EXPONENT_FIELD = 0xFF << _FIELD_SHIFT
_SMALLEST_FAST = 16 << _FIELD_SHIFT

Float32 = npt.NDArray[np.float32]


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


def _round(values: Float32, *, axis: int, emax: int, largest: float, floats: bool) -> Float32:
    if values.size == 0:
        return values.astype(np.float32)
    axis %= values.ndim
    outer, length, inner = (
        int(np.prod(values.shape[:axis])),
        values.shape[axis],
        int(np.prod(values.shape[axis + 1 :])),
    )
    padded = -length % BLOCK
    blocks_obi = np.asarray(values, dtype=np.float32).reshape(outer, length, inner)
    if padded:
        blocks_obi = np.pad(blocks_obi, ((0, 0), (0, padded), (0, 0)))
    blocks = blocks_obi.reshape(outer, -1, BLOCK, inner)
    result = _round_blocks(blocks, emax=emax, largest=largest, floats=floats)
    return result.reshape(outer, length + padded, inner)[:, :length].reshape(values.shape)


def _round_blocks(blocks: Float32, *, emax: int, largest: float, floats: bool) -> Float32:
    """Round blocks along axis 2, on the exponent fields of the numbers alone as long as no power of two underflows."""
    field = blocks.view(np.int32) & _EXPONENT_FIELD
    top = field.max(axis=2, keepdims=True)
    if np.any((top > 0) & (top < _SMALLEST_FAST)) or np.any(top == _EXPONENT_FIELD):
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
