"""How a program is divided over devices: the configuration that the compiler reads, and the cuts of a pipeline.

Source of the form: QEfficient's generator of such files and the vendor's page on model sharding
(https://quic.github.io/cloud-ai-sdk-pages, *Model sharding*).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qeff_engine import exported
from qeff_engine.errors import Unsupported

PEER, HOST = "p2p", "host"  # devices exchange data directly, or through the host's memory


def partition_json(
    *, num_devices: int, num_cores: int, link: str = PEER, nodes: Sequence[Sequence[str]] | None = None
) -> str:
    """The text of a partition configuration.

    Args:
        num_devices: devices that share the program, numbered from 0.
        num_cores: cores of each.
        link: ``p2p``, or ``host``, which the compiler takes from the absence of connections.
        nodes: names of the nodes of each part of a pipeline, whose devices follow one another; None for a single part,
            in which every device computes its share of every node.
    """
    devices = [{"deviceId": device, "numCores": num_cores} for device in range(num_devices)]
    parts = len(nodes) if nodes else 1
    each = num_devices // parts
    partitions: list[dict[str, Any]] = []
    for part in range(parts):
        partition: dict[str, Any] = {"name": f"Partition{part}", "devices": devices[part * each : (part + 1) * each]}
        if nodes:
            partition["nodeList"] = list(nodes[part])
        partitions.append(partition)
    connections = {"connections": [{"devices": list(range(num_devices)), "type": PEER}]} if link == PEER else {}
    return json.dumps({**connections, "partitions": partitions}, indent=1) + "\n"


def cut(onnx_file: Path, *, parts: int) -> list[list[str]]:
    """The names of a graph's nodes for each part of a pipeline: layers evenly, and what is around them.

    Layers are the calls of the functions that an export makes of them. Where they do not divide evenly, the parts in
    the middle get one more each, since the first and the last have embedding and head. What stands before the first
    layer belongs to the first part, what stands between two layers to the later one, and what stands behind the last to
    the last part. That the compiler takes the name of a call for the whole function is assumed: no document says it.

    Raises:
        Unsupported: the graph has fewer layers than parts, or nodes that cannot be told apart by their names.
    """
    import onnx

    model = onnx.load(onnx_file, load_external_data=False)
    names = [node.name for node in model.graph.node]
    layers = [at for at, node in enumerate(model.graph.node) if node.domain == exported.LAYERS_DOMAIN]
    if len(layers) < parts:
        raise Unsupported(
            f"The graph {onnx_file.name} has {len(layers)} layers as functions, expected at least the {parts} parts of "
            "the pipeline.",
            advice="Ask for fewer parts, or slice over all devices.",
        )
    if not all(names) or len(set(names)) != len(names):
        raise Unsupported(
            f"The graph {onnx_file.name} has nodes without a name of their own, so it cannot be cut into a pipeline.",
            advice="Slice over all devices.",
        )
    starts = [0]
    for size in _sizes(len(layers), parts=parts)[:-1]:
        starts.append(starts[-1] + size)
    borders = [0, *(layers[start - 1] + 1 for start in starts[1:]), len(names)]
    return [names[borders[part] : borders[part + 1]] for part in range(parts)]


def _sizes(layers: int, *, parts: int) -> list[int]:
    """Layers of each part; the remainder goes to the middle."""
    each, more = divmod(layers, parts)
    first = (parts - more) // 2
    return [each + (first <= part < first + more) for part in range(parts)]
