"""Gives gathers and scatters the card's meaning of invalid indices: such reads are skipped, such writes dropped.

The graphs of the reference library mark invalid rows with index 2147483647 and padding with position -1; ONNX has no
valid meaning for the first and another one for the second. So every index that is not known at compile time is checked
in the graph: a read outside ``[0, size)`` reads index 0, a write outside goes to a slot that is cut off again. Indices
known at compile time keep ONNX's meaning, in which negative ones count from the end.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import graph_walk
from qeff_engine.simulated_sdk.static_values import StaticValues

_READS = ("Gather", "GatherElements", "GatherND")
_WRITES = ("ScatterElements", "ScatterND", "Scatter")


def apply(model: onnx.ModelProto, *, static: StaticValues) -> None:
    """Rewrite the gathers and scatters of ``model`` in place, in the main graph and in its functions."""
    rewritten = _nodes(model.graph.node, scope=None, static=static)
    del model.graph.node[:]
    model.graph.node.extend(rewritten)
    for function in model.functions:
        scope = (function.domain, function.name, function.overload)
        nodes = _nodes(function.node, scope=scope, static=static)
        del function.node[:]
        function.node.extend(nodes)


def _nodes(
    nodes: Iterable[onnx.NodeProto], *, scope: graph_walk.FunctionKey | None, static: StaticValues
) -> list[onnx.NodeProto]:
    result: list[onnx.NodeProto] = []
    for number, node in enumerate(nodes):
        for graph in graph_walk.subgraphs(node):
            inner = _nodes(graph.node, scope=scope, static=static)
            del graph.node[:]
            graph.node.extend(inner)
        is_read, is_write = graph_walk.is_onnx(node, *_READS), graph_walk.is_onnx(node, *_WRITES)
        if not (is_read or is_write) or static.is_static(node.input[1], scope=scope):
            result.append(node)
        elif is_read:
            result += _Rewriting(node, number=number).read()
        else:
            result += _Rewriting(node, number=number).write()
    return result


class _Rewriting:
    """New nodes in place of one gather or scatter."""

    def __init__(self, node: onnx.NodeProto, *, number: int) -> None:
        self._node = node
        self._prefix = f"{node.output[0] or node.name}__{number}"
        self._new: list[onnx.NodeProto] = []

    def read(self) -> list[onnx.NodeProto]:
        indices, valid, _ = self._checked()
        safe = self._add("Where", valid, indices, self._constant("zero", [0]))
        self._finish(data=self._node.input[0], indices=safe)
        return self._new

    def write(self) -> list[onnx.NodeProto]:
        """Append a slot along the first indexed axis, send dropped writes there, cut it off again."""
        data = self._node.input[0]
        indices, valid, sizes = self._checked()
        axis = 0
        if self._node.op_type != "ScatterND":
            axis = graph_walk.int_attribute(self._node, "axis", default=0)
            dropped = sizes
        else:
            # All of a dropped index but its first number is 0, which exists on every axis.
            first = self._add("Equal", self._positions(indices), self._constant("zero", [0]))
            dropped = self._add("Where", first, sizes, self._constant("nothing", [0]))
            valid = self._all(valid)
        safe = self._add("Where", valid, indices, dropped)
        where = self._constant("axis", [axis])
        zero, one = self._constant("begin", [0]), self._constant("one", [1])
        row = self._add("Slice", data, zero, one, where)
        padded = self._add("Concat", data, row, axis=axis)
        kept = self._node.output[0]
        self._node.output[0] = f"{self._prefix}_padded"
        self._finish(data=padded, indices=safe)
        size = self._add("Gather", self._add("Shape", data), where)
        self._add("Slice", self._node.output[0], zero, size, where, output=kept)
        return self._new

    def _checked(self) -> tuple[str, str, str]:
        """The indices as int64, a mask of those in range, and the sizes that they index into."""
        data, indices = self._node.input[0], self._node.input[1]
        wide = self._add("Cast", indices, to=TensorProto.INT64)
        shape = self._add("Shape", data)
        if self._node.op_type.endswith("ND"):
            begin = graph_walk.int_attribute(self._node, "batch_dims", default=0)
            depth = self._add("Gather", self._add("Shape", wide), self._constant("last", [-1]))
            end = self._add("Add", depth, self._constant("batch", [begin]))
            sizes = self._add("Slice", shape, self._constant("start", [begin]), end)
        else:
            axis = graph_walk.int_attribute(self._node, "axis", default=0)
            sizes = self._add("Gather", shape, self._constant("which", [axis]))
        negative = self._add("Less", wide, self._constant("low", [0]))
        below = self._add("Less", wide, sizes)
        return wide, self._add("And", self._add("Not", negative), below), sizes

    def _positions(self, indices: str) -> str:
        """0, 1, ... along the last axis of an ND index."""
        depth = self._add("Gather", self._add("Shape", indices), self._scalar("deep", -1))
        return self._add("Range", self._scalar("from", 0), depth, self._scalar("step", 1))

    def _all(self, mask: str) -> str:
        """Whether a whole index tuple is in range, for each of its numbers."""
        numbers = self._add("Cast", mask, to=TensorProto.INT32)
        # Reductions take their axes as attributes or as inputs, depending on the opset; these two do not.
        where = self._add("ArgMin", numbers, axis=-1, keepdims=1)
        return self._add("Cast", self._add("GatherElements", numbers, where, axis=-1), to=TensorProto.BOOL)

    def _finish(self, *, data: str, indices: str) -> None:
        self._node.input[0], self._node.input[1] = data, indices
        self._new.append(self._node)

    def _constant(self, name: str, values: list[int]) -> str:
        return self._value(name, dims=[len(values)], values=values)

    def _scalar(self, name: str, value: int) -> str:
        return self._value(name, dims=[], values=[value])

    def _value(self, name: str, *, dims: list[int], values: list[int]) -> str:
        output = f"{self._prefix}_{name}"
        tensor = helper.make_tensor(output, TensorProto.INT64, dims, values)
        self._new.append(helper.make_node("Constant", [], [output], value=tensor))
        return output

    def _add(self, op_type: str, *inputs: str, output: str = "", **attributes: int) -> str:
        output = output or f"{self._prefix}_{len(self._new)}"
        self._new.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output
