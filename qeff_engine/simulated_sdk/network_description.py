"""``networkdesc.bin``: what a runtime must know of a program, as a protobuf message.

Field numbers up to 18 are those of the open runtime's AICNetworkDesc.proto
(quic/software-kit-for-qualcomm-cloud-ai-100); from 100 on follows what this simulator adds: pairs of retained states
and the work of each specialization, equal operators in one record.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf.message import DecodeError

from qeff_engine.simulated_sdk import messages
from qeff_engine.simulated_sdk.io_types import BY_CODE, IoType
from qeff_engine.simulated_sdk.operations import Operation, Work

MAJOR_VERSION, MINOR_VERSION = 9, 0

_built = messages.build(
    "aicnwdesc",
    messages={
        "IODescriptor": {"type": (1, "uint32"), "dims": (4, "*int64")},
        "IOBinding": {
            "name": (1, "string"),
            "io_initial": (2, "IODescriptor"),
            "is_partial_allowed": (5, "bool"),
            "graph_name": (100, "string"),
            "state_of": (101, "string"),
            "graph_type": (102, "uint32"),
        },
        "tensorShape": {"type": (1, "uint32"), "dims": (2, "*int64")},
        "IOShapes": {"shapes": (1, "*tensorShape")},
        "operation": {
            "kind": (1, "string"),
            "precision": (2, "string"),
            "count": (3, "uint64"),
            "samples": (4, "uint64"),
            "flops": (5, "uint64"),
            "tiled_flops": (6, "uint64"),
            "weights": (7, "uint64"),
            "weight_bytes": (8, "uint64"),
            "activation_bytes": (9, "uint64"),
            "elements": (10, "uint64"),
            "state_bytes": (11, "uint64"),
        },
        "work": {
            "operations": (1, "*operation"),
            "reductions": (2, "uint64"),
            "reduction_bytes": (3, "uint64"),
            "io_bytes": (4, "uint64"),
            "transfers": (5, "uint64"),
            "transfer_bytes": (6, "uint64"),
        },
        "stage": {"devices": (1, "*uint32"), "dram_bytes": (2, "uint64"), "works": (3, "*work")},
        "networkDescriptor": {
            "major_version": (1, "uint32"),
            "minor_version": (2, "uint32"),
            "network_name": (3, "string"),
            "inputs": (4, "*IOBinding"),
            "outputs": (5, "*IOBinding"),
            "num_cores": (7, "uint32"),
            "batch_size": (14, "int32"),
            "allowed_shapes": (18, "*IOShapes"),
            "num_devices": (100, "uint32"),
            "works": (101, "*work"),
            "dram_bytes": (102, "uint64"),
            "constants_bytes": (103, "uint64"),
            "round_states_to_fp16": (104, "bool"),
            "sdk_version": (105, "string"),
            "hw_version": (106, "string"),
            "ols": (107, "uint32"),
            "mos": (108, "uint32"),
            "depth_first": (109, "bool"),
            "stages": (110, "*stage"),
        },
    },
)


class BadDescription(ValueError):
    """Bytes that describe no program of this version."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """An input or output at the program's boundary.

    Attributes:
        name: what clients call it.
        graph_name: what the graph calls it.
        io_type: of a client's buffer.
        graph_type: of the graph's tensor.
        shapes: dims, one entry for each specialization.
        state_of: of an output that stays on the device: the input whose next value it is; of such an input: its own
            name; empty for others.
    """

    name: str
    graph_name: str
    io_type: IoType
    graph_type: IoType
    shapes: tuple[tuple[int, ...], ...]
    state_of: str = ""

    @property
    def largest(self) -> tuple[int, ...]:
        """Dims of the largest allowed shape."""
        return max(self.shapes, key=self.io_type.num_bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a pipeline.

    Attributes:
        devices: their places among the program's, from 0 on; they share the part's work.
        dram_bytes: of all that it needs, on its devices together.
        works: what it does in a call of each specialization.
    """

    devices: tuple[int, ...]
    dram_bytes: int
    works: tuple[Work, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A program's description.

    Attributes:
        name: of the graph.
        sdk_version: of the compiler.
        hw_version: hardware that it was compiled for.
        inputs, outputs: bindings in order.
        specialized: shapes were given; otherwise the program has the graph's own.
        batch_size: samples of an inference, as the compiler was told for statistics.
        num_cores, num_devices: what it needs.
        ols, mos, depth_first: how it was split and scheduled.
        works: what a call of each specialization does.
        dram_bytes: of all that it needs, on all devices together.
        constants_bytes: among them, in the card's form.
        round_states_to_fp16: states are kept in fp16.
        stages: of a pipeline, which are passed one after another; empty where all devices share all work.
    """

    name: str
    sdk_version: str
    hw_version: str
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    specialized: bool
    batch_size: int = 1
    num_cores: int
    num_devices: int
    works: tuple[Work, ...]
    dram_bytes: int
    constants_bytes: int
    round_states_to_fp16: bool
    ols: int = 1
    mos: int = 1
    depth_first: bool = False
    stages: tuple[Stage, ...] = ()

    def device_dram_bytes(self, place: int) -> int:
        """What the program needs on one of its devices, by the device's place among them."""
        for stage in self.stages:
            if place in stage.devices:
                return -(-stage.dram_bytes // len(stage.devices))
        return -(-self.dram_bytes // self.num_devices)

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Inputs, then outputs; the position is a binding's index."""
        return self.inputs + self.outputs


def serialize(network: Network) -> bytes:
    """The message for a network."""
    message = _built["networkDescriptor"](
        major_version=MAJOR_VERSION,
        minor_version=MINOR_VERSION,
        network_name=network.name,
        num_cores=network.num_cores,
        batch_size=network.batch_size,
        num_devices=network.num_devices,
        dram_bytes=network.dram_bytes,
        constants_bytes=network.constants_bytes,
        round_states_to_fp16=network.round_states_to_fp16,
        sdk_version=network.sdk_version,
        hw_version=network.hw_version,
        ols=network.ols,
        mos=network.mos,
        depth_first=network.depth_first,
    )
    for side, bindings in (("inputs", network.inputs), ("outputs", network.outputs)):
        for binding in bindings:
            item = getattr(message, side).add(
                name=binding.name,
                graph_name=binding.graph_name,
                state_of=binding.state_of,
                graph_type=binding.graph_type.code,
                is_partial_allowed=bool(binding.state_of) or side == "outputs",
            )
            item.io_initial.type = binding.io_type.code
            item.io_initial.dims.extend(binding.largest)
    for number, work in enumerate(network.works):
        _add_work(message.works, work=work)
        if network.specialized:
            shapes = message.allowed_shapes.add()
            for binding in network.bindings:
                shapes.shapes.add(type=binding.io_type.code, dims=binding.shapes[number])
    for stage in network.stages:
        part = message.stages.add(devices=stage.devices, dram_bytes=stage.dram_bytes)
        for work in stage.works:
            _add_work(part.works, work=work)
    return bytes(message.SerializeToString(deterministic=True))


def _add_work(works: Any, *, work: Work) -> None:
    fields = {item.name: getattr(work, item.name) for item in dataclasses.fields(Work) if item.name != "operations"}
    entry = works.add(**fields)
    for operation in work.operations:
        entry.operations.add(**dataclasses.asdict(operation))


def parse(data: bytes) -> Network:
    """The network that a message describes.

    Raises:
        BadDescription: it is none, or of another version.
    """
    message = _built["networkDescriptor"]()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise BadDescription(f"The network description cannot be read: {error}") from error
    if message.major_version != MAJOR_VERSION or not message.works:
        raise BadDescription(f"The network description has version {message.major_version}, expected {MAJOR_VERSION}.")
    specialized = bool(message.allowed_shapes)
    items = [*message.inputs, *message.outputs]
    numbers = [len(entry.shapes) for entry in message.allowed_shapes]
    if specialized and numbers != [len(items)] * len(message.works):
        raise BadDescription(
            f"The network description has {len(items)} bindings, {len(message.works)} works and allowed shapes of "
            f"{numbers} bindings: it is damaged."
        )
    places = sorted(place for part in message.stages for place in part.devices)
    parts_works = [len(part.works) for part in message.stages]
    if message.stages and (places != [*range(message.num_devices)] or set(parts_works) != {len(message.works)}):
        raise BadDescription(
            f"The network description has {message.num_devices} devices, {len(message.works)} works and a pipeline on "
            f"the devices {places} with {parts_works} works: it is damaged."
        )
    bindings = [_binding(item, number=number, message=message) for number, item in enumerate(items)]
    return Network(
        name=message.network_name,
        sdk_version=message.sdk_version,
        hw_version=message.hw_version,
        inputs=tuple(bindings[: len(message.inputs)]),
        outputs=tuple(bindings[len(message.inputs) :]),
        specialized=specialized,
        batch_size=max(message.batch_size, 1),
        num_cores=message.num_cores,
        num_devices=message.num_devices,
        works=tuple(_work(item) for item in message.works),
        dram_bytes=message.dram_bytes,
        constants_bytes=message.constants_bytes,
        round_states_to_fp16=message.round_states_to_fp16,
        ols=message.ols,
        mos=message.mos,
        depth_first=message.depth_first,
        stages=tuple(
            Stage(devices=tuple(part.devices), dram_bytes=part.dram_bytes, works=tuple(map(_work, part.works)))
            for part in message.stages
        ),
    )


def _work(item: Any) -> Work:
    return Work(
        operations=tuple(
            Operation(**{field.name: getattr(entry, field.name) for field in dataclasses.fields(Operation)})
            for entry in item.operations
        ),
        reductions=item.reductions,
        reduction_bytes=item.reduction_bytes,
        io_bytes=item.io_bytes,
        transfers=item.transfers,
        transfer_bytes=item.transfer_bytes,
    )


def _binding(item: Any, *, number: int, message: Any) -> Binding:
    if item.io_initial.type not in BY_CODE or item.graph_type not in BY_CODE:
        raise BadDescription(f"Binding '{item.name}' has the unknown type {item.io_initial.type}.")
    shapes = tuple(tuple(entry.shapes[number].dims) for entry in message.allowed_shapes)
    return Binding(
        name=item.name,
        graph_name=item.graph_name,
        io_type=BY_CODE[item.io_initial.type],
        graph_type=BY_CODE[item.graph_type],
        shapes=shapes or (tuple(item.io_initial.dims),),
        state_of=item.state_of,
    )
