"""Which values of a graph fp16 is too coarse for: angles that grow with the position.

A rotary embedding takes sine and cosine of position times frequency. At position 1000 fp16 numbers are half a radian
apart, so a card that computes everything in fp16 turns heads by wrong angles. Its compiler can keep nodes in fp32 that
are named by their outputs (``-node-precision-info``).
"""

from __future__ import annotations

import math

import onnx_ir as ir

_LARGEST_TABLE = 4096  # elements; more are weights, and what is computed from them is no position
_INTEGERS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL})


def angle_values(graph: ir.Graph) -> tuple[str, ...]:
    """Names of all sines and cosines of positions in the main graph, and of the values that they are computed from."""
    names: dict[str, None] = {}
    for node in graph:
        if node.domain == "" and node.op_type in ("Sin", "Cos"):
            names |= dict.fromkeys(_computed_from_positions(node))
    return tuple(names)


def _computed_from_positions(last: ir.Node) -> list[str]:
    """Names of floating values up to ``last``; nothing if it depends on more than positions and small constants."""
    names: list[str] = []
    pending, seen = [(last, True)], set()
    while pending:
        node, is_floating = pending.pop()
        if (node, is_floating) in seen:
            continue
        seen.add((node, is_floating))
        if node.domain != "" or any(not _is_position_or_small(value) for value in node.inputs if value is not None):
            return []
        if is_floating and node.op_type != "Constant":
            names += [value.name for value in node.outputs if value.name]
        is_floating = is_floating and node.op_type != "Cast"
        producers = [value.producer() for value in node.inputs if value is not None]
        pending += [(producer, is_floating) for producer in producers if producer is not None]
    return names


def _is_position_or_small(value: ir.Value) -> bool:
    if value.is_initializer():
        shape = value.shape
        return shape is not None and math.prod(int(size) for size in shape.dims) <= _LARGEST_TABLE
    # What a node has made is looked at by itself.
    return value.producer() is not None or value.dtype in _INTEGERS
