"""Turns a model into the program's graph and the list of its constants.

Every floating weight becomes a stored fp16 tensor and a ``Cast`` to fp32, in which the graph computes; a weight of
matrix products only is stored as packed MXFP6 if asked. What is small, not floating or read in fp32 stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import onnx
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import constants, fp16_graphs, graph_walk, matmul_weights
from qeff_engine.simulated_sdk.constants import Constant
from qeff_engine.simulated_sdk.io_types import FLOATING_ONNX
from qeff_engine.simulated_sdk.onnx_reading import Weight

# Locations of external data in the program's graph: the segment of that name; the same for weights packed to MXFP6
# along an axis.
LOCATION = "constants.bin"
PACKED_LOCATION = "constants.bin/mxfp6/{axis}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program's graph and its constants."""

    model: onnx.ModelProto
    constants: list[Constant]

    @property
    def card_bytes(self) -> int:
        """Of all constants, in the card's form."""
        return sum(item.num_bytes for item in self.constants)


class Lowering:
    """One model on its way to a program."""

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        weights: dict[str, Weight],
        to_fp16: bool,
        mxfp6: bool,
        exact: Collection[str] = (),
    ) -> None:
        """Take ``model`` over; it is changed in place.

        Args:
            model: graph with its initializers.
            weights: those initializers.
            to_fp16: store floating weights as fp16.
            mxfp6: store weights of matrix products as MXFP6.
            exact: weights that are stored as they are.
        """
        self._model = model
        self._weights = weights
        self._to_fp16 = to_fp16
        self._mxfp6 = mxfp6
        self._exact = frozenset(exact)
        self._constants: list[Constant] = []
        self._head: list[onnx.NodeProto] = []
        self._kept: list[onnx.TensorProto] = []
        self._end = 0

    def lower(self) -> Lowered:
        """The program's graph and constants."""
        self._drop_casts()
        self._tracer = matmul_weights.Tracer(self._model)
        self._uses = matmul_weights.uses_of(self._model)
        self._captured = graph_walk.captured_names(self._model.graph.node) | {
            item.name for item in self._model.graph.output
        }
        for tensor in self._model.graph.initializer:
            self._place(tensor)
        nodes = [*self._head, *self._model.graph.node]
        graph = self._model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self._kept)
        inputs = [item for item in graph.input if item.name not in self._weights]
        del graph.input[:]
        graph.input.extend(inputs)
        return Lowered(model=self._model, constants=self._constants)

    def _drop_casts(self) -> None:
        """Let consumers of a main-graph ``Cast`` of a floating weight to fp32 read the weight, which will be fp32."""
        graph = self._model.graph
        kept_names = graph_walk.captured_names(graph.node) | {item.name for item in graph.output}
        widened: dict[str, str] = {}
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            source = self._weights.get(node.input[0]) if graph_walk.is_onnx(node, "Cast") else None
            to_float = graph_walk.int_attribute(node, "to", default=0) == TensorProto.FLOAT
            stored = (
                source is not None and source.onnx_type in FLOATING_ONNX and source.num_bytes > fp16_graphs.SMALL_BYTES
            )
            if source is not None and stored and to_float and self._to_fp16 and node.output[0] not in kept_names:
                widened[node.output[0]] = source.name
            else:
                kept.append(node)
        self._widened = {}
        for node_number, node in enumerate(kept):
            for number, name in enumerate(node.input):
                if name in widened:
                    self._widened[node_number, number] = widened[name]
        for (node_number, number), name in self._widened.items():
            kept[node_number].input[number] = name
        nodes = list(kept)
        del graph.node[:]
        graph.node.extend(nodes)

    def _place(self, tensor: onnx.TensorProto) -> None:
        """Store an initializer in the form or forms that its uses want."""
        weight = self._weights[tensor.name]
        if weight.num_bytes <= fp16_graphs.SMALL_BYTES:
            self._keep_small(tensor, weight=weight)
            return
        as_fp16 = self._to_fp16 or weight.onnx_type == TensorProto.FLOAT16
        if weight.onnx_type not in FLOATING_ONNX or not as_fp16 or weight.name in self._exact:
            self._store(tensor.name, weight=weight, onnx_type=weight.onnx_type, mx_axis=None)
            return
        plain: list[matmul_weights.Use] = []
        unread: list[matmul_weights.Use] = []
        by_axis: dict[int, list[matmul_weights.Use]] = {}
        for use in self._uses.get(tensor.name, ()):
            kind = self._tracer.kind(use, rank=len(weight.dims))
            if kind.unread:
                unread.append(use)
            elif kind.axis is not None and self._mxfp6:
                by_axis.setdefault(kind.axis, []).append(use)
            else:
                plain.append(use)
        # Any form of the tensor has its shape.
        next(iter(by_axis.values()), plain).extend(unread)
        for axis, uses in by_axis.items():
            self._as_float(weight, uses=uses, mx_axis=axis)
        captured = tensor.name in self._captured
        if plain or captured:
            self._as_float(weight, uses=plain, mx_axis=None, keep_name=captured)

    def _as_float(
        self, weight: Weight, *, uses: Sequence[matmul_weights.Use], mx_axis: int | None, keep_name: bool = False
    ) -> None:
        """Store a floating weight as fp16 and give each use the type that it had, or fp32 if that was fp16."""
        suffix = "fp16" if mx_axis is None else f"mxfp6_{mx_axis}"
        stored = f"{weight.name}.{suffix}"
        # Packed weights are unpacked to fp32 when the program is activated.
        kind = TensorProto.FLOAT16 if mx_axis is None else TensorProto.FLOAT
        self._store(stored, weight=weight, onnx_type=kind, mx_axis=mx_axis)
        in_graph = TensorProto.FLOAT if weight.onnx_type == TensorProto.FLOAT16 else weight.onnx_type
        made: set[int] = set()

        def typed(onnx_type: int) -> str:
            name = f"{stored}.as_{onnx_type}"
            if onnx_type not in made:
                made.add(onnx_type)
                self._head.append(helper.make_node("Cast", [stored], [name], to=onnx_type))
            return name

        for node_number, number in uses:
            wanted = TensorProto.FLOAT if (node_number, number) in self._widened else in_graph
            self._model.graph.node[node_number].input[number] = typed(wanted)
        if keep_name:
            self._head.append(helper.make_node("Cast", [stored], [weight.name], to=in_graph))

    def _store(self, name: str, *, weight: Weight, onnx_type: int, mx_axis: int | None) -> None:
        constant = Constant(
            name=name, weight=weight, onnx_type=onnx_type, mx_axis=mx_axis, offset=constants.aligned(self._end)
        )
        self._end = constant.offset + constant.num_bytes
        self._constants.append(constant)
        tensor = TensorProto(name=name, data_type=onnx_type, dims=weight.dims, data_location=TensorProto.EXTERNAL)
        location = LOCATION if mx_axis is None else PACKED_LOCATION.format(axis=mx_axis)
        for key, value in (("location", location), ("offset", constant.offset), ("length", constant.num_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._kept.append(tensor)

    def _keep_small(self, tensor: onnx.TensorProto, *, weight: Weight) -> None:
        """Leave a small initializer inside the graph."""
        raw = bytes(weight.raw(start=0, stop=weight.num_bytes))
        self._kept.append(TensorProto(name=tensor.name, data_type=weight.onnx_type, dims=weight.dims, raw_data=raw))
