"""Nodes that put a weight together from bytes of the checkpoint (see :mod:`qeff_engine.onnx_graph.arrangements`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qeff_engine.onnx_graph.arrangements import Arrangement, Cut, Joined, Part, Permuted, Reshaped
from qeff_engine.onnx_graph.sources import DTYPES
from qeff_engine.safetensors_header import TensorPlace


class Arranger:
    """Writes arrangements into a graph.

    Attributes:
        places: of the initializers that it made, by name.
    """

    def __init__(self, model: ir.Model) -> None:
        self.places: dict[str, TensorPlace] = {}
        self._graph = model.graph

    def replace(self, value: ir.Value, arrangement: Arrangement) -> None:
        """Let nodes give an initializer's value, which is no initializer any more and keeps its name."""
        name = str(value.name)
        del self._graph.initializers[name]
        nodes: list[ir.Node] = []
        result = self._value(arrangement, target=name, nodes=nodes)
        value.name = f"{name}/replaced"
        result.name, result.type, result.shape = name, value.type, value.shape
        ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
        self._graph.insert_before(self._graph[0], nodes)

    def _value(self, arrangement: Arrangement, *, target: str, nodes: list[ir.Node]) -> ir.Value:
        if isinstance(arrangement, Part):
            return self._initializer(arrangement)
        if isinstance(arrangement, Joined):
            parts = [self._value(part, target=target, nodes=nodes) for part in arrangement.parts]
            return _added(nodes, "Concat", parts, target=target, attributes={"axis": arrangement.axis})
        source = self._value(arrangement.source, target=target, nodes=nodes)
        if isinstance(arrangement, Permuted):
            return _added(nodes, "Transpose", [source], target=target, attributes={"perm": list(arrangement.order)})
        if isinstance(arrangement, Reshaped):
            shape = self._numbers(arrangement.shape, target=target, nodes=nodes)
            return _added(nodes, "Reshape", [source, shape], target=target)
        return self._cut(arrangement, source=source, target=target, nodes=nodes)

    def _cut(self, arrangement: Cut, *, source: ir.Value, target: str, nodes: list[ir.Node]) -> ir.Value:
        stop = arrangement.start + arrangement.shape[arrangement.axis]
        ranges = [
            self._numbers([number], target=target, nodes=nodes)
            for number in (arrangement.start, stop, arrangement.axis)
        ]
        return _added(nodes, "Slice", [source, *ranges], target=target)

    def _initializer(self, part: Part) -> ir.Value:
        """The initializer of a range of bytes, called like the checkpoint's tensor; one for each shape and range."""
        name = part.name
        while self.places.get(name, part.place) != part.place or (
            name in self._graph.initializers and name not in self.places
        ):
            name += "/other"
        if name not in self.places:
            dtype = DTYPES[part.place.dtype]
            value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(part.shape))
            self._graph.initializers[name] = value
            self.places[name] = part.place
        return self._graph.initializers[name]

    def _numbers(self, numbers: Sequence[int], *, target: str, nodes: list[ir.Node]) -> ir.Value:
        values = ir.tensor(np.array(numbers, dtype=np.int64))
        return _added(nodes, "Constant", [], target=target, attributes={"value": values})


def _added(
    nodes: list[ir.Node],
    op_type: str,
    inputs: Sequence[ir.Value],
    *,
    target: str,
    attributes: dict[str, Any] | None = None,
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes=attributes or {}, name=f"{target}/{op_type}.{len(nodes)}")
    node.outputs[0].name = node.name
    nodes.append(node)
    return node.outputs[0]
