"""MX formats against a slow reference that works with lists of all representable values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from qeff_engine.simulated_sdk import mx_formats

# Every magnitude of an E2M3 element: exponent field 0 is subnormal (steps of 1/8), bias 1.
_E2M3 = sorted(
    {mantissa / 8 for mantissa in range(8)}
    | {2.0 ** (field - 1) * (1 + mantissa / 8) for field in (1, 2, 3) for mantissa in range(8)}
)
_INT8 = [code / 64 for code in range(128)]


def _nearest_even(magnitude: float, grid: list[float]) -> float:
    """The nearest grid value; of two equally near ones that with the even code, which is the even position."""
    best = min(abs(magnitude - value) for value in grid)
    near = [number for number, value in enumerate(grid) if abs(magnitude - value) == best]
    return grid[next((number for number in near if number % 2 == 0), near[0])]


def _reference_block(block: list[float], *, emax: int, grid: list[float]) -> list[float]:
    top = max(abs(value) for value in block)
    if top == 0.0:
        return [0.0] * len(block)
    scale = 2.0 ** max(math.frexp(top)[1] - 1 - emax, -127)
    return [math.copysign(_nearest_even(min(abs(v) / scale, grid[-1]), grid) * scale, v) for v in block]


def _reference(values: np.ndarray, *, emax: int, grid: list[float]) -> np.ndarray:
    flat = [
        _reference_block([float(v) for v in row[start : start + 32]], emax=emax, grid=grid)
        for row in values
        for start in range(0, len(row), 32)
    ]
    return np.array([value for block in flat for value in block], np.float32).reshape(values.shape)


def test_fp6_has_the_documented_values():
    assert len(_E2M3) == 32
    assert (_E2M3[1], _E2M3[8], _E2M3[-1]) == (0.125, 1.0, 7.5)
    assert mx_formats.FP6_BITS == 6.25
    assert mx_formats.INT8_BITS == 8.25


def _all_nearest_even(magnitudes: np.ndarray, grid: list[float]) -> np.ndarray:
    """:func:`_nearest_even` of many numbers."""
    distances = np.abs(magnitudes[:, None] - np.array(grid))
    near = distances == distances.min(axis=1, keepdims=True)
    even = near & (np.arange(len(grid)) % 2 == 0)
    return np.array(grid)[np.where(even.any(axis=1), even.argmax(axis=1), near.argmax(axis=1))]


def test_every_positive_fp16_number_rounds_to_fp6_as_the_reference_says():
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    # Beside largest numbers of 8 binades, so that each meets normal and subnormal steps.
    for top in np.exp2(np.arange(-24, 16, 5, dtype=np.float32)) * np.float32(1.75):
        below = numbers[numbers <= top]
        blocks = np.zeros((len(below), 32), np.float32)
        blocks[:, 0], blocks[:, 1], blocks[:, 2] = top, below, -below
        rounded = mx_formats.round_fp6(blocks, axis=1)
        scale = 2.0 ** (math.frexp(float(top))[1] - 1 - 2)
        expected = (_all_nearest_even(below.astype(np.float64) / scale, _E2M3) * scale).astype(np.float32)
        np.testing.assert_array_equal(rounded[:, 1], expected)
        np.testing.assert_array_equal(rounded[:, 2], -expected)


def test_every_multiple_of_an_eighth_step_rounds_to_int8_as_the_reference_says():
    values = np.arange(-128 * 8, 128 * 8 + 1, dtype=np.float32) / (64 * 8)
    blocks = np.zeros((len(values), 32), np.float32)
    blocks[:, 0], blocks[:, 1] = 1.99, values
    np.testing.assert_array_equal(
        mx_formats.round_int8(blocks), _reference(blocks, emax=0, grid=_INT8), err_msg="halves go to even codes"
    )


@pytest.mark.parametrize("exponent", [-140, -130, -126, -119, -111, -110, -20, 0, 100, 126])
def test_small_and_large_scales_are_exact(exponent):
    block = (np.arange(32, dtype=np.float64) / 16 * 2.0**exponent).astype(np.float32)[None]
    got = mx_formats.round_fp6(block, axis=1)
    np.testing.assert_array_equal(got, _reference(block, emax=2, grid=_E2M3))


@settings(max_examples=60)
@given(
    st_numpy.arrays(
        np.float32,
        st_numpy.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_any_matrix_rounds_as_the_reference_says(values):
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % 32)))
    width = values.shape[1]
    fp6 = _reference(padded, emax=2, grid=_E2M3)[:, :width]
    np.testing.assert_array_equal(mx_formats.round_fp6(values, axis=1), fp6)
    np.testing.assert_array_equal(mx_formats.round_fp6(values.T, axis=0), fp6.T)
    int8 = _reference(padded, emax=0, grid=_INT8)[:, :width]
    np.testing.assert_array_equal(mx_formats.round_int8(values), int8)


@settings(max_examples=60)
@given(st_numpy.arrays(np.float32, (2, 32), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_rounding_twice_changes_nothing(values):
    once = mx_formats.round_int8(values)
    np.testing.assert_array_equal(mx_formats.round_int8(once), once)
    once = mx_formats.round_fp6(values, axis=1)
    np.testing.assert_array_equal(mx_formats.round_fp6(once, axis=1), once)


def test_blocks_along_a_middle_axis_are_those_of_the_moved_axis():
    values = np.random.default_rng(5).normal(size=(3, 40, 5)).astype(np.float32)
    moved = mx_formats.round_fp6(np.ascontiguousarray(np.moveaxis(values, 1, 2)), axis=2)
    np.testing.assert_array_equal(mx_formats.round_fp6(values, axis=1), np.moveaxis(moved, 2, 1))


def _reference_codes(data: bytes) -> list[int]:
    """Six-bit codes, lowest bits first."""
    bits = int.from_bytes(data, "little")
    return [(bits >> (6 * number)) & 63 for number in range(len(data) * 8 // 6)]


def test_packed_elements_are_e2m3_codes_and_e8m0_scales():
    block = np.zeros((1, 32), np.float32)
    block[0, :5] = [7.5, -0.125, 1.0, -6.5, 0.875]
    packed, scales = mx_formats.encode_fp6(block * 4, axis=1)
    assert scales.reshape(-1).tolist() == [127 + 2]
    # Sign, two bits of exponent, three of mantissa.
    assert _reference_codes(packed.tobytes())[:5] == [0b0_11_111, 0b1_00_001, 0b0_01_000, 0b1_11_101, 0b0_00_111]
    assert packed.size + scales.size == 32 * 6.25 / 8


@settings(max_examples=60)
@given(
    st_numpy.arrays(
        np.float32,
        st_numpy.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40),
        elements=st.one_of(st.floats(-1e6, 1e6, width=32), st.floats(-(2.0**-110), 2.0**-110, width=32)),
    ),
    st.integers(0, 2),
)
def test_unpacking_gives_the_rounded_values(values, axis):
    axis %= values.ndim
    packed, scales = mx_formats.encode_fp6(values, axis=axis)
    data = np.concatenate([packed.reshape(-1), scales.reshape(-1)])
    unpacked = mx_formats.decode_fp6(data, dims=values.shape, axis=axis)
    np.testing.assert_array_equal(unpacked, mx_formats.round_fp6(values, axis=axis))
