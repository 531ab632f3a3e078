"""Invalid indices: the card skips such reads and drops such writes, wherever the operator stands."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import sentinels
from qeff_engine.simulated_sdk.static_values import StaticValues
from tests.unit.qeff_engine.simulated_sdk import graphs

_INVALID = (-1, 2147483647, -2147483648)
_DATA = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)


def _run(node, indices, *, updates=None, in_function=False):
    """The rewritten operator on :data:`_DATA`, in the main graph or inside a function."""
    arrays = {"data": _DATA, "indices": indices} | ({} if updates is None else {"updates": updates})
    nodes, functions = [node], []
    if in_function:
        functions = [helper.make_function("f", "F", list(arrays), ["y"], [node], [helper.make_opsetid("", 18)])]
        nodes = [helper.make_node("F", list(arrays), ["y"], domain="f")]
    kinds = {"data": TensorProto.FLOAT, "updates": TensorProto.FLOAT}
    integer = TensorProto.INT32 if indices.dtype == np.int32 else TensorProto.INT64
    model = graphs.model(
        nodes,
        inputs={name: (kinds.get(name, integer), array.shape) for name, array in arrays.items()},
        outputs={"y": (TensorProto.FLOAT, None)},
        opsets={"f": 1},
        functions=functions,
    )
    sentinels.apply(model, static=StaticValues(model))
    (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, arrays)
    return result


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("invalid", _INVALID)
def test_reads_by_tuples_are_skipped(in_function, dtype, invalid):
    node = helper.make_node("GatherND", ["data", "indices"], ["y"], batch_dims=2)
    indices = np.full((2, 3, 2, 1), 3, dtype)
    indices[:, :, 1] = invalid
    got = _run(node, indices, in_function=in_function)
    np.testing.assert_array_equal(got[..., 0], _DATA[..., 3])
    np.testing.assert_array_equal(got[..., 1], _DATA[..., 0], err_msg="a skipped read finds the first element")


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_reads_along_an_axis_are_skipped(axis):
    size = _DATA.shape[axis]
    node = helper.make_node("Gather", ["data", "indices"], ["y"], axis=axis)
    got = _run(node, np.array([[size - 1, -1], [size, 0]]))
    np.testing.assert_array_equal(got, np.take(_DATA, [[size - 1, 0], [0, 0]], axis=axis))
    node = helper.make_node("GatherElements", ["data", "indices"], ["y"], axis=axis)
    indices = np.random.default_rng(0).integers(-3, 6, _DATA.shape)
    valid = np.where((indices >= 0) & (indices < size), indices, 0)
    np.testing.assert_array_equal(_run(node, indices), np.take_along_axis(_DATA, valid, axis))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-2, 3), st.integers(-2, 4)), min_size=1, max_size=5, unique=True), st.booleans())
def test_writes_by_tuples_are_dropped_when_any_number_is_invalid(tuples, in_function):
    updates = np.arange(-1, -1 - 4 * len(tuples), -1, dtype=np.float32).reshape(-1, 4)
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"])
    got = _run(node, np.array(tuples), updates=updates, in_function=in_function)
    expected = _DATA.copy()
    for (first, second), update in zip(tuples, updates, strict=True):
        if 0 <= first < 2 and 0 <= second < 3:
            expected[first, second] = update
    np.testing.assert_array_equal(got, expected)


@settings(max_examples=40)
@given(st.lists(st.integers(-2, 6), min_size=2, max_size=2, unique=True), st.sampled_from([1, 2, -1]))
def test_writes_along_an_axis_are_dropped(places, axis):
    shape = list(_DATA.shape)
    shape[axis] = len(places)
    along = [1] * 3
    along[axis] = len(places)
    indices = np.broadcast_to(np.array(places).reshape(along), shape)
    updates = -np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    node = helper.make_node("ScatterElements", ["data", "indices", "updates"], ["y"], axis=axis)
    got = _run(node, np.ascontiguousarray(indices), updates=updates)
    expected = _DATA.copy()
    for number, place in enumerate(places):
        if 0 <= place < _DATA.shape[axis]:
            np.moveaxis(expected, axis, 0)[place] = np.moveaxis(updates, axis, 0)[number]
    np.testing.assert_array_equal(got, expected)


def test_indices_known_at_compile_time_keep_the_meaning_of_onnx():
    nodes = [
        helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array(-1))),
        helper.make_node("Gather", ["data", "last"], ["y"], axis=1),
    ]
    model = graphs.model(
        nodes, inputs={"data": (TensorProto.FLOAT, [2, 3, 4])}, outputs={"y": (TensorProto.FLOAT, [2, 4])}
    )
    sentinels.apply(model, static=StaticValues(model))
    assert [node.op_type for node in model.graph.node] == ["Constant", "Gather"]


def test_a_function_called_with_a_constant_and_with_data_checks_its_index():
    body = [helper.make_node("Gather", ["a", "i"], ["out"], axis=0)]
    function = helper.make_function("f", "F", ["a", "i"], ["out"], body, [helper.make_opsetid("", 18)])
    model = graphs.model(
        [
            helper.make_node("F", ["data", "constant"], ["first"], domain="f"),
            helper.make_node("F", ["data", "index"], ["second"], domain="f"),
            helper.make_node("Add", ["first", "second"], ["y"]),
        ],
        inputs={"data": (TensorProto.FLOAT, [2, 3]), "index": (TensorProto.INT64, [1])},
        outputs={"y": (TensorProto.FLOAT, [1, 3])},
        weights={"constant": np.array([1])},
        opsets={"f": 1},
        functions=[function],
    )
    sentinels.apply(model, static=StaticValues(model))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    (got,) = session.run(None, {"data": data, "index": np.array([2147483647])})
    np.testing.assert_array_equal(got, data[1:] + data[:1])
