"""Which operations a graph without functions does, with the sizes that the cost model needs.

Operators are those of the matrix and vector units. Element-wise arithmetic and changes of layout are taken as fused
into their neighbours. Bodies of ``If``, ``Loop`` and ``Scan`` are not followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from math import prod

import onnx
from onnx import TensorProto

from qeff_engine.simulated_sdk import graph_walk, operations
from qeff_engine.simulated_sdk.io_types import FLOATING_ONNX
from qeff_engine.simulated_sdk.operations import Operation
from qeff_engine.simulated_sdk.shape_propagation import Dims, Propagation

_LAYOUT = ("Cast", "Concat", "Identity", "Transpose")  # through which a weight stays one that MXFP6 can pack
_MOVED = (*_LAYOUT, "CastLike", "Expand", "Flatten", "Reshape", "Slice", "Squeeze", "Unsqueeze")
_ACTIVATIONS = ("Elu", "Erf", "Exp", "Gelu", "Mish", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh")
_NORMALIZATIONS = ("GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
_POOLING = ("AveragePool", "MaxPool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forms:
    """In which form the compiler stores weights: FP16, and MXFP6 for those of matrix products."""

    to_fp16: bool
    mxfp6: bool


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where a value comes from that does not depend on inputs alone.

    Attributes:
        packable: it is an initializer or a mere change of its layout.
        gathered: rows of a table, chosen at run time.
    """

    packable: bool = False
    gathered: bool = False


