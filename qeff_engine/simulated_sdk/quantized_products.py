"""Expands 4-bit and 8-bit weights (``com.microsoft::MatMulNBits``) to ordinary ones, as the card's compiler does.

The card has no 4-bit products: an AWQ or GPTQ checkpoint is expanded, and then stored as fp16 or packed to MXFP6 like
any other. Values are expanded piece by piece while they are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, MutableSequence, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import graph_walk
from qeff_engine.simulated_sdk.onnx_reading import Weight
from qeff_engine.simulated_sdk.refusal import Refusal, model_refusal

_FP32_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpandedWeight(Weight):
    """A weight [out, in] in fp32 whose source is integers of a few bits.

    Attributes:
        elements: packed integers uint8 [out, blocks, block size * bits / 8], low bits first.
        scales: [out, blocks].
        zeros: packed uint8 [out, ceil(blocks * bits / 8)], floating [out, blocks], or None for the middle.
        bits: of an element.
        block_size: inputs that share a scale.
    """

    elements: Weight
    scales: Weight
    zeros: Weight | None
    bits: int
    block_size: int

    def floats(self, *, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Elements ``start`` to ``stop`` of the flat weight."""
        columns = self.dims[1]
        first, last = start // columns, -(-stop // columns)
        rows = self._rows(first, last)
        return rows.reshape(-1)[start - first * columns : stop - first * columns]

    def raw(self, *, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of the expanded values."""
        values = self.floats(start=start // _FP32_BYTES, stop=-(-stop // _FP32_BYTES))
        return values.view(np.uint8)[start % _FP32_BYTES :][: stop - start]

    def _rows(self, first: int, last: int) -> npt.NDArray[np.float32]:
        columns = self.dims[1]
        blocks = -(-columns // self.block_size)
        row_bytes = blocks * self.block_size * self.bits // 8
        packed = self.elements.raw(start=first * row_bytes, stop=last * row_bytes).reshape(last - first, row_bytes)
        values = _unpacked(packed, bits=self.bits).astype(np.float32).reshape(last - first, blocks, self.block_size)
        values -= self._zeros(first, last, blocks=blocks)[..., None]
        values *= self.scales.floats(start=first * blocks, stop=last * blocks).reshape(last - first, blocks, 1)
        return np.ascontiguousarray(values.reshape(last - first, -1)[:, :columns])

    def _zeros(self, first: int, last: int, *, blocks: int) -> npt.NDArray[np.float32]:
        if self.zeros is None:
            return np.full((last - first, blocks), 1 << (self.bits - 1), np.float32)
        if self.zeros.onnx_type != TensorProto.UINT8:
            return self.zeros.floats(start=first * blocks, stop=last * blocks).reshape(last - first, blocks)
        row_bytes = -(-blocks * self.bits // 8)
        packed = self.zeros.raw(start=first * row_bytes, stop=last * row_bytes).reshape(last - first, row_bytes)
        return _unpacked(packed, bits=self.bits)[:, :blocks].astype(np.float32)


def _unpacked(packed: npt.NDArray[np.uint8], *, bits: int) -> npt.NDArray[np.uint8]:
    """Rows of elements from rows of bytes, low bits first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def expand(model: onnx.ModelProto, *, weights: dict[str, Weight]) -> None:
    """Put ``MatMul`` on expanded weights in the place of all ``MatMulNBits``, in ``model`` and ``weights``.

    Raises:
        Refusal: a product's weight is no initializer, or has a form that cannot be expanded.
    """
    expansion = _Expansion(model, weights=weights)
    expansion.run()


class _Expansion:
    def __init__(self, model: onnx.ModelProto, *, weights: dict[str, Weight]) -> None:
        self._model = model
        self._weights = weights
        self._functions = graph_walk.functions_of(model)
        self._expanded: dict[str, ExpandedWeight] = {}
        self._replaced: set[str] = set()

    def run(self) -> None:
        self._follow(self._model.graph.node, names={name: name for name in self._weights})
        if not self._expanded:
            return
        _rewrite(self._model.graph.node)
        for function in self._model.functions:
            _rewrite(function.node)
        self._replace_initializers()

    def _follow(self, nodes: Sequence[onnx.NodeProto], *, names: dict[str, str]) -> None:
        """Note the weights of all products; ``names`` are those of initializers by their name in this scope."""
        for node in graph_walk.all_nodes(nodes):
            if _is_quantized(node):
                self._note(node, names=names)
            function = self._functions.get(graph_walk.key_of(node))
            if function is not None:
                inner = {
                    parameter: names[name]
                    for parameter, name in zip(function.input, node.input, strict=False)
                    if name in names
                }
                self._follow(function.node, names=inner)

    def _note(self, node: onnx.NodeProto, *, names: dict[str, str]) -> None:
        packed, scales, *rest = [names.get(name, "") for name in node.input[1:]]
        given = [bool(name) for name in node.input[1:]]
        settings = {name: graph_walk.int_attribute(node, name, default=0) for name in ("K", "N", "bits", "block_size")}
        if not packed or not scales or given[2:3] not in ([], [bool(rest and rest[0])]):
            raise _refused(node, "its weight is no initializer")
        if any(given[3:]):
            raise _refused(node, "it has a group index or a bias")
        if settings["bits"] not in (4, 8) or settings["block_size"] < 1:
            raise _refused(node, f"{settings['bits']} bits in blocks of {settings['block_size']}, expected 4 or 8 bits")
        weight = ExpandedWeight(
            name=packed,
            onnx_type=TensorProto.FLOAT,
            dims=(settings["N"], settings["K"]),
            path=None,
            offset=0,
            data=b"",
            elements=self._weights[packed],
            scales=self._weights[scales],
            zeros=self._weights[rest[0]] if rest and rest[0] else None,
            bits=settings["bits"],
            block_size=settings["block_size"],
        )
        _check_sizes(node, weight=weight)
        if self._expanded.setdefault(packed, weight) != weight:
            raise _refused(node, f"'{packed}' has other scales in another product")

    def _replace_initializers(self) -> None:
        read = _names_read(self._model)
        kept: list[onnx.TensorProto] = []
        for tensor in self._model.graph.initializer:
            if tensor.name in self._expanded:
                # Only name, type and shape are looked at from here on.
                weight = self._expanded[tensor.name]
                kept.append(
                    TensorProto(
                        name=tensor.name,
                        data_type=weight.onnx_type,
                        dims=weight.dims,
                        data_location=TensorProto.EXTERNAL,
                    )
                )
                self._weights[tensor.name] = weight
            elif tensor.name in read:
                kept.append(tensor)
            else:
                del self._weights[tensor.name]
        del self._model.graph.initializer[:]
        self._model.graph.initializer.extend(kept)


def _is_quantized(node: onnx.NodeProto) -> bool:
    return bool(node.domain == "com.microsoft" and node.op_type == "MatMulNBits")


def _refused(node: onnx.NodeProto, reason: str) -> Refusal:
    return model_refusal(f"[Operator-'{node.name or node.output[0]}'] : MatMulNBits is not supported: {reason}")


def _check_sizes(node: onnx.NodeProto, *, weight: ExpandedWeight) -> None:
    rows, columns = weight.dims
    blocks = -(-columns // weight.block_size)
    sizes = {
        "weight": (weight.elements.num_bytes, rows * blocks * weight.block_size * weight.bits // 8),
        "scales": (np.prod(weight.scales.dims), rows * blocks),
    }
    for name, (found, wanted) in sizes.items():
        if found != wanted:
            raise _refused(node, f"its {name} have {found} values, expected {wanted} for {rows} x {columns}")


def _rewrite(nodes: MutableSequence[onnx.NodeProto]) -> None:
    """``MatMul`` with the transposed weight in the place of every product, also inside branches."""
    result: list[onnx.NodeProto] = []
    for node in nodes:
        for graph in graph_walk.subgraphs(node):
            _rewrite(graph.node)
        result.extend(_plain(node) if _is_quantized(node) else [node])
    del nodes[:]
    nodes.extend(result)


def _plain(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    transposed = f"{node.output[0]}.weight"
    yield helper.make_node("Transpose", [node.input[1]], [transposed], perm=[1, 0])
    yield helper.make_node("MatMul", [node.input[0], transposed], list(node.output), name=node.name)


def _names_read(model: onnx.ModelProto) -> set[str]:
    """Names that the main graph's nodes really use: arguments that a function no longer reads are taken out first."""
    functions = graph_walk.functions_of(model)
    while any(_drop_unread_arguments(model, key=key, function=item) for key, item in functions.items()):
        pass  # a function that has lost an argument may leave its caller's argument unread
    nodes = list(graph_walk.all_nodes(model.graph.node))
    return {name for node in nodes for name in node.input} | {item.name for item in model.graph.output}


def _drop_unread_arguments(
    model: onnx.ModelProto, *, key: graph_walk.FunctionKey, function: onnx.FunctionProto
) -> bool:
    """Take parameters that nothing in ``function`` reads out of it and of its calls; whether there were any."""
    read = {name for inner in graph_walk.all_nodes(function.node) for name in inner.input} | set(function.output)
    unread = [number for number, name in enumerate(function.input) if name not in read]
    if not unread:
        return False
    for nodes in (model.graph.node, *(other.node for other in model.functions)):
        for node in graph_walk.all_nodes(nodes):
            if graph_walk.key_of(node) == key:
                _without(node.input, unread)
    _without(function.input, unread)
    return True


def _without(names: MutableSequence[str], numbers: Sequence[int]) -> None:
    kept = [name for number, name in enumerate(names) if number not in numbers]
    del names[:]
    names.extend(kept)
