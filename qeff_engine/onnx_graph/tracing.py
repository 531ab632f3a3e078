"""From a torch module to an ONNX graph, without weights and with named axes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.onnx._internal.exporter import _fx_passes, _registration
from transformers.exporters import exporter_onnx
from transformers.exporters import utils as exporter_utils

from qeff_engine import exported, patching
from qeff_engine.errors import Unsupported
from qeff_engine.onnx_graph import decomposing, folding, naming, translations
from qeff_engine.onnx_graph.functions import OPSET

# Sizes of symbolic axes while tracing: no two alike, so that torch cannot take them for one, and none is 0 or 1.
SIZES = {"batch_size": 2, "seq_len": 6, "ctx_len": 20}
_OTHER_SIZES = (7, 11, 13, 17, 19, 23)
_DTYPES = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32, "bool": torch.bool}


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Make torch and transformers traceable for the time of a block, by what transformers ships for its exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    changes = [
        (_fx_passes, "decompose_with_registry", decomposing.decompose_where_needed),
        (_registration.ONNXRegistry, "from_torchlib", staticmethod(decomposing.registry)),
    ]
    with (
        torch.no_grad(),
        exporter_utils.apply_patches("onnx"),
        exporter_utils.apply_patches("dynamo"),
        patching.attributes(changes),
        # Torch remembers operators by their symbolic shapes, which hardly ever come again.
        dynamo_config.patch(fake_tensor_cache_enabled=False),
        warnings.catch_warnings(),
    ):
        # Deprecations inside torch's exporter and operators of packages that are not here: nothing that a caller
        # could change.
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def untraceable_is_unsupported(name: str) -> Iterator[None]:
    """Turn whatever torch or a model says of shapes that it cannot follow into :class:`Unsupported`."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
        raise Unsupported(
            f"{name} cannot be traced: {_root_cause(error)}",
            advice="This architecture needs more than the generic export does.",
        ) from error


def sizes_of(inputs: Mapping[str, exported.Tensor], *, variant: int = 0) -> dict[str, int]:
    """A size for each symbol of the inputs; another ``variant`` gives another size to each."""
    symbols = dict.fromkeys(axis for tensor in inputs.values() for axis in tensor.shape if isinstance(axis, str))
    others = iter(_OTHER_SIZES)
    return {symbol: (SIZES.get(symbol) or next(others)) + variant for symbol in symbols}


def examples(inputs: Mapping[str, exported.Tensor], *, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """A tensor of zeros for each input; to be called in the fake mode of the model."""
    made = {}
    for name, tensor in inputs.items():
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape]
        made[name] = torch.zeros(shape, dtype=_DTYPES[tensor.dtype])
    return made


def dynamic_axes(tensor: exported.Tensor) -> dict[int, Any]:
    """The symbolic axes of a tensor in the words of ``torch.export``."""
    return {number: torch.export.Dim.AUTO for number, axis in enumerate(tensor.shape) if isinstance(axis, str)}


def trace(
    module: nn.Module,
    arguments: tuple[Any, ...],
    *,
    dynamic_shapes: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> ir.Model:
    """The graph of a module, folded; weights are initializers without values. To be called in :func:`prepared`.

    Raises:
        Unsupported: torch cannot trace the module, its code fixes an axis that should be dynamic, or the graph has an
            operator without translation.
    """
    with untraceable_is_unsupported(type(module).__name__):
        program = torch.export.export(
            module,
            arguments,
            dynamic_shapes=dynamic_shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        _refuse_fixed_axes(program, input_names=input_names)
        exporter_utils.apply_fx_node_fixes("onnx", program.graph_module)
        found = torch.onnx.export(
            program,
            (),
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET,
            optimize=False,
            custom_translation_table={**exporter_onnx._ONNX_TRANSLATION_TABLE, **translations.TABLE},
            verbose=False,
        )
    assert found is not None
    exporter_onnx.apply_onnx_ir_fixes(found)
    folding.fold(found.model)
    return found.model


def _refuse_fixed_axes(program: Any, *, input_names: Sequence[str]) -> None:
    """Refuse a program whose code works for one size of an axis only; torch notes that and goes on."""
    fixed = {str(symbol): values.lower for symbol, values in program.range_constraints.items() if _is_one(values)}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, node_name in zip(input_names, program.graph_signature.user_inputs, strict=True):
        for number, size in enumerate(nodes[node_name].meta["val"].shape):
            if str(size) in fixed:
                raise Unsupported(f"Axis {number} of {name} is fixed at {fixed[str(size)]} by the model's code.")


def _is_one(values: Any) -> bool:
    return bool(values.lower == values.upper)


def trace_plain(
    module: nn.Module, *, inputs: Mapping[str, exported.Tensor], outputs: Mapping[str, exported.Tensor], fake_mode: Any
) -> ir.Model:
    """The graph of a module that takes and gives tensors only.

    Args:
        module: takes the inputs in their order and gives the outputs in theirs.
        inputs: types and shapes; symbols become dynamic axes of these names.
        outputs: types and shapes, in terms of the same symbols.
        fake_mode: of the model whose weights the module uses.

    Raises:
        Unsupported: the module cannot be traced, or its code fixes an axis that should be dynamic.
    """
    shapes = tuple(dynamic_axes(tensor) for tensor in inputs.values())
    with prepared():
        with fake_mode:
            arguments = tuple(examples(inputs, sizes=sizes_of(inputs)).values())
        model = trace(module, arguments, dynamic_shapes=shapes, input_names=list(inputs), output_names=list(outputs))
    name_axes(model, inputs=inputs, outputs=outputs)
    return model


def name_axes(
    model: ir.Model, *, inputs: Mapping[str, exported.Tensor], outputs: Mapping[str, exported.Tensor]
) -> None:
    """Give the axes of inputs and outputs their names, and drop the shapes in between."""
    for values, tensors in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, (name, tensor) in zip(values, tensors.items(), strict=True):
            value.name = name
            value.shape = ir.Shape(list(tensor.shape))
            value.type = ir.TensorType(ir.DataType.from_numpy(_numpy_dtype(tensor.dtype)))
    strip(model)


def strip(model: ir.Model) -> None:
    """Name nodes by where they come from; drop what a reader does not need: the code there, and shapes in between."""
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        naming.name_nodes(graph)
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
                if id(value) not in kept:
                    value.shape = None
                    value.type = None
        for value in graph.inputs:
            value.metadata_props.clear()


def _numpy_dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
