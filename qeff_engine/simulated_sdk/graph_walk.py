"""Walking through an ONNX model: nodes with their subgraphs, functions by key, constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

FunctionKey = tuple[str, str, str]
ONNX_DOMAINS = ("", "ai.onnx")


def functions_of(model: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    """The model's local functions by (domain, name, overload)."""
    return {(item.domain, item.name, item.overload): item for item in model.functions}


def key_of(node: onnx.NodeProto) -> FunctionKey:
    """The key of the function that a node calls, if it calls one."""
    return (node.domain, node.op_type, node.overload)


def is_onnx(node: onnx.NodeProto, *op_types: str) -> bool:
    """Whether a node is one of these operators of the standard."""
    return node.domain in ONNX_DOMAINS and node.op_type in op_types


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies that a node has as attributes (``If``, ``Loop``, ``Scan``)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those inside their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def captured_names(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name that a subgraph of these nodes reads, which includes all it captures from outside."""
    return {
        name for node in nodes for graph in subgraphs(node) for inner in all_nodes(graph.node) for name in inner.input
    }


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """An attribute of a node, or None."""
    return next((item for item in node.attribute if item.name == name), None)


def int_attribute(node: onnx.NodeProto, name: str, *, default: int) -> int:
    """An integer attribute of a node."""
    found = attribute(node, name)
    return default if found is None else int(found.i)