class _Reader:
    def __init__(self, model: onnx.ModelProto, *, known: Propagation, forms: Forms) -> None:
        self._known = known
        self._forms = forms
        self._sources: dict[str, _Source] = {
            tensor.name: _Source(packable=tensor.data_type in FLOATING_ONNX) for tensor in model.graph.initializer
        }
        for item in model.graph.input:
            self._sources.pop(item.name, None)
        self._convolved: set[str] = set()
        self._nodes: Iterable[onnx.NodeProto] = model.graph.node

    def read(self) -> Iterable[tuple[int, Operation]]:
        """Operations and the numbers of their nodes."""
        for number, node in enumerate(self._nodes):
            source = self._source(node)
            if source is not None:
                self._sources.update(dict.fromkeys(node.output, source))
            elif node.domain in graph_walk.ONNX_DOMAINS:
                yield from ((number, item) for item in self._operation(node))
            if graph_walk.is_onnx(node, "Conv"):
                self._convolved.update(node.output)

    def _source(self, node: onnx.NodeProto) -> _Source | None:
        """What a node makes when that comes from weights alone, else None."""
        found = [self._sources.get(name) for name in node.input if name]
        if any(True for _ in graph_walk.subgraphs(node)):
            return None
        if all(item is not None and not item.gathered for item in found):
            packable = graph_walk.is_onnx(node, *_LAYOUT) and any(item.packable for item in found if item)
            return _Source(packable=packable)
        if graph_walk.is_onnx(node, "Gather") and found[0] is not None:
            return _Source(gathered=True)
        if graph_walk.is_onnx(node, *_MOVED) and found[0] is not None and found[0].gathered:
            return found[0]
        return None

    def _operation(self, node: onnx.NodeProto) -> Iterable[Operation]:
        made = self._known.dims(node.output[0])
        if made is not None and 0 in made:
            return  # an empty tensor is no work
        if node.op_type in ("MatMul", "Gemm"):
            yield self._product(node, made=made)
        elif node.op_type == "Conv":
            yield self._convolution(node, made=made)
        elif made is not None:
            kind, elements, taps = self._vector(node, made=made)
            if kind:
                samples = made[0] if made else 1
                precision = self._base(node)
                yield operations.vector(kind, samples=samples, elements=elements, taps=taps, precision=precision)

    def _vector(self, node: onnx.NodeProto, *, made: Dims) -> tuple[str, int, int]:
        """Kind, elements and taps of an operator of the vector unit; an empty kind for what is fused."""
        entering = prod(self._known.dims(node.input[0]) or ()) if node.input else 0
        if node.op_type in ("Softmax", "LogSoftmax"):
            return "softmax", prod(made), 1
        if node.op_type in _NORMALIZATIONS:
            return "normalization", prod(made), 1
        if node.op_type == "ReduceMean":
            return "normalization", entering, 1
        if node.op_type in _ACTIVATIONS:
            return "activation", prod(made), 1
        if node.op_type == "BatchNormalization" and node.input[0] not in self._convolved:
            return "scaling", prod(made), 1
        if node.op_type == "GlobalAveragePool":
            return "pooling", prod(made), entering // max(prod(made), 1)
        if node.op_type in _POOLING:
            kernel = graph_walk.attribute(node, "kernel_shape")
            return "pooling", prod(made), prod(kernel.ints) if kernel is not None else 1
        return "", 0, 1

    def _product(self, node: onnx.NodeProto, *, made: Dims | None) -> Operation:
        first, second = self._matrix(node, number=0), self._matrix(node, number=1)
        if made is None or first is None or second is None or min(len(first), len(second), len(made)) < 2:
            return Operation(kind="product", precision=self._base(node))
        sources = [self._sources.get(name) for name in node.input[:2]]
        rows, inner, columns, samples = made[-2], first[-1], made[-1], made[0]
        if sources[1] is None and sources[0] is None:
            return operations.product(
                matrices=prod(made[:-2]),
                rows=rows,
                inner=inner,
                columns=columns,
                samples=samples,
                precision=self._base(node),
            )
        number = 1 if sources[1] is not None else 0
        weight = second if number == 1 else first
        return operations.matmul(
            rows=prod(made[:-1]) if number == 1 else prod(made) // rows,
            inner=inner,
            columns=columns if number == 1 else rows,
            samples=samples,
            precision=self._precision(node, source=sources[number]),
            matrices=prod(weight[:-2]),
        )

    def _matrix(self, node: onnx.NodeProto, *, number: int) -> Dims | None:
        """Dims of an operand as the product takes it."""
        dims = self._known.dims(node.input[number])
        turned = node.op_type == "Gemm" and graph_walk.int_attribute(node, "transB" if number else "transA", default=0)
        return dims[::-1] if dims is not None and turned else dims

    def _convolution(self, node: onnx.NodeProto, *, made: Dims | None) -> Operation:
        entering, weight = self._known.dims(node.input[0]), self._known.dims(node.input[1])
        if made is None or entering is None or weight is None:
            return Operation(kind="conv", precision=self._base(node))
        return operations.conv(
            samples=made[0],
            in_channels=entering[1],
            out_channels=made[1],
            kernel=prod(weight[2:]),
            in_pixels=prod(entering[2:]),
            out_pixels=prod(made[2:]),
            groups=graph_walk.int_attribute(node, "group", default=1),
            precision=self._base(node),
        )

    def _base(self, node: onnx.NodeProto) -> str:
        """The precision in which a node computes."""
        wide = self._known.element_type(node.input[0]) in (TensorProto.FLOAT, TensorProto.DOUBLE)
        return "fp32" if wide and not self._forms.to_fp16 else "fp16"

    def _precision(self, node: onnx.NodeProto, *, source: _Source | None) -> str:
        packed = self._forms.mxfp6 and self._forms.to_fp16 and source is not None and source.packable
        return "mxfp6" if packed else self._base(node)


def read(
    model: onnx.ModelProto, *, known: Propagation, forms: Forms, parts: Sequence[int], num_parts: int
) -> tuple[tuple[Operation, ...], ...]:
    """The operations of each part of a graph, equal ones merged, in graph order.

    Args:
        model: its functions inlined.
        known: shapes of its values.
        forms: of its weights.
        parts: to which each of its nodes belongs, from 0 on.
        num_parts: how many there are.
    """
    found: list[list[Operation]] = [[] for _ in range(num_parts)]
    for number, item in _Reader(model, known=known, forms=forms).read():
        found[parts[number]].append(item)
    return tuple(map(operations.merged, found))
