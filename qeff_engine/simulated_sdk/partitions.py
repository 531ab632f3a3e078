"""A graph divided into the parts of a pipeline of devices, as a partition file lists its nodes.

A node that no part lists belongs to the part of the node before it. What passes of the compiler put in the place of a
node is recognized by what it makes: names of values outlive them, names of nodes do not.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx

from qeff_engine.simulated_sdk import graph_walk
from qeff_engine.simulated_sdk.io_types import BY_ONNX, FLOATING_ONNX
from qeff_engine.simulated_sdk.lowering import Lowered
from qeff_engine.simulated_sdk.refusal import input_refusal
from qeff_engine.simulated_sdk.shape_propagation import Propagation
from qeff_engine.simulated_sdk.side_files import Partition

_FP16_BYTES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandOver:
    """What a part of a pipeline gets from others in a call.

    Attributes:
        count: parts that it gets something from.
        num_bytes: of all that it gets.
    """

    count: int = 0
    num_bytes: int = 0


class Cut:
    """Which part of a pipeline does which node; without partitions, or with one, a single part does all."""

    def __init__(self, model: onnx.ModelProto, *, partitions: Sequence[Partition], path: Path | None) -> None:
        """Divide the nodes of the main graph.

        Args:
            model: as it was read.
            partitions: of the file ``path``.
            path: for messages.

        Raises:
            Refusal: a partition lists a node that the graph has not, or has twice, or that was listed before.
        """
        self.partitions = tuple(partitions)
        self.num_parts = max(len(partitions), 1)
        counts = collections.Counter(node.name for node in model.graph.node)
        listed: dict[str, int] = {}
        for number, partition in enumerate(partitions):
            for name in partition.nodes:
                if counts[name] != 1:
                    raise input_refusal(
                        f"{path}: '{partition.name}' lists the node '{name}', of which the graph has {counts[name]}, "
                        "expected one."
                    )
                if name in listed:
                    raise input_refusal(
                        f"{path}: the node '{name}' is listed by '{partition.name}' and, before, by "
                        f"'{partitions[listed[name]].name}'."
                    )
                listed[name] = number
        part = 0
        self._of_value: dict[str, int] = {}
        for node in model.graph.node:
            part = listed.get(node.name, part)
            self._of_value.update(dict.fromkeys(node.output, part))
        self._of_value.pop("", None)

    def part_making(self, value: str) -> int:
        """The part that makes a value of the main graph; the first one for what no node makes."""
        return self._of_value.get(value, 0)

    def parts_of(self, nodes: Sequence[onnx.NodeProto]) -> list[int]:
        """The part of each of these nodes, which are the main graph's, later in its compilation.

        Whatever stands in the place of a node ends with what made its outputs, so what makes only unknown values
        belongs to the next node that makes a known one.
        """
        part, found = self.num_parts - 1, []
        for node in reversed(nodes):
            part = next((self._of_value[name] for name in node.output if name in self._of_value), part)
            found.append(part)
        return found[::-1]

    def constant_bytes(self, lowered: Lowered) -> list[int]:
        """Bytes of the constants that each part reads, in the card's form; one that several read counts for each."""
        graph = lowered.model.graph
        sizes = {item.name: item.num_bytes for item in lowered.constants}
        readers: dict[str, set[int]] = {name: set() for name in sizes}
        # Of values that come from constants alone: those constants.
        sources = {tensor.name: frozenset({tensor.name} & sizes.keys()) for tensor in graph.initializer}
        for node, part in zip(graph.node, self.parts_of(graph.node), strict=True):
            names = _read(node)
            found = frozenset[str]().union(*(sources.get(name, ()) for name in names))
            if all(name in sources for name in names):
                sources.update(dict.fromkeys(node.output, found))
            else:
                for name in found:
                    readers[name].add(part)
        totals = [0] * self.num_parts
        for name, size in sizes.items():
            for part in readers[name] or {0}:
                totals[part] += size
        return totals

    def hand_overs(self, flat: onnx.ModelProto, *, known: Propagation, to_fp16: bool) -> list[HandOver]:
        """What each part gets from others: values that depend on inputs, each once.

        Args:
            flat: the graph with its functions inlined.
            known: its values.
            to_fp16: floating values are exchanged in fp16, whatever their type in the graph.
        """
        nodes = flat.graph.node
        fixed = {tensor.name for tensor in flat.graph.initializer}
        made_in: dict[str, int] = {}
        got: list[dict[str, int]] = [{} for _ in range(self.num_parts)]  # by part: value to the part that made it
        for node, part in zip(nodes, self.parts_of(nodes), strict=True):
            names = _read(node)
            if all(map(known.is_known, node.output)) or all(name in fixed for name in names):
                fixed.update(node.output)
                continue
            got[part].update({name: made_in[name] for name in names if made_in.get(name, part) != part})
            made_in.update(dict.fromkeys(node.output, part))
        return [
            HandOver(
                count=len(set(values.values())),
                num_bytes=sum(_num_bytes(name, known=known, to_fp16=to_fp16) for name in values),
            )
            for values in got
        ]


def _read(node: onnx.NodeProto) -> set[str]:
    return {*filter(None, node.input), *graph_walk.captured_names([node])}


def _num_bytes(name: str, *, known: Propagation, to_fp16: bool) -> int:
    dims, kind = known.dims(name), known.element_type(name)
    if dims is None or kind not in BY_ONNX:
        return 0
    num_bytes = BY_ONNX[kind].num_bytes(dims)
    halved = to_fp16 and kind in FLOATING_ONNX
    return num_bytes // BY_ONNX[kind].item_bytes * _FP16_BYTES if halved else num_bytes
