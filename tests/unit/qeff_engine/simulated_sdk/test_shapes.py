"""Static shapes and work of a graph, where sizes are computed inside it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import op_records, shapes
from qeff_engine.simulated_sdk.refusal import Refusal
from tests.unit.qeff_engine.simulated_sdk import graphs

_FP16 = op_records.Forms(to_fp16=True, mxfp6=False)


def _flops(shape):
    return sum(item.count * item.flops for item in shape.operations)


def _constant(name, values, dtype=np.int64):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, dtype)))


def test_shapes_go_through_reshapes_to_computed_sizes():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        _constant("zero", 0),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        _constant("axis", [0]),
        helper.make_node("Unsqueeze", ["rows", "axis"], ["rows1"]),
        _constant("heads", [4]),
        _constant("rest", [-1]),
        helper.make_node("Concat", ["rows1", "heads", "rest"], ["split"], axis=0),
        helper.make_node("Reshape", ["x", "split"], ["by_head"]),
        helper.make_node("Transpose", ["by_head"], ["swapped"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["by_head", "swapped"], ["y"]),
    ]
    model = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["rows", 32])},
        outputs={"y": (TensorProto.FLOAT, ["a", "b", "c"])},
    )
    found = shapes.specialize(model, symbols={"rows": 5}, forms=_FP16)
    assert found.inputs == {"x": (5, 32)}
    assert found.outputs == {"y": (5, 4, 4)}
    assert [(item.kind, item.count, item.flops) for item in found.operations] == [("product", 1, 2 * 5 * 4 * 4 * 8)]


@pytest.mark.parametrize(
    ("node", "values"),
    [
        (helper.make_node("Slice", ["v", "c1", "c3"], ["y"]), [3, 5]),
        (helper.make_node("Slice", ["v", "c0", "c9", "c0", "c2"], ["y"]), [2, 5]),
        (helper.make_node("Gather", ["v", "cm1"], ["y"]), [7]),
        (helper.make_node("Div", ["vm", "c2"], ["y"]), [-1, -2, -2, -3]),
        (helper.make_node("Range", ["s0", "s4", "s1"], ["y"]), [0, 1, 2, 3]),
        (helper.make_node("ReduceProd", ["v"], ["y"], keepdims=1), [210]),
        (helper.make_node("Max", ["v", "c3"], ["y"]), [3, 3, 5, 7]),
        (helper.make_node("Where", ["mask", "v", "c0"], ["y"]), [2, 0, 5, 0]),
        (helper.make_node("ConstantOfShape", ["c3"], ["y"], value=helper.make_tensor("t", 7, [1], [9])), [9, 9, 9]),
        (helper.make_node("Cast", ["v"], ["y"], to=TensorProto.INT64), [2, 3, 5, 7]),
    ],
)
def test_integers_are_computed_as_onnx_runtime_computes_them(node, values):
    constants = [
        _constant("v", [2, 3, 5, 7]),
        _constant("vm", [-2, -4, -5, -7]),
        _constant("mask", [True, False, True, False], np.bool_),
        *(_constant(f"c{number}", [number]) for number in (0, 1, 2, 3, 9)),
        *(_constant(f"s{number}", number) for number in (0, 1, 4)),
        _constant("cm1", [-1]),
    ]
    model = graphs.model(
        [
            *constants,
            node,
            helper.make_node("Abs", ["y"], ["sizes"]),
            helper.make_node("Expand", ["x", "sizes"], ["z"]),
        ],
        inputs={"x": (TensorProto.FLOAT, [1])},
        outputs={"y": (TensorProto.INT64, None), "z": (TensorProto.FLOAT, None)},
    )
    assert shapes.specialize(model, symbols={}, forms=_FP16).outputs == {
        "y": (len(values),),
        "z": tuple(map(abs, values)),
    }
    del model.graph.node[-2:], model.graph.output[1:]
    (computed,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["y"], {"x": np.zeros(1, np.float32)})
    assert computed.tolist() == values


def test_work_inside_functions_counts_once_for_each_call():
    body = [helper.make_node("MatMul", ["a", "b"], ["out"])]
    function = helper.make_function("f", "F", ["a", "b"], ["out"], body, [helper.make_opsetid("", 18)])
    model = graphs.model(
        [
            helper.make_node("F", ["x", "w"], ["h"], domain="f"),
            helper.make_node("F", ["h", "w"], ["y"], domain="f"),
        ],
        inputs={"x": (TensorProto.FLOAT, ["rows", 16])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 16])},
        weights={"w": np.zeros((16, 16), np.float32)},
        opsets={"f": 1},
        functions=[function],
    )
    assert _flops(shapes.specialize(model, symbols={"rows": 3}, forms=_FP16)) == 2 * (2 * 3 * 16 * 16)
    assert _flops(shapes.specialize(model, symbols={"rows": 6}, forms=_FP16)) == 2 * (2 * 6 * 16 * 16)


def test_a_convolution_and_a_gemm_count_their_work():
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("Flatten", ["c"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"], transB=1),
    ]
    model = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [1, 3, 6, 6])},
        outputs={"y": (TensorProto.FLOAT, [1, 10])},
        weights={"kernel": np.zeros((8, 3, 3, 3), np.float32), "w": np.zeros((10, 128), np.float32)},
    )
    assert _flops(shapes.specialize(model, symbols={}, forms=_FP16)) == 2 * 8 * 16 * 27 + 2 * 128 * 10


def test_products_that_do_not_fit_are_refused_with_their_name():
    model = graphs.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="/lm_head/MatMul")],
        inputs={"x": (TensorProto.FLOAT, ["rows", 16])},
        outputs={"y": (TensorProto.FLOAT, ["rows", 4])},
        weights={"w": np.zeros((17, 4), np.float32)},
    )
    with pytest.raises(Refusal, match=r"\[Operator-'/lm_head/MatMul', opset_version-18, ir_version-10\] : MatMul: "):
        shapes.specialize(model, symbols={"rows": 1}, forms=_FP16)


def test_an_output_behind_a_loop_is_found_by_running(tmp_path, compile_in, runtime):
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["state", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    model = graphs.model(
        [helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)],
        inputs={"x": (TensorProto.FLOAT, ["rows", 3])},
        outputs={"y": (TensorProto.FLOAT, ["unknown", 3])},
        weights={"times": np.array(3), "yes": np.array(True)},
    )
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    assert compile_in(path, specializations=[{"rows": "2"}]) == 0
    client = graphs.Client(*runtime, program=tmp_path / "qpc")
    client.activate()
    x = np.ones((2, 3), np.float32)
    got = client.call(client.exec_object(), {"x": x}, outputs={"y": x})["y"]
    np.testing.assert_array_equal(got, 8 * x)
