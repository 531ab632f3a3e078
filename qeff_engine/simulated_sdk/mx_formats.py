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
    top = np.max(np.abs(blocks), axis=2, keepdims=True)
    scale_exponent = np.clip(_exponent(top) - emax, _MIN_SCALE, _MAX_SCALE)
    if floats:
        # Below 1.0 elements are subnormal, so the step stops shrinking there.
        step_exponent = np.maximum(_exponent(blocks), scale_exponent) - _MANTISSA_BITS
    else:
        step_exponent = scale_exponent - 6
    rounded = np.rint(_scaled(blocks, -step_exponent))
    limit = _scaled(np.float32(largest), scale_exponent)
    result = np.clip(_scaled(rounded, step_exponent), -limit, limit)
    return result.reshape(outer, length + padded, inner)[:, :length].reshape(values.shape)


def _exponent(values: Float32) -> npt.NDArray[np.int32]:
    """floor(log2 |x|) by the bits; -126 for zero and subnormal numbers, whose blocks hold nothing else of weight."""
    bits = (values.view(np.int32) >> 23) & 0xFF
    exponent: npt.NDArray[np.int32] = np.maximum(bits, 1) - 127
    return exponent


def _scaled(values: npt.ArrayLike, exponent: npt.NDArray[np.int32]) -> Float32:
    """``values`` times two to the ``exponent``, exactly."""
    return np.ldexp(np.asarray(values, dtype=np.float32), exponent)
