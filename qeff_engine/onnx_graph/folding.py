"""Constant folding and cleaning of graphs whose weights have no values."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import _constant_folding
from torch._subclasses.fake_tensor import FakeTensor

_LARGEST_INPUT = 1024  # elements
_LARGEST_OUTPUT = 64 * 1024  # elements: larger constants are cheaper to compute than to store


def fold(model: ir.Model) -> None:
    """Compute what depends on constants alone, and drop what nothing uses."""
    passes = (
        _constant_folding.FoldConstantsPass(
            shape_inference=False,
            input_size_limit=_LARGEST_INPUT,
            output_size_limit=_LARGEST_OUTPUT,
            should_fold=_leave_weights,
        ),
        common.RemoveUnusedNodesPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    )
    for item in passes:
        item(model)


def has_no_values(value: ir.Value | None) -> bool:
    """Whether a value is a weight that is bound later."""
    tensor = None if value is None else value.const_value
    return isinstance(getattr(tensor, "raw", None), FakeTensor)


def _leave_weights(node: ir.Node) -> bool | None:
    return False if any(has_no_values(value) for value in node.inputs) else None
