"""Which values of a graph are known at compile time.

Every shape is static once a specialization is chosen, so constants, shapes and what is computed from them alone are
known; what depends on an input's or a weight's values is not.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from qeff_engine.simulated_sdk import graph_walk

_FROM_SHAPES = ("Shape", "Size", "Constant")
Scope = graph_walk.FunctionKey | None  # None is the main graph


class StaticValues:
    """The values known at compile time in every scope; in a function, those that are so in each of its calls."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Follow every call of ``model`` from the main graph."""
        self._functions = graph_walk.functions_of(model)
        self._static: dict[Scope, set[str]] = {}
        self._calls: dict[tuple[graph_walk.FunctionKey, tuple[bool, ...]], list[bool]] = {}
        known = {"", *(tensor.name for tensor in model.graph.initializer)}
        known -= {item.name for item in model.graph.input}
        self._static[None] = self._walk(model.graph.node, known=known)

    def is_static(self, name: str, *, scope: Scope) -> bool:
        """Whether a value is known at compile time."""
        return name in self._static.get(scope, ())

    def _walk(self, nodes: Iterable[onnx.NodeProto], *, known: set[str]) -> set[str]:
        """``known`` with all that can be computed from it."""
        for node in nodes:
            key = graph_walk.key_of(node)
            if key in self._functions:
                outputs = self._call(key, flags=tuple(name in known for name in node.input))
                known |= {name for name, static in zip(node.output, outputs, strict=False) if static}
                continue
            for graph in graph_walk.subgraphs(node):
                inner = {tensor.name for tensor in graph.initializer}
                known |= self._walk(graph.node, known=known | inner)
            if graph_walk.is_onnx(node, *_FROM_SHAPES) or self._computable(node, known=known):
                known |= set(node.output)
        return known

    @staticmethod
    def _computable(node: onnx.NodeProto, *, known: set[str]) -> bool:
        if any(True for _ in graph_walk.subgraphs(node)) or not node.input:
            return False
        return all(name in known for name in node.input)

    def _call(self, key: graph_walk.FunctionKey, *, flags: tuple[bool, ...]) -> list[bool]:
        """Whether each output of a call is static; narrows what is static in the function."""
        if (key, flags) not in self._calls:
            function = self._functions[key]
            parameters = {name for name, static in zip(function.input, flags, strict=False) if static}
            # A trailing input that a call leaves out is known: it is nothing.
            parameters |= {"", *function.input[len(flags) :]}
            known = self._walk(function.node, known=parameters)
            self._static[key] = self._static[key] & known if key in self._static else set(known)
            self._calls[key, flags] = [name in known for name in function.output]
        return self._calls[key, flags]
