"""What the opaque nodes of our graphs compute, as ONNX functions that ONNX Runtime expands.

Domains and names are those that the Cloud AI compiler has kernels for.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

OPSET = 18
_IMPORTS = [helper.make_opsetid("", OPSET)]


def add_to(model: ir.Model) -> None:
    """Add the functions whose nodes the model has, in its graph or in other functions."""
    used = {(node.domain, node.op_type) for graph in (model.graph, *model.functions.values()) for node in graph}
    for proto in (ctx_scatter(), rms_norm()):
        if (proto.domain, proto.name) in used:
            function = ir.serde.deserialize_function(proto)
            model.functions[function.identifier()] = function


def ctx_scatter() -> onnx.FunctionProto:
    """past [B, H, C, D] with new [B, H, S, D] written at slots [B, S]; negative slots write nothing.

    Negative slots are sent to a row C that is appended and cut off again.
    """
    nodes = [
        *(_constant(name, [value]) for name, value in (("zero", 0), ("one", 1), ("two", 2), ("three", 3), ("four", 4))),
        _constant("head_and_dim", [1, 3]),
        helper.make_node("Cast", ["slots"], ["slots_i64"], to=TensorProto.INT64),
        helper.make_node("Shape", ["past"], ["past_shape"]),
        helper.make_node("Shape", ["new"], ["new_shape"]),
        helper.make_node("Slice", ["past_shape", "zero", "two"], ["batch_and_heads"]),
        helper.make_node("Slice", ["past_shape", "two", "three"], ["ctx_len"]),
        helper.make_node("Slice", ["past_shape", "three", "four"], ["dim"]),
        helper.make_node("Concat", ["batch_and_heads", "one", "dim"], ["row_shape"], axis=0),
        helper.make_node("CastLike", ["zero", "past"], ["empty"]),
        helper.make_node("Expand", ["empty", "row_shape"], ["row"]),
        helper.make_node("Concat", ["past", "row"], ["extended"], axis=2),
        helper.make_node("Less", ["slots_i64", "zero"], ["is_padding"]),
        helper.make_node("Where", ["is_padding", "ctx_len", "slots_i64"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "head_and_dim"], ["rows_4d"]),
        helper.make_node("Expand", ["rows_4d", "new_shape"], ["indices"]),
        helper.make_node("ScatterElements", ["extended", "indices", "new"], ["written"], axis=2),
        helper.make_node("Slice", ["written", "zero", "ctx_len", "two"], ["out"]),
    ]
    return helper.make_function(
        "com.qualcomm.cloud", "CtxScatter", ["past", "slots", "new"], ["out"], nodes, opset_imports=_IMPORTS
    )


def rms_norm() -> onnx.FunctionProto:
    """x / sqrt(mean(x ** 2) + epsilon) * weight over the last axis, in float32."""
    epsilon = helper.make_node("Constant", [], ["epsilon"])
    reference = epsilon.attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "value_float", "epsilon", onnx.AttributeProto.FLOAT
    nodes = [
        epsilon,
        _constant("last", [-1]),
        helper.make_node("Cast", ["x"], ["x_f32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_f32", "x_f32"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "last"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "epsilon"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["rms"]),
        helper.make_node("Div", ["x_f32", "rms"], ["normed"]),
        helper.make_node("Cast", ["weight"], ["weight_f32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["normed", "weight_f32"], ["scaled"]),
        helper.make_node("CastLike", ["scaled", "x"], ["y"]),
    ]
    return helper.make_function(
        "com.qti.aisw.onnx",
        "CustomRMSNorm",
        ["x", "weight"],
        ["y"],
        nodes,
        opset_imports=_IMPORTS,
        attributes=["epsilon"],
    )


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=tensor)
