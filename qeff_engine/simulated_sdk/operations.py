"""What a program does in one call, operator by operator: the input of the cost model. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

# Operators of the matrix unit: a product with a weight, one of two activations, a convolution.
MATRIX_KINDS = ("matmul", "product", "conv")
# Operators of the vector unit. Other element-wise arithmetic is taken as fused into what makes its input.
VECTOR_KINDS = ("softmax", "normalization", "activation", "scaling", "pooling", "depthwise")
# Retained states, read whole.
STATES = "states"
KINDS = (*MATRIX_KINDS, *VECTOR_KINDS, STATES)

PRECISIONS = ("fp32", "fp16", "mxfp6", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """Equal operators of a call. Every figure is of one of them, over all devices that the program is sliced over.

    Attributes:
        kind: one of :data:`KINDS`.
        precision: of its weights, one of :data:`PRECISIONS`; MXFP6 computes in fp16.
        count: how many equal ones there are.
        samples: size of the outermost axis of what it makes, by which it is split over cores at first.
        flops: of the matrix unit, an addition and a multiplication counted as two.
        tiled_flops: the same with rows, columns and the reduced axis filled up to whole tiles.
        weights: elements read from DDR.
        weight_bytes: the same in their stored form.
        activation_bytes: activations that enter and leave, two bytes each, or one in INT8.
        elements: that the vector unit makes: outputs; taps of a window times outputs for ``pooling``, ``depthwise``.
        state_bytes: of retained states, in their stored form.
    """

    kind: str
    precision: str = "fp16"
    count: int = 1
    samples: int = 1
    flops: int = 0
    tiled_flops: int = 0
    weights: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0
    elements: int = 0
    state_bytes: int = 0


def merged(operations: Iterable[Operation]) -> tuple[Operation, ...]:
    """The same work with equal operators in one record, in the order in which each comes first."""
    counts: dict[Operation, int] = {}
    for operation in operations:
        single = dataclasses.replace(operation, count=1)
        counts[single] = counts.get(single, 0) + operation.count
    return tuple(dataclasses.replace(single, count=count) for single, count in counts.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one call of one specialization does, over all devices.

    Attributes:
        operations: merged records.
        reductions: all-reduces, if the program is sliced over devices.
        reduction_bytes: that one of them exchanges, as sent.
        io_bytes: buffers that go between host and device.
        transfers: from how many other parts of a pipeline a part gets what it needs.
        transfer_bytes: that it gets, as sent.
    """

    operations: tuple[Operation, ...] = ()
    reductions: int = 0
    reduction_bytes: int = 0
    io_bytes: int = 0
    transfers: int = 0
    transfer_bytes: int = 0

    @property
    def flops(self) -> int:
        """Of the matrix unit."""
        return sum(item.count * item.flops for item in self.operations)

    @property
    def ddr_bytes(self) -> int:
        """Weights and states that are read."""
        return sum(item.count * (item.weight_bytes + item.state_bytes) for item in self.operations)

    @property
    def num_operators(self) -> int:
        """Operators that end with a barrier between the cores."""
        return sum(item.count for item in self.operations if item.kind != STATES)


_ITEM_BYTES = {"fp32": 4, "fp16": 2, "mxfp6": 2, "int8": 1}
_MX_BLOCK, _MX_BLOCK_BYTES = 32, 25  # 32 elements of 6 bits and a scale of 8
_LANES = 32  # a tile of the matrix unit is 2048 bytes, layouts come in blocks of 32 lanes


def _filled(size: int) -> int:
    return -(-size // _LANES) * _LANES


def matmul(
    *, rows: int, inner: int, columns: int, samples: int, precision: str = "fp16", matrices: int = 1
) -> Operation:
    """A product of activations with a weight.

    Args:
        rows: of all activations, samples included.
        inner: axis that the product reduces.
        columns: of the weight.
        samples: among which the rows are divided.
        precision: of the weight.
        matrices: that the weight consists of, each for an equal part of the rows.
    """
    item_bytes = _ITEM_BYTES[precision]
    weights = matrices * inner * columns
    mx_bytes = matrices * -(-inner // _MX_BLOCK) * _MX_BLOCK_BYTES * columns
    return Operation(
        kind="matmul",
        precision=precision,
        samples=samples,
        flops=2 * rows * inner * columns,
        tiled_flops=2 * matrices * _filled(-(-rows // matrices)) * _filled(inner) * _filled(columns),
        weights=weights,
        weight_bytes=mx_bytes if precision == "mxfp6" else weights * item_bytes,
        activation_bytes=rows * (inner + columns) * item_bytes,
        elements=rows * columns,
    )


def product(*, matrices: int, rows: int, inner: int, columns: int, samples: int, precision: str = "fp16") -> Operation:
    """``matrices`` products of two activations each, ``rows`` x ``inner`` and ``inner`` x ``columns``.

    The right sides stream in, from a retained state or from what was just made, and need no room of their own.
    """
    return Operation(
        kind="product",
        precision=precision,
        samples=samples,
        flops=2 * matrices * rows * inner * columns,
        tiled_flops=2 * matrices * _filled(rows) * _filled(inner) * _filled(columns),
        activation_bytes=matrices * rows * (inner + columns) * _ITEM_BYTES[precision],
        elements=matrices * rows * columns,
    )


def conv(
    *,
    samples: int,
    in_channels: int,
    out_channels: int,
    kernel: int,
    in_pixels: int,
    out_pixels: int,
    groups: int = 1,
    precision: str = "fp16",
) -> Operation:
    """A convolution; one with a group for each channel is done by the vector unit.

    Args:
        samples: images.
        in_channels: of all groups.
        out_channels: of all groups.
        kernel: taps of the window.
        in_pixels: of an image that enters.
        out_pixels: of an image that leaves.
        groups: of channels.
        precision: of weights and activations.
    """
    item_bytes = _ITEM_BYTES[precision]
    outputs = samples * out_channels * out_pixels
    depthwise = groups > 1 and groups == in_channels
    inner = (in_channels // groups) * kernel
    rows = samples * out_pixels
    weights = out_channels * inner
    return Operation(
        kind="depthwise" if depthwise else "conv",
        precision=precision,
        samples=samples,
        flops=0 if depthwise else 2 * rows * weights,
        tiled_flops=0 if depthwise else 2 * _filled(rows) * _filled(inner) * _filled(out_channels),
        weights=weights,
        weight_bytes=weights * item_bytes,
        activation_bytes=(samples * in_channels * in_pixels + outputs) * item_bytes,
        elements=outputs * kernel if depthwise else outputs,
    )


def vector(kind: str, *, samples: int, elements: int, taps: int = 1, precision: str = "fp16") -> Operation:
    """An operator of the vector unit on ``elements`` outputs, each made of ``taps`` inputs."""
    moved = 2 * elements * _ITEM_BYTES[precision]
    return Operation(kind=kind, precision=precision, samples=samples, activation_bytes=moved, elements=elements * taps)


def states(*, num_bytes: int, samples: int) -> Operation:
    """A retained state that is read whole."""
    return Operation(kind=STATES, samples=samples, state_bytes=num_bytes)
