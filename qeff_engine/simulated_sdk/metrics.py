"""What the compiler says about a program's sizes."""

from __future__ import annotations

import json
from collections import Counter
from math import prod

import onnx

from qeff_engine.simulated_sdk import compile_time
from qeff_engine.simulated_sdk.lowering import Lowered
from qeff_engine.simulated_sdk.network_description import Network

_VTCM_BYTES = 8_323_072  # usable by one core, as the real compiler prints it


def print_metrics(network: Network, *, lowered: Lowered) -> None:
    """Print the lines that ``-aic-perf-metrics`` asks for; sizes are those of the card's form."""
    flops = max(work.flops for work in network.works)
    print(f"Estimated MACs: {flops / 2:.0f}")
    for name, count in sorted(_histogram(lowered.model).items()):
        print(f"  {name}: {count}")
    for core in range(network.num_cores):
        print(f"VTCM{core}Size: {_VTCM_BYTES}")
    print(f"VTCMMaxSize: {_VTCM_BYTES}")
    print(f"StaticSharedDDRSize: {network.dram_bytes - network.constants_bytes}")
    print(f"StaticConstantsSize: {network.constants_bytes}")
    reads = max(work.ddr_bytes for work in network.works)
    for core in range(network.num_cores):
        print(f"c{core:02d} DDR traffic: {reads / network.num_cores:.0f}")
    print(f"Barriers: {max(work.num_operators for work in network.works)}")
    print(f"constants.bin QPC section size: {network.constants_bytes}")
    print(f"ELF sections size: {lowered.model.ByteSize()}", flush=True)


def print_compile_time(network: Network, *, lowered: Lowered) -> None:
    """Print what the real compiler would have taken for this program; the form is this SDK's own."""
    weight_bytes = sum(4 * prod(item.weight.dims) for item in lowered.constants)
    samples = [binding.shapes[0][0] for binding in network.inputs if binding.shapes[0]]
    taken_s = compile_time.seconds(
        operators=sum(work.num_operators for work in network.works),
        weight_bytes=weight_bytes,
        cores=network.num_cores,
        ols=network.ols,
        mos=network.mos,
        batch=samples[0] if samples else 1,
    )
    memory_mib = compile_time.memory_bytes(weight_bytes=weight_bytes) / 2**20
    print(f"Predicted compile time of the real compiler: {taken_s:.1f} s")
    print(f"Predicted compile memory of the real compiler: {memory_mib:.0f} MiB", flush=True)


def _histogram(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def constants_table(lowered: Lowered) -> bytes:
    """``constantsdesc.bin``: name, form and place of every constant, as JSON."""
    table = [
        {
            "name": item.name,
            "form": "mxfp6" if item.mx_axis is not None else onnx.TensorProto.DataType.Name(item.onnx_type).lower(),
            "dims": item.weight.dims,
            "offset": item.offset,
            "bytes": item.num_bytes,
        }
        for item in lowered.constants
    ]
    return json.dumps(table).encode()
