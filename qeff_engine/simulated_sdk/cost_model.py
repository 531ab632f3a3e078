"""How long a program takes on a device: a first cost model, pure and deterministic. Standard library only.

A call takes as long as the slowest of four things that overlap, plus what does not overlap:

* reading weights and KV cache from DDR at the share of its bandwidth that published decode rates show,
* decompressing MXFP6 weights on the vector units,
* matrix arithmetic at the share of the fp16 peak that published dense models show,
* then barriers between cores, one for each matrix operation; all-reduces between devices; the host.

The KV cache is read over the whole compiled context, as the card does. Figures are predictions, never measurements.
"""

from __future__ import annotations

import dataclasses
import math

from qeff_engine.simulated_sdk.devices import Kind

# Share of peak DDR bandwidth. GPT-J 6B, Amber 7B and Llama-2 7B, FP16: 70 to 77 % of 137 GB/s with KV read.
# Sources: the vendor's MX blog and profiler notebook (quic/cloud-ai-sdk-pages, quic/cloud-ai-sdk).
BANDWIDTH_SHARE = 0.75

# Weights that one NSP decompresses per clock: a fit over the published FP16 and MXFP6 pairs (range 4.2 to 7.0).
MX_WEIGHTS_PER_CLOCK = 5.5

# Share of the fp16 peak: BERT-base 45 to 51 %, ResNet-50 58 %, Wide ResNet 60 % in the vendor's look-up tables.
COMPUTE_SHARE = 0.5

# Time of one all-reduce of a tensor-sliced program: what Llama-2 7B on four SoCs takes beyond bandwidth, by layer.
ALL_REDUCE_S = 50e-6

# Host side of one call: input wait and submission, about 1.4 ms with deep queues in a published profile of BERT, less
# without a queue. Assumed.
HOST_S = 100e-6

# A barrier between the cores after each matrix operation. Assumed: no published figure; latency of BERT falls only
# three times from 1 to 14 cores, so the cost per core is not nothing.
BARRIER_S = 1.0e-6
BARRIER_PER_CORE_S = 0.15e-6

# Cores after which DDR bandwidth approaches its limit: one core draws about a quarter of it. Assumed.
BANDWIDTH_CORES = 3.5

# Arithmetic lost to uneven splits per further core: throughput per core of ResNet-50 falls by about 10 % from 1 to 14.
SPLIT_LOSS_PER_CORE = 0.008


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one call of one specialization does, over all devices.

    Attributes:
        flops: of matrix operations, a multiplication and an addition counted as two.
        weight_bytes: read from DDR, in their stored form.
        mx_weights: elements among them that are stored as MXFP6.
        state_bytes: retained states read, in their stored form.
        matrix_ops: matrix operations, each of which ends with a barrier.
        reductions: all-reduces if the program is sliced over devices.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    mx_weights: float = 0.0
    state_bytes: float = 0.0
    matrix_ops: int = 0
    reductions: int = 0


def predict_s(work: Work, *, kind: Kind, cores: int, num_devices: int = 1) -> float:
    """Seconds of one call.

    Args:
        work: what is done.
        kind: of every device.
        cores: that the program holds on each device.
        num_devices: that the program is sliced over.
    """
    overlapping = max(
        memory_s(work, kind=kind, cores=cores, num_devices=num_devices),
        decompression_s(work, kind=kind, cores=cores, num_devices=num_devices),
        arithmetic_s(work, kind=kind, cores=cores, num_devices=num_devices),
    )
    return overlapping + serial_s(work, cores=cores, num_devices=num_devices)


def memory_s(work: Work, *, kind: Kind, cores: int, num_devices: int = 1) -> float:
    """Seconds of DDR traffic."""
    reachable = 1.0 - math.exp(-cores / BANDWIDTH_CORES)
    bytes_per_s = kind.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE * reachable * num_devices
    return (work.weight_bytes + work.state_bytes) / bytes_per_s


def decompression_s(work: Work, *, kind: Kind, cores: int, num_devices: int = 1) -> float:
    """Seconds of MXFP6 decompression."""
    return work.mx_weights / (MX_WEIGHTS_PER_CLOCK * kind.clock_ghz * 1e9 * cores * num_devices)


def arithmetic_s(work: Work, *, kind: Kind, cores: int, num_devices: int = 1) -> float:
    """Seconds of matrix arithmetic; falls nearly linearly with the number of cores."""
    useful = 1.0 - SPLIT_LOSS_PER_CORE * (cores - 1)
    flops_per_s = kind.fp16_tflops * 1e12 * COMPUTE_SHARE * (cores / kind.cores) * useful * num_devices
    return work.flops / flops_per_s


def serial_s(work: Work, *, cores: int, num_devices: int = 1) -> float:
    """Seconds that nothing overlaps: barriers grow with the cores, all-reduces exist between devices only."""
    barriers = work.matrix_ops * (BARRIER_S + BARRIER_PER_CORE_S * cores)
    return barriers + (work.reductions * ALL_REDUCE_S if num_devices > 1 else 0.0) + HOST_S
