"""The boundary of a program: names, types, shapes and retained states of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from qeff_engine.simulated_sdk.io_types import BY_ONNX, BY_PRECISION, FLOAT, FLOAT16, FLOATING_ONNX, MXINT8, IoType
from qeff_engine.simulated_sdk.network_description import Binding
from qeff_engine.simulated_sdk.refusal import input_refusal, model_refusal
from qeff_engine.simulated_sdk.shapes import StaticShape, graph_inputs

# The second ending is what exports with subfunctions use; runtimes show the first for both.
_RETAINED = "_RetainedState"
_INTERNAL = "_InternalRetainedState"


def make(
    model: onnx.ModelProto, *, shapes: list[StaticShape], custom_io: Mapping[str, str], retained: bool
) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Inputs and outputs in graph order.

    Args:
        model: the graph.
        shapes: one for each specialization, all outputs known.
        custom_io: precision by tensor name.
        retained: outputs ``X_RetainedState`` stay on the device as the next call's ``X``.

    Raises:
        Refusal: custom IO names what the graph does not have, or a precision that it cannot have.
    """
    inputs, outputs = graph_inputs(model), list(model.graph.output)
    types = {item.name: item.type.tensor_type.elem_type for item in (*inputs, *outputs)}
    known = types.keys() | {_shown(name) for name in types}
    unknown = [name for name in custom_io if name not in known and _shown(name) not in known]
    if unknown:
        raise input_refusal(f"Custom IO list: the model has no input or output '{unknown[0]}'.")
    precisions = {_shown(name): precision for name, precision in custom_io.items()}
    states = {_state(item.name) for item in outputs if _state(item.name) in types} if retained else set()

    def binding(name: str, *, state: str, all_dims: list[tuple[int, ...]]) -> Binding:
        state_of = state if state in states else ""
        io_type = _io_type(name, onnx_type=types[name], precision=precisions.get(_shown(name)))
        if io_type is MXINT8 and not state_of:
            raise input_refusal(f"Custom IO list: mxint8 for '{name}' is supported for retained states only.")
        return Binding(
            name=_shown(name),
            graph_name=name,
            io_type=io_type,
            graph_type=FLOAT if types[name] == FLOAT16.onnx else BY_ONNX[types[name]],
            shapes=tuple(all_dims),
            state_of=state_of,
        )

    input_dims = {item.name: [shape.inputs[item.name] for shape in shapes] for item in inputs}
    output_dims = {
        item.name: [dims for shape in shapes if (dims := shape.outputs[item.name]) is not None] for item in outputs
    }
    return (
        tuple(binding(name, state=name, all_dims=dims) for name, dims in input_dims.items()),
        tuple(binding(name, state=_state(name), all_dims=dims) for name, dims in output_dims.items()),
    )


def _shown(name: str) -> str:
    return name.removesuffix(_INTERNAL) + _RETAINED if name.endswith(_INTERNAL) else name


def _state(name: str) -> str:
    """The input whose next value this output is; nothing for other outputs."""
    shown = _shown(name)
    return shown.removesuffix(_RETAINED) if shown.endswith(_RETAINED) else ""


def _io_type(name: str, *, onnx_type: int, precision: str | None) -> IoType:
    if onnx_type not in BY_ONNX or BY_ONNX[onnx_type].dtype is None:
        kind = TensorProto.DataType.Name(onnx_type)
        raise model_refusal(f"'{name}' has the type {kind}, which a program's boundary does not support.")
    if precision is None:
        return BY_ONNX[onnx_type]
    if onnx_type not in FLOATING_ONNX or precision not in BY_PRECISION:
        raise input_refusal(f"Custom IO list: '{name}' cannot have the precision {precision}.")
    return BY_PRECISION[precision]
