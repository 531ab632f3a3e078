import numpy as np
import pytest

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.quantizers import packing


def integers(*, out_features=16, in_features=64, group_size=16, seed=0):
    random = np.random.default_rng(seed)
    groups_I = packing.sequential_groups(in_features, group_size=group_size)
    num_groups = int(groups_I[-1]) + 1
    return packing.Integers(
        q_OI=random.integers(0, 16, (out_features, in_features), dtype=np.uint8),
        scales_OG=random.uniform(0.01, 1, (out_features, num_groups)).astype(np.float16),
        zeros_OG=random.integers(0, 16, (out_features, num_groups), dtype=np.uint8),
        group_of_column_I=groups_I,
    )


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.q_OI, expected.q_OI)
    np.testing.assert_array_equal(actual.zeros_OG, expected.zeros_OG)
    np.testing.assert_array_equal(actual.scales_OG, expected.scales_OG)
    np.testing.assert_array_equal(actual.group_of_column_I, expected.group_of_column_I)


def one_hot(*, row, column, value, zero_row=0, zero=0):
    """Sixteen by sixteen zeros but for one integer, and one zero point (one group per row)."""
    q_OI = np.zeros((16, 16), np.uint8)
    q_OI[row, column] = value
    zeros_OG = np.zeros((16, 1), np.uint8)
    zeros_OG[zero_row, 0] = zero
    return packing.Integers(
        q_OI=q_OI,
        scales_OG=np.ones((16, 1), np.float16),
        zeros_OG=zeros_OG,
        group_of_column_I=np.zeros(16, np.int32),
    )


@pytest.mark.parametrize("value", range(16))
def test_every_gptq_nibble_is_where_the_layout_says(value):
    for row in range(16):
        for column in range(16):
            qweight = packing.pack_gptq(one_hot(row=row, column=column, value=value))["qweight"].view(np.uint32)
            expected = np.zeros((2, 16), np.uint32)
            expected[column // 8, row] = value << (4 * (column % 8))
            np.testing.assert_array_equal(qweight, expected)


@pytest.mark.parametrize("value", range(16))
def test_every_awq_nibble_is_where_the_layout_says(value):
    for row in range(16):
        for column in range(16):
            qweight = packing.pack_awq(one_hot(row=row, column=column, value=value))["qweight"].view(np.uint32)
            expected = np.zeros((16, 2), np.uint32)
            expected[column, row // 8] = value << (4 * [0, 4, 1, 5, 2, 6, 3, 7][row % 8])
            np.testing.assert_array_equal(qweight, expected)


@pytest.mark.parametrize("zero", range(16))
def test_every_zero_point_is_stored_alone(zero):
    for row in range(16):
        case = one_hot(row=0, column=0, value=0, zero_row=row, zero=zero)
        first = packing.pack_gptq(case)["qzeros"].view(np.uint32)
        expected = np.full((1, 2), 0xFFFFFFFF, np.uint32)
        expected[0, row // 8] ^= np.uint32((15 ^ ((zero - 1) & 15)) << (4 * (row % 8)))
        np.testing.assert_array_equal(first, expected)
        second = packing.pack_gptq(case, zero_offset=0)["qzeros"].view(np.uint32)
        assert second[0, row // 8] == zero << (4 * (row % 8))
        awq = packing.pack_awq(case)["qzeros"].view(np.uint32)
        assert awq[0, row // 8] == zero << (4 * [0, 4, 1, 5, 2, 6, 3, 7][row % 8])


@pytest.mark.parametrize("group_size", [16, 32, 24, -1])
@pytest.mark.parametrize("zero_offset", [0, 1])
def test_unpacking_gptq_gives_back_what_was_packed(group_size, zero_offset):
    case = integers(group_size=group_size)
    packed = packing.pack_gptq(case, zero_offset=zero_offset)
    assert {name: value.dtype.name for name, value in packed.items()} == {
        "qweight": "int32",
        "qzeros": "int32",
        "scales": "float16",
        "g_idx": "int32",
    }
    assert_same(packing.unpack_gptq(**packed, group_size=group_size, zero_offset=zero_offset), case)


@pytest.mark.parametrize("group_size", [16, 32, -1])
def test_unpacking_awq_gives_back_what_was_packed(group_size):
    case = integers(group_size=group_size)
    assert_same(packing.unpack_awq(**packing.pack_awq(case), group_size=group_size), case)


@pytest.mark.parametrize(
    ("in_features", "group_size", "block"),
    [
        (64, 16, 16),
        (64, 64, 64),
        (48, 16, 16),
        (96, -1, 32),
        (144, 48, 16),
        (40, -1, 64),
        (80, 32, 32),
        (576, 128, 128),
    ],
)
def test_matmul_nbits_holds_the_same_numbers(in_features, group_size, block):
    case = integers(in_features=in_features, group_size=group_size)
    tensors = packing.to_matmul_nbits(case, name="layer")
    assert tensors.block_size == block
    blocks = -(-in_features // block)
    assert tensors.qweight_OBb.shape == (16, blocks, block // 2)
    assert tensors.qzeros_Oz.shape == (16, -(-blocks // 2))
    back = packing.from_matmul_nbits(tensors)
    np.testing.assert_array_equal(back.q_OI, case.q_OI)
    np.testing.assert_array_equal(back.dequantize(), case.dequantize())


def test_the_low_nibble_of_matmul_nbits_is_the_even_element():
    tensors = packing.to_matmul_nbits(one_hot(row=3, column=6, value=9, zero_row=2, zero=5), name="layer")
    assert tensors.qweight_OBb[3, 0, 3] == 9
    tensors = packing.to_matmul_nbits(one_hot(row=3, column=7, value=9), name="layer")
    assert tensors.qweight_OBb[3, 0, 3] == 9 << 4


def test_columns_in_activation_order_are_brought_together():
    case = integers(group_size=16)
    shuffled_I = np.random.default_rng(1).permutation(case.group_of_column_I).astype(np.int32)
    case = packing.unpack_gptq(**{**packing.pack_gptq(case), "g_idx": shuffled_I}, group_size=16)
    tensors = packing.to_matmul_nbits(case, name="layer")
    assert tensors.order_I is not None
    np.testing.assert_array_equal(packing.from_matmul_nbits(tensors).dequantize(), case.dequantize())


def test_groups_of_different_widths_are_refused_with_the_name_of_the_layer():
    case = integers(group_size=16)
    groups_I = case.group_of_column_I.copy()
    groups_I[0] = 1
    uneven = packing.Integers(
        q_OI=case.q_OI, scales_OG=case.scales_OG, zeros_OG=case.zeros_OG, group_of_column_I=groups_I
    )
    with pytest.raises(Unsupported, match=r"layers\.0\.up has groups of different widths"):
        packing.to_matmul_nbits(uneven, name="layers.0.up")


def test_groups_narrower_than_a_block_are_refused_with_the_name_of_the_layer():
    with pytest.raises(Unsupported, match=r"layers\.0\.up has groups of 8 columns"):
        packing.to_matmul_nbits(integers(group_size=8), name="layers.0.up")


def test_widths_that_are_not_whole_words_are_refused():
    with pytest.raises(InvalidInput, match="12 elements"):
        packing.pack_awq(integers(out_features=12))
