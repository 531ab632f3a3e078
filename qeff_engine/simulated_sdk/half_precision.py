"""fp16 arithmetic: what every operator computes is rounded to fp16, as ``-convert-to-fp16`` makes a card do it.

ONNX Runtime computes in fp32 on a processor and drops the roundings of an fp16 graph between its operators. So the
graph is fp32 or made so, and two casts, to fp16 and back, stand behind every operator that computes: they round to
nearest, halves to even, overflow to infinities and underflow to subnormal numbers, and ONNX Runtime keeps casts that
lose precision. Operators that only move, select or negate values need none. Without ``-convert-to-fp16`` this is done
to values that are fp16 in the graph.

Inside one operator, so also inside a matrix product, a softmax or one of the card's own functions (``CustomRMSNorm``),
arithmetic is fp32; that is an assumption, nothing published says it. Values that are known at compile time are computed
in fp32, too. Both they and the results of nodes that stay fp32 are rounded where an fp16 operator reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, MutableSequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import constants, fp16_graphs, graph_walk
from qeff_engine.simulated_sdk.element_types import ElementTypes, Scope
from qeff_engine.simulated_sdk.onnx_reading import Weight
from qeff_engine.simulated_sdk.static_values import StaticValues

Array = npt.NDArray[Any]

_FP16_MAX = 65504.0
_MOVES = frozenset(
    {
        *("Abs", "Ceil", "Clip", "Compress", "Concat", "Constant", "DepthToSpace", "Dropout", "Expand", "Flatten"),
        *("Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Identity", "Max", "MaxPool", "Min", "Neg"),
        *("OneHot", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Sign", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where"),
    }
)
_SCATTERS = frozenset({"Scatter", "ScatterElements", "ScatterND"})
_EXACT_SOURCES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8, TensorProto.UINT8}
)
# Domains of the card's own operators, which come as functions; each is one operator. Those of the first only move.
_MOVING_DOMAIN, _COMPUTING_DOMAIN = "com.qualcomm.cloud", "com.qti.aisw.onnx"
# Arguments that are no operands: number by operator.
_PARAMETERS = {"Resize": 2, "Upsample": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """Nodes that stay fp32: by their name or the name of an output, and by their operator."""

    names: frozenset[str] = frozenset()
    operators: frozenset[str] = frozenset()

    def holds(self, node: onnx.NodeProto) -> bool:
        """Whether a node stays fp32."""
        return node.op_type in self.operators or node.name in self.names or not self.names.isdisjoint(node.output)


NOTHING_KEPT = Kept()


def convert(
    model: onnx.ModelProto,
    *,
    to_fp16: bool,
    weights: dict[str, Weight],
    static: StaticValues,
    states: Collection[str] = (),
    kept: Kept = NOTHING_KEPT,
) -> frozenset[str]:
    """Give a graph the arithmetic of the card.

    Args:
        model: changed in place; afterwards no value of it is fp16 but for large initializers.
        to_fp16: fp32 values become fp16.
        weights: its initializers; those that are added to ``model`` are added here, too.
        static: what of it is known at compile time.
        states: inputs whose values are kept in fp16 between calls, and the outputs that become them.
        kept: what stays fp32.

    Returns:
        Large initializers that nodes that stay fp32 read, so that they must be stored as they are.
    """
    halves = frozenset({TensorProto.FLOAT16, TensorProto.FLOAT} if to_fp16 else {TensorProto.FLOAT16})
    conversion = _Conversion(model, halves=halves, weights=weights, static=static, states=states, kept=kept)
    exact = conversion.run()
    fp16_graphs.widen(model, weights=weights)
    return exact


class _Conversion:
    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        halves: frozenset[int],
        weights: dict[str, Weight],
        static: StaticValues,
        states: Collection[str],
        kept: Kept,
    ) -> None:
        self._model = model
        self._halves = halves
        self._weights = weights
        self._static = static
        self._kept = kept
        self._functions = {
            key: function
            for key, function in graph_walk.functions_of(model).items()
            if function.domain not in (_MOVING_DOMAIN, _COMPUTING_DOMAIN)
        }
        self._types = ElementTypes(model)
        self._states = frozenset(states)
        # Values that may have more precision than fp16, by scope.
        self._wide: dict[Scope, set[str]] = {None: set()} | {key: set() for key in self._functions}
        self._copies: list[TensorProto] = []
        self._carrying = {key for key in self._functions if self._holds_kept(key)}

    def run(self) -> frozenset[str]:
        exact = self._note_inputs()
        while self._note_all():
            pass  # what enters or leaves a function may be wide in a call only that comes later
        for key, function in self._functions.items():
            _replace(function.node, self._rewritten(function.node, scope=key, outer={}))
        nodes = self._rewritten(self._model.graph.node, scope=None, outer={})
        states = {item.name for item in self._model.graph.output if item.name in self._states}
        _replace(self._model.graph.node, [*nodes, *_rounded_at_the_end(nodes, names=states & self._wide[None])])
        self._model.graph.initializer.extend(self._copies)
        return exact

    def _holds_kept(self, key: graph_walk.FunctionKey) -> bool:
        """Whether a node in a function, or in one that it calls, stays fp32: only then wide values may enter it."""
        nodes = list(graph_walk.all_nodes(self._functions[key].node))
        inner = {graph_walk.key_of(node) for node in nodes} & self._functions.keys()
        return any(self._kept.holds(node) for node in nodes) or any(map(self._holds_kept, inner))

    def _note_inputs(self) -> frozenset[str]:
        """Inputs and initializers that are wide; returns the large ones among the latter."""
        types, wide = self._types.of(None), self._wide[None]
        if TensorProto.FLOAT not in self._halves:
            return frozenset()
        inputs = {item.name for item in self._model.graph.input} - self._states - self._weights.keys()
        wide |= {name for name in inputs if types[name] == TensorProto.FLOAT}
        exact: set[str] = set()
        for node in self._model.graph.node:
            if self._kept.holds(node):
                exact |= {name for name in node.input if name in self._weights and types[name] == TensorProto.FLOAT}
        exact = {name for name in exact if self._weights[name].num_bytes > fp16_graphs.SMALL_BYTES}
        wide |= exact
        for name, weight in self._weights.items():
            small = weight.num_bytes <= fp16_graphs.SMALL_BYTES
            if small and weight.onnx_type == TensorProto.FLOAT and not _fits(fp16_graphs.values_of(weight)):
                wide.add(name)
        return frozenset(exact)

    def _is_float(self, name: str, *, scope: Scope) -> bool:
        return self._types.of(scope).get(name) in self._halves

    def _note_all(self) -> bool:
        """One pass over all scopes that notes wide values; whether more became known."""
        before = sum(map(len, self._wide.values()))
        for key, function in self._functions.items():
            self._note(function.node, scope=key)
        self._note(self._model.graph.node, scope=None)
        return sum(map(len, self._wide.values())) > before

    def _note(self, nodes: Iterable[onnx.NodeProto], *, scope: Scope) -> None:
        wide = self._wide[scope]
        for node in nodes:
            function = self._functions.get(graph_walk.key_of(node))
            if function is not None:
                inner = self._wide[graph_walk.key_of(node)]
                if graph_walk.key_of(node) in self._carrying:
                    inner |= {to for to, name in zip(function.input, node.input, strict=False) if name in wide}
                wide |= {name for name, of in zip(node.output, function.output, strict=False) if of in inner}
                continue
            for body in graph_walk.subgraphs(node):
                self._note(body.node, scope=scope)
            if self._is_wide(node, scope=scope):
                wide |= {name for name in node.output if name and self._is_float(name, scope=scope)}

    def _is_wide(self, node: onnx.NodeProto, *, scope: Scope) -> bool:
        """Whether what an operator makes may have more precision than fp16."""
        if any(True for _ in graph_walk.subgraphs(node)) or self._is_half(node, scope=scope):
            return False
        if graph_walk.is_onnx(node, "Constant"):
            return not _fits(_constant(node))
        return not self._moves(node, scope=scope) or not self._wide[scope].isdisjoint(node.input)

    def _is_half(self, node: onnx.NodeProto, *, scope: Scope) -> bool:
        """Whether a card would compute this node in fp16, if it is one of floating values."""
        return not self._kept.holds(node) and not self._static.is_static(node.output[0], scope=scope)

    def _moves(self, node: onnx.NodeProto, *, scope: Scope) -> bool:
        """Whether an operator makes nothing but values that it was given, or their negatives."""
        if node.domain == _MOVING_DOMAIN:
            return True
        if graph_walk.is_onnx(node, "Cast", "CastLike"):
            source = self._types.of(scope).get(node.input[0])
            return source in _EXACT_SOURCES or self._static.is_static(node.input[0], scope=scope)
        if graph_walk.is_onnx(node, *_SCATTERS):
            reduction = graph_walk.attribute(node, "reduction")
            return reduction is None or reduction.s in (b"none", b"min", b"max")
        return graph_walk.is_onnx(node, *_MOVES)

    def _rewritten(
        self, nodes: Iterable[onnx.NodeProto], *, scope: Scope, outer: dict[str, str]
    ) -> list[onnx.NodeProto]:
        """The nodes of a graph with all roundings; ``outer`` are rounded copies that are made already."""
        nodes = list(nodes)
        producers = {name: node for node in nodes for name in node.output}
        copies = dict(outer)
        result: list[onnx.NodeProto] = []
        for node in nodes:
            if graph_walk.key_of(node) in self._functions:
                if graph_walk.key_of(node) not in self._carrying:
                    result += self._round_inputs(node, scope=scope, copies=copies, producers=producers)
                result.append(node)
                continue
            bodies = list(graph_walk.subgraphs(node))
            if bodies or self._is_half(node, scope=scope):
                result += self._round_inputs(node, scope=scope, copies=copies, producers=producers)
            for body in bodies:
                self._rewrite_body(body, scope=scope, outer=copies)
            result.append(node)
            if not bodies and self._is_half(node, scope=scope) and not self._moves(node, scope=scope):
                result += self._round_outputs(node, scope=scope)
        return result

    def _rewrite_body(self, body: onnx.GraphProto, *, scope: Scope, outer: dict[str, str]) -> None:
        """A body of control flow; what leaves it is fp16."""
        nodes = self._rewritten(body.node, scope=scope, outer=outer)
        names = {item.name for item in body.output} & self._wide[scope]
        _replace(body.node, [*nodes, *_rounded_at_the_end(nodes, names=names)])

    def _round_inputs(
        self, node: onnx.NodeProto, *, scope: Scope, copies: dict[str, str], producers: dict[str, onnx.NodeProto]
    ) -> Iterator[onnx.NodeProto]:
        for number, name in enumerate(node.input):
            if name not in self._wide[scope] or _PARAMETERS.get(node.op_type) == number:
                continue
            if name not in copies:
                copies[name] = f"{name}.half"
                yield from self._copy(name, output=copies[name], scope=scope, producer=producers.get(name))
            node.input[number] = copies[name]

    def _copy(
        self, name: str, *, output: str, scope: Scope, producer: onnx.NodeProto | None
    ) -> Iterator[onnx.NodeProto]:
        """Nodes that round a wide value; a constant is replaced by another constant."""
        if producer is not None and graph_walk.is_onnx(producer, "Constant"):
            rounded = constants.rounded_to_fp16(_constant(producer))
            yield helper.make_node("Constant", [], [output], value=numpy_helper.from_array(rounded))
            return
        weight = self._weights.get(name) if scope is None else None
        if weight is not None and weight.num_bytes <= fp16_graphs.SMALL_BYTES:
            self._add_initializer(output, values=constants.rounded_to_fp16(fp16_graphs.values_of(weight)))
            return
        if self._static.is_static(name, scope=scope):
            # The compiler's own rounding of constants: finite ones stay finite.
            limits = [f"{output}.{end}" for end in ("low", "high")]
            for limit, value in zip(limits, (-_FP16_MAX, _FP16_MAX), strict=True):
                yield helper.make_node(
                    "Constant", [], [limit], value=helper.make_tensor(limit, TensorProto.FLOAT, [], [value])
                )
            yield helper.make_node("Max", [name, limits[0]], [f"{output}.bounded"])
            yield helper.make_node("Min", [f"{output}.bounded", limits[1]], [f"{output}.finite"])
            yield helper.make_node("IsInf", [name], [f"{output}.is_inf"])
            yield helper.make_node("Where", [f"{output}.is_inf", name, f"{output}.finite"], [f"{output}.clipped"])
            name = f"{output}.clipped"
        yield from fp16_graphs.rounding(name, output=output)

    def _add_initializer(self, name: str, *, values: Array) -> None:
        self._weights[name] = fp16_graphs.small_weight(name, values=values)
        self._copies.append(numpy_helper.from_array(values, name=name))

    def _round_outputs(self, node: onnx.NodeProto, *, scope: Scope) -> Iterator[onnx.NodeProto]:
        for number, name in enumerate(node.output):
            if name and self._is_float(name, scope=scope):
                node.output[number] = f"{name}.wide"
                yield from fp16_graphs.rounding(f"{name}.wide", output=name)


def _constant(node: onnx.NodeProto) -> Array:
    """The value of a ``Constant``; integers where it is not floating."""
    value = graph_walk.attribute(node, "value")
    if value is not None:
        return np.asarray(numpy_helper.to_array(value.t))
    for name in ("value_float", "value_floats"):
        found = graph_walk.attribute(node, name)
        if found is not None:
            return np.array(found.f if name == "value_float" else found.floats, np.float32)
    return np.zeros(0, np.int64)


def _fits(values: Array) -> bool:
    """Whether fp16 holds these values exactly; it does so for all that are not fp32."""
    if values.dtype != np.float32:
        return True
    return bool(np.array_equal(constants.rounded_to_fp16(values), values, equal_nan=True))


def _rounded_at_the_end(nodes: Iterable[onnx.NodeProto], *, names: Collection[str]) -> Iterator[onnx.NodeProto]:
    """Further nodes that round results of ``nodes``, which keep their names."""
    for name in sorted(names):
        for node in graph_walk.all_nodes(nodes):
            _rename(node.input, name, f"{name}.wide")
            _rename(node.output, name, f"{name}.wide")
        yield from fp16_graphs.rounding(f"{name}.wide", output=name)


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for number, name in enumerate(names):
        if name == old:
            names[number] = new


def _replace(nodes: MutableSequence[onnx.NodeProto], new: Iterable[onnx.NodeProto]) -> None:
    new = list(new)
    del nodes[:]
    nodes.extend(new)
