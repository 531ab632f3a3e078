"""What ``torch.onnx.export`` need not do again for every graph: list its translations, and trace a second time.

It runs every program once more, to break up operators. That is a third of an export. Where each operator has a
translation as it is, and none writes into its inputs, it changes nothing but the time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.onnx._internal.exporter import _decomp, _fx_passes, _registration

_aten = torch.ops.aten
_CASTS = (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten.to.other)
_ALIASES = {
    _aten.__and__.Tensor: _aten.bitwise_and.Tensor,
    _aten.__or__.Tensor: _aten.bitwise_or.Tensor,
    _aten.__and__.Scalar: _aten.bitwise_and.Scalar,
    _aten.__or__.Scalar: _aten.bitwise_or.Scalar,
}
_SYMBOLIC = "onnx_symbolic"  # namespace of operators that are nodes already

decompose = _fx_passes.decompose_with_registry
_from_torchlib = _registration.ONNXRegistry.from_torchlib


def registry(opset_version: int) -> Any:
    """A registry of translations of one's own; a replacement for torch's function of this signature."""
    own = _registration.ONNXRegistry()
    own._opset_version = opset_version
    own.functions = {target: list(found) for target, found in _all_translations(opset_version).items()}
    return own


@functools.cache
def _all_translations(opset_version: int) -> Any:
    return _from_torchlib(opset_version=opset_version).functions


def decompose_where_needed(program: Any, registry: Any) -> Any:
    """The program in operators that have a translation; a replacement for torch's function of this signature."""
    known = set(_decomp.get_onnx_implemented_overloads(registry))
    graph = program.graph_module.graph
    if any(_needs_decomposition(node, known=known) for node in graph.nodes):
        return decompose(program, registry)
    for node in list(graph.nodes):
        if node.target in _ALIASES:
            node.target = _ALIASES[node.target]
        elif node.target in _CASTS:
            _simplify_cast(graph, node)
        elif node.op == "call_function" and "val" not in node.meta:
            # transformers has put it in the place of one that wrote into its first input, and had that one's shape.
            node.meta["val"] = node.args[0].meta["val"]
    program.graph_module.recompile()
    return program


def _needs_decomposition(node: Any, *, known: set[Any]) -> bool:
    if node.op == "get_attr":
        return True
    target = node.target
    if node.op != "call_function" or target in _CASTS or target in _ALIASES:
        return False
    if isinstance(target, torch._ops.OpOverload):
        return target.namespace != _SYMBOLIC and (target not in known or bool(target._schema.is_mutable))
    return isinstance(target, torch._ops.HigherOrderOperator)


def _simplify_cast(graph: Any, node: Any) -> None:
    source = node.args[0]
    wanted = node.meta["val"].dtype
    # An output of the program stays a node of its own, since the program's signature names it.
    is_output = any(user.op == "output" for user in node.users)
    if source.meta["val"].dtype == wanted and not is_output:
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    else:
        node.target, node.args, node.kwargs = _aten._to_copy.default, (source,), {"dtype": wanted}
