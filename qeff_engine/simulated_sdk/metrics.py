"""What the compiler says about a program's sizes."""

from __future__ import annotations

import json
from math import prod

import onnx

from qeff_engine.simulated_sdk import compile_time, cost_parameters
from qeff_engine.simulated_sdk.lowering import Lowered
from qeff_engine.simulated_sdk.network_description import Network


def print_metrics(network: Network, *, lowered: Lowered) -> None:
    """Print the lines that ``-aic-perf-metrics`` asks for, in the form that the SDK's profiling tutorial shows; sizes
    are those of the card's form.

    The histogram of operations by size is left out: sizes between operators are not known any more at this place.
    """
    print("AIC WARNING: MAC estimate does not yet handle all operations")
    macs = max(work.flops for work in network.works) / 2
    print(f"Original MAC estimate: {macs:.0f}")
    print(f"preD32 constants size: {sum(item.weight.num_bytes for item in lowered.constants)} B")
    print(f"AIC HMX MAC estimate:  {macs:.0f}")
    print("AIC non-HMX MAC estimate:  0")
    for name in ("d32", "final"):
        print(f"{name} constants size: {network.constants_bytes} B")
    vtcm_bytes = round(cost_parameters.load().vtcm_bytes)
    for core in range(network.num_cores):
        print(f"VTCM{core}Size:   {vtcm_bytes} B")
    print(f"VTCMMaxSize: {vtcm_bytes} B")
    shared = network.dram_bytes - network.constants_bytes
    for name, size in (("SharedDDR", shared), ("Constants", network.constants_bytes)):
        print(f"Static{name}Size: \t{size:>12} B")
        print(f"Dynamic{name}Size: \t{0:>12} B")
    print(f"Constants size: {network.constants_bytes} (bytes)")
    _print_traffic(network)
    print(f"constants.bin QPC section size: {network.constants_bytes} (bytes)")
    print(f"ELF sections size: {lowered.model.ByteSize()} (bytes)", flush=True)


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


def _print_traffic(network: Network) -> None:
    """Reads of the largest shape, in KiB, evenly over the cores."""
    kib = max(work.ddr_bytes for work in network.works) / 1024
    barriers = max(work.num_operators for work in network.works)
    print("Compiler estimated memory traffic:")
    cores = [(f"  c{core:02d}", kib / network.num_cores) for core in range(network.num_cores)]
    for name, share in [*cores, ("total", kib)]:
        print(f"  {name}: DDR traffic  read: {share:>10.0f} KB (first-inf {share:>10.0f} KB)")
    for core in range(network.num_cores):
        print(f"  c{core:02d} barriers: {barriers:>10}")


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
