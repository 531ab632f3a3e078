"""fp16 graphs in fp32: ONNX Runtime lacks most fp16 operators on a processor, and casts as it sees fit around them.

Every fp16 value of a graph becomes fp32; what it shall be rounded to is said by explicit casts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import graph_walk
from qeff_engine.simulated_sdk.onnx_reading import Weight

# Beginning of the names of all casts that round, by which the runtime finds them.
ROUNDING = "fp16_rounding/"
SMALL_BYTES = 1024  # initializers up to this size stay inside the graph


def rounding(name: str, *, output: str) -> Iterator[onnx.NodeProto]:
    """Nodes that round an fp32 value to fp16 and give it back as fp32."""
    half = f"{output}.cast"
    yield helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16, name=f"{ROUNDING}{output}.0")
    yield helper.make_node("Cast", [half], [output], to=TensorProto.FLOAT, name=f"{ROUNDING}{output}.1")


def without_rounding(model: onnx.ModelProto) -> None:
    """Take all roundings of values, but not those of constants, out of a program's graph again, in place."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in graph_walk.all_nodes(nodes):
            if node.name.startswith(ROUNDING):
                node.op_type = "Identity"
                del node.attribute[:]


def widen(model: onnx.ModelProto, *, weights: dict[str, Weight]) -> None:
    """Let every fp16 value of ``model`` be fp32, in place; large weights are cast where they are read, by the lowering.

    Args:
        model: its values are rounded already where they must be.
        weights: its initializers, changed too.
    """
    graph = model.graph
    for number, tensor in enumerate(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT16 and weights[tensor.name].num_bytes <= SMALL_BYTES:
            weights[tensor.name] = small_weight(tensor.name, values=values_of(weights[tensor.name]))
            graph.initializer[number].CopyFrom(
                numpy_helper.from_array(values_of(weights[tensor.name]), name=tensor.name)
            )
    _widen_graph(graph)
    for function in model.functions:
        _replace_nodes(function)


def small_weight(name: str, *, values: npt.NDArray[np.float32]) -> Weight:
    """An fp32 weight that stays inside the graph."""
    data = np.ascontiguousarray(values, np.float32).tobytes()
    return Weight(name=name, onnx_type=TensorProto.FLOAT, dims=values.shape, path=None, offset=0, data=data)


def values_of(weight: Weight) -> npt.NDArray[np.float32]:
    """All values of a floating weight, as fp32."""
    return weight.floats(start=0, stop=int(np.prod(weight.dims, dtype=np.int64))).reshape(weight.dims)


def _widen_graph(graph: onnx.GraphProto) -> None:
    for item in (*graph.input, *graph.output, *graph.value_info):
        if item.type.tensor_type.elem_type == TensorProto.FLOAT16:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    _replace_nodes(graph)


def _replace_nodes(holder: onnx.GraphProto | onnx.FunctionProto) -> None:
    nodes = list(_widened(holder.node))
    del holder.node[:]
    holder.node.extend(nodes)


def _widened(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        for body in graph_walk.subgraphs(node):
            for number, tensor in enumerate(body.initializer):
                if tensor.data_type == TensorProto.FLOAT16:
                    body.initializer[number].CopyFrom(_as_fp32(tensor))
            _widen_graph(body)
        if node.name.startswith(ROUNDING):
            yield node
        elif (
            graph_walk.is_onnx(node, "Cast") and graph_walk.int_attribute(node, "to", default=0) == TensorProto.FLOAT16
        ):
            yield helper.make_node("Cast", [node.input[0]], [f"{node.output[0]}.wide"], to=TensorProto.FLOAT)
            yield from rounding(f"{node.output[0]}.wide", output=node.output[0])
        else:
            _widen_attributes(node)
            yield node


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_as_fp32(attribute.t))
        elif attribute.name in ("dtype", "output_dtype") and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT


def _as_fp32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name=tensor.name)
