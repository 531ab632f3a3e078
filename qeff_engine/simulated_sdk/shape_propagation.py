"""Follows shapes, and the small integers that shapes are made of, through a graph without functions.

One pass in graph order: integers that come from shapes and constants are computed, every other node's output types are
asked of ONNX's own inference for that node with those integers as data. So ``Reshape``, ``Expand``, ``Slice`` and
``Range`` on computed sizes get static shapes, which whole-graph inference does not give them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import TypeProto, helper, numpy_helper

from qeff_engine.simulated_sdk import graph_walk

Dims = tuple[int, ...]
Array = npt.NDArray[Any]

_LARGEST_VALUE = 256  # elements; larger tensors are data, not shapes


class BadNode(Exception):
    """A node whose inputs do not fit; ``args`` are its name, operator and the reason."""


class Propagation:
    """Types of all values of a graph, and small integer values."""

    def __init__(self, model: onnx.ModelProto, *, inputs: dict[str, TypeProto]) -> None:
        """Follow ``model``, whose functions are inlined.

        Raises:
            BadNode: shapes or types do not fit.
        """
        self._imports = list(model.opset_import)
        self._versions = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in self._imports}
        self._ir_version = model.ir_version
        self._types = dict(inputs)
        self._values: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                self._note_value(tensor.name, tensor=tensor)
        for node in model.graph.node:
            self._follow(node)

    def dims(self, name: str) -> Dims | None:
        """Dims of a value, or None when an axis has no static size."""
        tensor = self._types[name].tensor_type if name in self._types else None
        if tensor is None or not tensor.HasField("shape"):
            return None
        if not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            return None
        return tuple(dim.dim_value for dim in tensor.shape.dim)

    def is_known(self, name: str) -> bool:
        """Whether a value is a small tensor that follows from shapes and constants."""
        return name in self._values

    def element_type(self, name: str) -> int:
        """ONNX's number of a value's element type; 0 when it is not known."""
        return int(self._types[name].tensor_type.elem_type) if name in self._types else 0

    def _note_value(self, name: str, *, tensor: onnx.TensorProto) -> None:
        if np.prod(tensor.dims, dtype=np.int64) <= _LARGEST_VALUE:
            self._values[name] = numpy_helper.to_array(tensor)

    def _follow(self, node: onnx.NodeProto) -> None:
        if graph_walk.is_onnx(node, "Reshape"):
            self._check_reshape(node)
        if not self._compute(node):
            for name, kind in self._inferred(node).items():
                self._types[name] = kind

    def _compute(self, node: onnx.NodeProto) -> bool:
        """Compute a node on known values; False when it is none of those."""
        result = self._value(node)
        if result is None or result.size > _LARGEST_VALUE:
            return False
        self._values[node.output[0]] = result
        self._types[node.output[0]] = helper.make_tensor_type_proto(
            helper.np_dtype_to_tensor_dtype(result.dtype), result.shape
        )
        return True

    def _value(self, node: onnx.NodeProto) -> Array | None:
        if graph_walk.is_onnx(node, "Shape", "Size"):
            dims = self.dims(node.input[0])
            if dims is None:
                return None
            if node.op_type == "Size":
                return np.array(np.prod(dims, dtype=np.int64))
            end = graph_walk.attribute(node, "end")
            begin = graph_walk.int_attribute(node, "start", default=0)
            return np.array(dims[begin : None if end is None else end.i], np.int64)
        if graph_walk.is_onnx(node, "Constant"):
            tensor = graph_walk.attribute(node, "value")
            return _constant(node) if tensor is None else numpy_helper.to_array(tensor.t)
        if node.domain not in graph_walk.ONNX_DOMAINS or node.op_type not in _COMPUTED:
            return None
        if not all(not name or name in self._values for name in node.input):
            return None
        try:
            return _COMPUTED[node.op_type](node, [self._values.get(name) for name in node.input])
        except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError):
            return None  # inference says what is wrong, or the value is not needed

    def _inferred(self, node: onnx.NodeProto) -> dict[str, TypeProto]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in self._versions or not onnx.defs.has(node.op_type, self._versions[domain], domain):
            return {}
        schema = onnx.defs.get_schema(node.op_type, self._versions[domain], domain)
        known = [name for name in node.input if name in self._types]
        data = {name: numpy_helper.from_array(self._values[name]) for name in known if name in self._values}
        if any(name and name not in self._types for name in node.input):
            return {}
        try:
            inferred: dict[str, TypeProto] = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in known},
                data,
                opset_imports=self._imports,
                ir_version=self._ir_version,
            )
        except onnx.shape_inference.InferenceError as error:
            if any(True for _ in graph_walk.subgraphs(node)):
                return {}  # bodies are not followed
            raise BadNode(node.name or node.output[0], node.op_type, _reason(error)) from error
        return inferred

    def _check_reshape(self, node: onnx.NodeProto) -> None:
        """Refuse another number of elements, which ONNX's inference lets pass unless an axis is -1."""
        dims, wanted = self.dims(node.input[0]), self._values.get(node.input[1])
        if dims is None or wanted is None or graph_walk.int_attribute(node, "allowzero", default=0):
            return
        sizes = [
            dims[axis] if size == 0 and axis < len(dims) else int(size) for axis, size in enumerate(wanted.tolist())
        ]
        known, total = prod(size for size in sizes if size != -1), prod(dims)
        if total != known and (-1 not in sizes or known == 0 or total % known):
            reason = f"input shape {dims} and output shape {tuple(sizes)} have different number of elements"
            raise BadNode(node.name or node.output[0], "Reshape", reason)


