"""Element types of all values of a model, in the main graph, in functions and in bodies of control flow.

Types follow from operators' schemas alone, without shapes: an output has a type of its own, or that of an input.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx.defs
from onnx import TensorProto

from qeff_engine.simulated_sdk import graph_walk

Types = dict[str, int]  # ``TensorProto.DataType`` by name; a value whose type is not known is missing
Scope = graph_walk.FunctionKey | None  # None is the main graph

_BY_NAME = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(int8)": TensorProto.INT8,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int64)": TensorProto.INT64,
    "tensor(uint8)": TensorProto.UINT8,
}
_OF_CONSTANT = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}


class ElementTypes:
    """The types of every scope; in a function, those that all of its calls agree on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Follow every call of ``model`` from the main graph."""
        self._functions = graph_walk.functions_of(model)
        self._imports: dict[Scope, Mapping[str, int]] = {None: _versions(model.opset_import)}
        for key, function in self._functions.items():
            self._imports[key] = _versions(function.opset_import)
        self._of_scope: dict[Scope, Types] = {}
        self._calls: dict[tuple[graph_walk.FunctionKey, tuple[int, ...]], list[int]] = {}
        known = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        known |= {item.name: item.type.tensor_type.elem_type for item in model.graph.input}
        self._of_scope[None] = self._walk(model.graph.node, known=known, scope=None)

    def of(self, scope: Scope) -> Types:
        """Types by name in a scope, those inside bodies of control flow included; empty for a function never called."""
        return self._of_scope.get(scope, {})

    def _walk(self, nodes: Iterable[onnx.NodeProto], *, known: Types, scope: Scope) -> Types:
        """``known`` with all that ``nodes`` make."""
        for node in nodes:
            key = graph_walk.key_of(node)
            bodies = list(graph_walk.subgraphs(node))
            if key in self._functions:
                found = self._call(key, types=tuple(known.get(name, 0) for name in node.input))
            elif bodies:
                found = self._control_flow(node, bodies=bodies, known=known, scope=scope)
            else:
                found = _outputs(node, known=known, versions=self._imports[scope])
            known |= {name: kind for name, kind in zip(node.output, found, strict=False) if name and kind}
        return known

    def _call(self, key: graph_walk.FunctionKey, *, types: tuple[int, ...]) -> list[int]:
        """Types of a call's outputs, 0 where unknown; keeps of the function's types what this call agrees on."""
        if (key, types) not in self._calls:
            function = self._functions[key]
            parameters = {name: kind for name, kind in zip(function.input, types, strict=False) if kind}
            known = self._walk(function.node, known=parameters, scope=key)
            earlier = self._of_scope.get(key, known)
            self._of_scope[key] = {name: kind for name, kind in earlier.items() if known.get(name) == kind}
            self._calls[key, types] = [known.get(name, 0) for name in function.output]
        return self._calls[key, types]

    def _control_flow(
        self, node: onnx.NodeProto, *, bodies: Sequence[onnx.GraphProto], known: Types, scope: Scope
    ) -> list[int]:
        for body in bodies:
            known |= {tensor.name: tensor.data_type for tensor in body.initializer}
            known |= {item.name: item.type.tensor_type.elem_type for item in body.input}
            known |= self._walk(body.node, known=known, scope=scope)
        results = [known.get(item.name, item.type.tensor_type.elem_type) for item in bodies[0].output]
        # The first output of a loop's body is its condition.
        return results[1:] if graph_walk.is_onnx(node, "Loop") else results


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> Mapping[str, int]:
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in imports}


def _outputs(node: onnx.NodeProto, *, known: Types, versions: Mapping[str, int]) -> list[int]:
    if graph_walk.is_onnx(node, "Constant", "ConstantOfShape"):
        return [_of_constant(node)]
    explicit = graph_walk.int_attribute(node, "to" if node.op_type == "Cast" else "dtype", default=0)
    if graph_walk.is_onnx(node, "Cast", "EyeLike") and explicit:
        return [explicit]
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = _schema(node.op_type, versions.get(domain, 0), domain)
    if schema is None:
        # Operators of other domains compute in the type of what they are given.
        return [known.get(node.input[0], 0) if node.input else 0] * len(node.output)
    bound: dict[str, int] = {}
    for number, name in enumerate(node.input):
        if name in known:
            bound.setdefault(_formal(schema.inputs, number).type_str, known[name])
    return [_of_output(_formal(schema.outputs, number), bound=bound) for number in range(len(node.output))]


def _of_constant(node: onnx.NodeProto) -> int:
    value = graph_walk.attribute(node, "value")
    if value is not None:
        return int(value.t.data_type)
    found = [kind for name, kind in _OF_CONSTANT.items() if graph_walk.attribute(node, name) is not None]
    return found[0] if found else TensorProto.FLOAT if node.op_type == "ConstantOfShape" else 0


@functools.lru_cache(maxsize=1024)
def _schema(op_type: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    if not version or not onnx.defs.has(op_type, version, domain):
        return None
    return onnx.defs.get_schema(op_type, version, domain)


def _formal(
    parameters: Sequence[onnx.defs.OpSchema.FormalParameter], number: int
) -> onnx.defs.OpSchema.FormalParameter:
    """The parameter that argument ``number`` is; the last one may stand for several."""
    return parameters[min(number, len(parameters) - 1)]


def _of_output(formal: onnx.defs.OpSchema.FormalParameter, *, bound: Mapping[str, int]) -> int:
    if formal.type_str in bound:
        return bound[formal.type_str]
    possible = list(formal.types)
    return _BY_NAME.get(possible[0], 0) if len(possible) == 1 else 0
