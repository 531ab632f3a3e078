"""Static shapes of a model, one specialization at a time, and the work that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx
import onnx.inliner

from qeff_engine.simulated_sdk import graph_walk, op_records, operations
from qeff_engine.simulated_sdk.operations import Operation
from qeff_engine.simulated_sdk.partitions import Cut, HandOver
from qeff_engine.simulated_sdk.refusal import model_refusal
from qeff_engine.simulated_sdk.shape_propagation import BadNode, Dims, Propagation


@dataclasses.dataclass(frozen=True, kw_only=True)
class StaticShape:
    """A model with every symbol given a size.

    Attributes:
        inputs: dims by name, in graph order.
        outputs: dims by name, in graph order; None where inference does not reach.
        parts: operations that each part of a pipeline does, retained states apart; one entry where there is none.
        hand_overs: what each part gets from others.
    """

    inputs: dict[str, Dims]
    outputs: dict[str, Dims | None]
    parts: tuple[tuple[Operation, ...], ...]
    hand_overs: tuple[HandOver, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those of all parts."""
        return operations.merged(item for part in self.parts for item in part)


def specialize(
    model: onnx.ModelProto, *, symbols: Mapping[str, int], forms: op_records.Forms, cut: Cut | None = None
) -> StaticShape:
    """Shapes and work of ``model`` with these sizes and its weights in these forms, divided as ``cut`` says.

    Raises:
        Refusal: an axis has no size, or operators do not fit each other's shapes.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.ClearField("value_info")
    inputs = {item.name: _fix(item, symbols=symbols) for item in graph_inputs(fixed)}
    for item in fixed.graph.output:
        _substitute(item, symbols=symbols)
    flat = onnx.inliner.inline_local_functions(fixed) if fixed.functions else fixed
    try:
        known = Propagation(flat, inputs={item.name: item.type for item in flat.graph.input})
    except BadNode as error:
        name, operator, reason = error.args
        raise model_refusal(f"[Operator-'{name}', {where(model)}] : {operator}: {reason}") from error
    divided = cut or Cut(fixed, partitions=(), path=None)
    parts = divided.parts_of(flat.graph.node)
    return StaticShape(
        inputs=inputs,
        outputs={item.name: known.dims(item.name) or _declared(item) for item in fixed.graph.output},
        parts=op_records.read(flat, known=known, forms=forms, parts=parts, num_parts=divided.num_parts),
        hand_overs=tuple(divided.hand_overs(flat, known=known, to_fp16=forms.to_fp16)),
    )


def where(model: onnx.ModelProto) -> str:
    """The versions that the compiler puts behind an operator's name."""
    versions = [item.version for item in model.opset_import if item.domain in graph_walk.ONNX_DOMAINS]
    return f"opset_version-{max(versions, default=0)}, ir_version-{model.ir_version}"


def _declared(item: onnx.ValueInfoProto) -> Dims | None:
    """What the graph itself says of an output's dims, after sizes have replaced symbols."""
    dims = item.type.tensor_type.shape.dim
    if not item.type.tensor_type.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller passes: those that are no initializers."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in constants]


def _fix(item: onnx.ValueInfoProto, *, symbols: Mapping[str, int]) -> Dims:
    """Give every axis of an input its size and return its dims."""
    missing = _substitute(item, symbols=symbols)
    if missing:
        raise model_refusal(
            f"Input '{item.name}' has the symbolic axis '{missing[0]}', which no specialization and no "
            f"-onnx-define-symbol gives a size; sizes are given for: {', '.join(sorted(symbols)) or 'none'}."
        )
    return tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)


def _substitute(item: onnx.ValueInfoProto, *, symbols: Mapping[str, int]) -> list[str]:
    """Replace known symbols by sizes; returns the others."""
    missing: list[str] = []
    for number, dim in enumerate(item.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            continue
        if dim.dim_param in symbols:
            dim.dim_value = symbols[dim.dim_param]
        else:
            missing.append(dim.dim_param or f"#{number}")
    return missing