def _reason(error: Exception) -> str:
    return " ".join(str(error).rpartition("InferenceError]")[2].split())


def _constant(node: onnx.NodeProto) -> Array | None:
    for name, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32)):
        found = graph_walk.attribute(node, name)
        if found is not None:
            return np.array(helper.get_attribute_value(found), dtype)
    return None


_Values = Sequence[Any]


def _cast(node: onnx.NodeProto, values: _Values) -> Array:
    kind = graph_walk.int_attribute(node, "to", default=onnx.TensorProto.INT64)
    return np.asarray(values[0]).astype(helper.tensor_dtype_to_np_dtype(kind))


def _slice(_: onnx.NodeProto, values: _Values) -> Array:
    data, starts, ends = values[:3]
    axes = values[3] if len(values) > 3 and values[3] is not None else range(len(starts))
    steps = values[4] if len(values) > 4 and values[4] is not None else [1] * len(starts)
    where: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise ValueError("only forward slices are computed")
        where[int(axis)] = slice(int(start), int(end), int(step))
    return np.asarray(data[tuple(where)])


def _axes(node: onnx.NodeProto, values: _Values) -> tuple[int, ...] | None:
    """Axes as an input (from opset 13 on) or as an attribute."""
    if len(values) > 1 and values[1] is not None:
        return tuple(int(axis) for axis in values[1])
    found = graph_walk.attribute(node, "axes")
    return None if found is None else tuple(found.ints)


def _unsqueeze(node: onnx.NodeProto, values: _Values) -> Array:
    return np.expand_dims(values[0], _axes(node, values) or ())


def _squeeze(node: onnx.NodeProto, values: _Values) -> Array:
    return np.asarray(np.squeeze(values[0], _axes(node, values)))


def _reduce_product(node: onnx.NodeProto, values: _Values) -> Array:
    keep = bool(graph_walk.int_attribute(node, "keepdims", default=1))
    return np.asarray(np.prod(values[0], axis=_axes(node, values), keepdims=keep, dtype=values[0].dtype))


def _reshape(_: onnx.NodeProto, values: _Values) -> Array:
    wanted = [values[0].shape[number] if size == 0 else int(size) for number, size in enumerate(values[1])]
    return np.asarray(values[0].reshape(wanted))


def _divide(_: onnx.NodeProto, values: _Values) -> Array:
    if np.issubdtype(values[0].dtype, np.integer):
        return np.asarray(np.fix(values[0] / values[1]).astype(values[0].dtype))
    return np.asarray(values[0] / values[1])


def _filled(node: onnx.NodeProto, values: _Values) -> Array:
    fill = graph_walk.attribute(node, "value")
    value = np.float32(0) if fill is None else numpy_helper.to_array(fill.t)[0]
    if np.prod(values[0]) > _LARGEST_VALUE:
        raise ValueError("too large to be a shape")
    return np.full([int(size) for size in values[0]], value)


def _range(_: onnx.NodeProto, values: _Values) -> Array:
    if abs(float(values[1]) - float(values[0])) > _LARGEST_VALUE * abs(float(values[2])):
        raise ValueError("too large to be a shape")
    return np.arange(values[0], values[1], values[2], dtype=values[0].dtype)


def _elementwise(function: Callable[..., Any]) -> Callable[[onnx.NodeProto, _Values], Array]:
    return lambda _, values: np.asarray(function(*values))


_COMPUTED: dict[str, Callable[[onnx.NodeProto, _Values], Array]] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": lambda node, values: np.concatenate(values, axis=graph_walk.int_attribute(node, "axis", default=0)),
    "ConstantOfShape": _filled,
    "Div": _divide,
    "Equal": _elementwise(np.equal),
    "Gather": lambda node, values: np.asarray(
        np.take(values[0], values[1], axis=graph_walk.int_attribute(node, "axis", default=0))
    ),
    "Greater": _elementwise(np.greater),
    "Identity": _elementwise(np.positive),
    "Less": _elementwise(np.less),
    "Max": lambda _, values: np.asarray(functools.reduce(np.maximum, values)),
    "Min": lambda _, values: np.asarray(functools.reduce(np.minimum, values)),
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Range": _range,
    "ReduceProd": _reduce_product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(np.where),
}
