"""What a program does in a call and what it needs of memory, as a whole and for each part of a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from math import prod

from qeff_engine.simulated_sdk import cost_parameters, operations
from qeff_engine.simulated_sdk.network_description import Binding, Stage
from qeff_engine.simulated_sdk.operations import Operation, Work
from qeff_engine.simulated_sdk.partitions import Cut
from qeff_engine.simulated_sdk.shapes import StaticShape

_FP16_BYTES = 2
_MXINT8_SHARE = 8.25 / 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary:
    """The bindings of a program, or those that a part of it has.

    Attributes:
        inputs: with the states.
        outputs: with the states' next values.
        mxint8_exchange: devices exchange activations in MXINT8.
    """

    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    mxint8_exchange: bool

    @property
    def states(self) -> tuple[Binding, ...]:
        """Those of the inputs."""
        return tuple(binding for binding in self.inputs if binding.state_of)

    @property
    def buffers(self) -> tuple[Binding, ...]:
        """What goes between host and device."""
        return tuple(binding for binding in self.inputs + self.outputs if not binding.state_of)


def of_call(found: Iterable[Operation], *, number: int, boundary: Boundary) -> Work:
    """What a call of the specialization ``number`` does, whose graph has the operations ``found``."""
    states = [
        operations.states(num_bytes=_card_bytes(state, dims=dims), samples=dims[0] if dims else 1)
        for state in boundary.states
        for dims in [state.shapes[number]]
    ]
    made = operations.merged([*found, *states])
    # A decoder layer keeps a key and a value; without states a layer has about eight products (q k v o, two of
    # attention, two or three of the feed-forward part). Two all-reduces per layer, each as large as the first product.
    matrices = [item for item in made if item.kind in ("matmul", "product")]
    layers = len(states) // 2 if states else sum(item.count for item in matrices) // 8
    exchanged = matrices[0].elements * _FP16_BYTES if matrices else 0
    return Work(
        operations=made,
        reductions=2 * layers,
        reduction_bytes=round(exchanged * _MXINT8_SHARE) if boundary.mxint8_exchange else exchanged,
        io_bytes=sum(item.io_type.num_bytes(item.shapes[number]) for item in boundary.buffers),
    )


def dram_bytes(boundary: Boundary, *, constants_bytes: int) -> int:
    """Memory of a program with these bindings on all its devices together."""
    return constants_bytes + _states_bytes(boundary) + _shared_bytes(boundary)


def stages(
    cut: Cut, *, shapes: Sequence[StaticShape], boundary: Boundary, constants_bytes: Sequence[int]
) -> tuple[Stage, ...]:
    """The parts of a pipeline; empty for a program that is none.

    Inputs go to the first part and outputs leave the last; a state is where its next value is made.

    Args:
        cut: of the graph.
        shapes: of every specialization.
        boundary: of the whole program.
        constants_bytes: that each part reads.
    """
    if cut.num_parts == 1:
        return ()
    shared, num_devices = _shared_bytes(boundary), sum(len(item.devices) for item in cut.partitions)
    made: list[Stage] = []
    for part, partition in enumerate(cut.partitions):
        own = _of_part(part, boundary=boundary, cut=cut)
        works = [of_call(shape.parts[part], number=number, boundary=own) for number, shape in enumerate(shapes)]
        share = shared * len(partition.devices) // num_devices
        stage = Stage(
            devices=partition.devices,
            dram_bytes=constants_bytes[part] + _states_bytes(own) + share,
            works=tuple(
                dataclasses.replace(
                    work, transfers=shape.hand_overs[part].count, transfer_bytes=_sent_bytes(shape, part, boundary)
                )
                for work, shape in zip(works, shapes, strict=True)
            ),
        )
        made.append(stage)
    return tuple(made)


def _sent_bytes(shape: StaticShape, part: int, boundary: Boundary) -> int:
    plain = shape.hand_overs[part].num_bytes
    return round(plain * _MXINT8_SHARE) if boundary.mxint8_exchange else plain


def _of_part(part: int, *, boundary: Boundary, cut: Cut) -> Boundary:
    next_values = {item.state_of: item.graph_name for item in boundary.outputs if item.state_of}
    last = cut.num_parts - 1
    inputs = tuple(
        item
        for item in boundary.inputs
        if (cut.part_making(next_values.get(item.name, "")) if item.state_of else 0) == part
    )
    outputs = tuple(item for item in boundary.outputs if not item.state_of and part == last)
    return dataclasses.replace(boundary, inputs=inputs, outputs=outputs)


def _card_bytes(state: Binding, *, dims: tuple[int, ...]) -> int:
    """Bytes of a state as the card keeps it."""
    fp32 = state.io_type.item_bytes == 4
    return prod(dims) * _FP16_BYTES if fp32 else state.io_type.num_bytes(dims)


def _states_bytes(boundary: Boundary) -> int:
    return sum(_card_bytes(state, dims=state.largest) for state in boundary.states)


def _shared_bytes(boundary: Boundary) -> int:
    """Of buffers and of the program itself."""
    program_mib: int = cost_parameters.values(cost_parameters.table()["limits"])["program_dram_mib"]
    return sum(item.io_type.num_bytes(item.largest) for item in boundary.buffers) + (program_mib << 20)
