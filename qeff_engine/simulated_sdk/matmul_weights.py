"""Which uses of an initializer are weights of a matrix product only, and along which axis that product reduces.

Those uses are what MXFP6 compresses; embeddings, norms and biases stay fp16. A tensor that is both (tied embeddings)
is stored once for each kind of use, so the unit is the use, not the tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import onnx

from qeff_engine.simulated_sdk import graph_walk

Use = tuple[int, int]  # node number in the main graph, input number

# What a use ends as: the reduction axis in the tensor's own layout, or this.
_OTHER = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class UseKind:
    """What one use of a tensor is.

    Attributes:
        axis: reduction axis if it is a weight of matrix products only, else None.
        unread: its values are not read at all, only its shape.
    """

    axis: int | None
    unread: bool


class Tracer:
    """Follows tensors from the main graph to the operators that consume them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Index the consumers of every scope of ``model``."""
        self._functions = graph_walk.functions_of(model)
        self._main = _Scope(model.graph.node, outputs=[item.name for item in model.graph.output])
        self._scopes = {
            key: _Scope(function.node, outputs=function.output) for key, function in self._functions.items()
        }
        self._known: dict[tuple[graph_walk.FunctionKey, str, tuple[int, ...]], frozenset[int]] = {}

    def kind(self, use: Use, *, rank: int) -> UseKind:
        """What the tensor of ``rank`` axes that enters at ``use`` is used for there."""
        ends = self._of_use(self._main, use=use, axes=tuple(range(rank)))
        end = next(iter(ends)) if len(ends) == 1 else _OTHER
        return UseKind(axis=end if end >= 0 else None, unread=not ends)

    def _of_value(self, scope: _Scope, *, name: str, axes: tuple[int, ...]) -> frozenset[int]:
        """The ends of a value; ``axes[i]`` is the original tensor's axis that its axis i is."""
        if name in scope.escaping:
            return frozenset({_OTHER})
        ends = [self._of_use(scope, use=use, axes=axes) for use in scope.consumers.get(name, ())]
        return frozenset().union(*ends)

    def _of_use(self, scope: _Scope, *, use: Use, axes: tuple[int, ...]) -> frozenset[int]:
        node, number = scope.nodes[use[0]], use[1]
        key = graph_walk.key_of(node)
        if key in self._functions:
            parameter = self._functions[key].input[number]
            known = (key, parameter, axes)
            if known not in self._known:
                self._known[known] = self._of_value(self._scopes[key], name=parameter, axes=axes)
            return self._known[known]
        if graph_walk.is_onnx(node, "Concat") or (graph_walk.is_onnx(node, "Cast", "Identity") and number == 0):
            return self._of_value(scope, name=node.output[0], axes=axes)
        if graph_walk.is_onnx(node, "Transpose"):
            permutation = graph_walk.attribute(node, "perm")
            order = permutation.ints if permutation is not None else range(len(axes) - 1, -1, -1)
            return self._of_value(scope, name=node.output[0], axes=tuple(axes[index] for index in order))
        if graph_walk.is_onnx(node, "Shape", "Size"):
            return frozenset()
        return frozenset({_end(node, number=number, axes=axes)})


def _end(node: onnx.NodeProto, *, number: int, axes: Sequence[int]) -> int:
    """What an operator that is no mere change of layout does with its input ``number``."""
    if graph_walk.is_onnx(node, "MatMul") and len(axes) >= 2:
        return axes[-2] if number == 1 else axes[-1]
    if graph_walk.is_onnx(node, "Gemm") and len(axes) == 2 and number < 2:
        transposed = graph_walk.int_attribute(node, "transB" if number == 1 else "transA", default=0)
        reduces_last = bool(transposed) == (number == 1)
        return axes[-1] if reduces_last else axes[-2]
    return _OTHER


class _Scope:
    """The nodes of a graph or function, who consumes which name, and which names leave it."""

    def __init__(self, nodes: Iterable[onnx.NodeProto], *, outputs: Iterable[str]) -> None:
        self.nodes = list(nodes)
        self.consumers: dict[str, list[Use]] = {}
        for node_number, node in enumerate(self.nodes):
            for input_number, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node_number, input_number))
        self.escaping = {*outputs, *graph_walk.captured_names(self.nodes)}


def uses_of(model: onnx.ModelProto) -> Mapping[str, list[Use]]:
    """All uses of every name in the main graph, subgraphs apart."""
    return _Scope(model.graph.node, outputs=()).consumers
