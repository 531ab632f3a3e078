"""How long a program takes on a device, operator by operator; pure and deterministic. Standard library only.

An operator takes as long as the slowest of three things, and a little of the two others:

* reading weights and retained states from DDR, of whose bandwidth few cores cannot draw all; activations that do not
  fit into the cores' VTCM go there and back,
* decompressing MXFP6 weights on the vector units,
* arithmetic of matrix and vector units. It is split over cores by samples, where a rest leaves cores idle, or inside
  a sample, which costs something for each doubling.

Then comes a barrier, dearer with more cores. A sliced program has all-reduces besides, a part of a pipeline gets what
others have made. Activations of one device share
its DDR, its link to the host and its power: fewer busy cores run faster.

A retained state is read over its whole compiled length, as the card does. All parameters are in
``cost_parameters.json``; how well they meet published rates, and what they cannot tell, in ``docs/cost-model.md``.
Figures are predictions, never measurements.
"""

from __future__ import annotations

import dataclasses
import math

from qeff_engine.simulated_sdk import cost_parameters, operations
from qeff_engine.simulated_sdk.cost_parameters import Parameters
from qeff_engine.simulated_sdk.devices import Kind
from qeff_engine.simulated_sdk.operations import Operation, Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a program was compiled, as far as its speed depends on that.

    Attributes:
        cores: that it holds on each device.
        num_devices: that it is sliced over.
        ols: how often operators are split to overlap their parts.
        mos: among how many cores weights are split; the largest of several.
        depth_first: activations stay in VTCM whatever their size.
    """

    cores: int
    num_devices: int = 1
    ols: int = 1
    mos: int = 1
    depth_first: bool = False


def call_s(
    work: Work, *, kind: Kind, settings: Settings, active: int = 1, parameters: Parameters | None = None
) -> float:
    """Seconds of one call on its devices.

    Args:
        work: what is done.
        kind: of every device.
        settings: of the program.
        active: activations of this program that are busy on the device at the same time, this one included.
        parameters: others than the file's.
    """
    found = parameters or cost_parameters.load()
    model = _Model(kind=kind, settings=settings, active=active, parameters=found)
    alone_s = sum(item.count * model.operation_s(item) for item in work.operations)
    if settings.num_devices > 1:
        exchange_s = work.reduction_bytes / (found.p2p_gb_s * 1e9)
        alone_s += work.reductions * (found.all_reduce_us * 1e-6 + exchange_s)
    alone_s += work.transfers * found.all_reduce_us * 1e-6 + work.transfer_bytes / (found.p2p_gb_s * 1e9)
    shared_s = active * sum(item.count * model.ddr_s(item) for item in work.operations) if active > 1 else 0.0
    exponent = found.sharing_exponent
    device_s = (alone_s**exponent + shared_s**exponent) ** (1 / exponent) if shared_s else alone_s
    return max(device_s, active * work.io_bytes / (found.link_gb_s * 1e9))


def host_s(work: Work, *, parameters: Parameters | None = None) -> float:
    """Seconds that the host needs for a call before its device can begin; a queue hides them."""
    found = parameters or cost_parameters.load()
    return found.host_call_us * 1e-6 + work.io_bytes / (found.host_copy_gb_s * 1e9)


def period_s(
    work: Work,
    *,
    kind: Kind,
    settings: Settings,
    instances: int = 1,
    set_size: int = 1,
    parameters: Parameters | None = None,
) -> float:
    """Seconds from one call of an activation to the next, ``instances`` being busy with ``set_size`` calls queued."""
    device_s = call_s(work, kind=kind, settings=settings, active=instances, parameters=parameters)
    return max(device_s, (device_s + host_s(work, parameters=parameters)) / set_size)


class _Model:
    """The time of operators under one setting."""

    def __init__(self, *, kind: Kind, settings: Settings, active: int, parameters: Parameters) -> None:
        self._parameters = parameters
        self._settings = settings
        self._kind = kind
        self._total_cores = settings.cores * settings.num_devices
        reach = 1.0 - math.exp(-settings.cores / parameters.core_reach)
        peak_bytes_per_s = kind.bandwidth_gb_s * 1e9 * settings.num_devices
        self._ddr_bytes_per_s = peak_bytes_per_s * parameters.ddr_share
        self._alone_bytes_per_s = self._ddr_bytes_per_s * reach
        idle = kind.cores / min(settings.cores * active, kind.cores)
        boost = min(parameters.max_boost, math.pow(idle, parameters.power_exponent))
        of_cores = boost * self._total_cores / kind.cores
        self._flops_per_s = {
            "fp32": kind.fp16_tflops * 1e12 * of_cores * parameters.fp32_factor,
            "fp16": kind.fp16_tflops * 1e12 * of_cores,
            "mxfp6": kind.fp16_tflops * 1e12 * of_cores,
            "int8": kind.int8_tops * 1e12 * of_cores * parameters.int8_factor,
        }
        vector_per_s = parameters.vector_elements_per_clock * kind.clock_ghz * 1e9 * boost * self._total_cores
        self._elements_per_s = {"fp32": vector_per_s / 2, "fp16": vector_per_s, "mxfp6": vector_per_s}
        self._elements_per_s["int8"] = vector_per_s * 2

    def operation_s(self, item: Operation) -> float:
        """Seconds of one operator while nothing else uses the device."""
        ddr_s = self._ddr_bytes(item) / self._alone_bytes_per_s
        decompression_s = 0.0
        if item.precision == "mxfp6":
            decompression_s = item.weights / (self._parameters.mx_weights_per_ns * 1e9 * self._total_cores)
        arithmetic_s = self._arithmetic_s(item)
        slowest_s = max(ddr_s, decompression_s, arithmetic_s)
        others_s = ddr_s + decompression_s + arithmetic_s - slowest_s
        barrier_s = 0.0 if item.kind == operations.STATES else self._barrier_s()
        return slowest_s + self._parameters.overlap_leak * others_s + barrier_s

    def ddr_s(self, item: Operation) -> float:
        """Seconds that an operator occupies the DDR, whoever draws from it."""
        return self._ddr_bytes(item) / self._ddr_bytes_per_s

    def _ddr_bytes(self, item: Operation) -> float:
        spilled = 0.0
        if not self._settings.depth_first:
            spilled = max(0.0, item.activation_bytes - self._parameters.vtcm_bytes * self._total_cores)
        states = item.state_bytes * self._parameters.ddr_share / self._parameters.state_share
        return item.weight_bytes + states + spilled

    def _arithmetic_s(self, item: Operation) -> float:
        found, used = self._parameters, self._used(item)
        matrix_s = 0.0
        if item.flops:
            share = found.conv_share if item.kind == "conv" else found.matmul_share
            inner = item.flops / (2 * item.elements)
            started = item.tiled_flops * (1 + found.inner_overhead / inner)
            matrix_s = started / (self._flops_per_s[item.precision] * share * used)
        # Functions are computed in fp16 also beside INT8 products.
        narrow = item.kind not in ("softmax", "normalization", "activation")
        per_s = self._elements_per_s[item.precision if narrow else "fp16"]
        vector_s = item.elements * found.passes.get(item.kind, 0.0) / (per_s * used)
        overlapped = min(matrix_s, vector_s) / math.pow(self._settings.ols, found.ols_overlap)
        return max(matrix_s, vector_s) + overlapped

    def _used(self, item: Operation) -> float:
        """Share of the cores' arithmetic that is useful."""
        cores = self._settings.cores
        by_sample = item.samples / (cores * -(-item.samples // cores))
        of_matrices = item.kind not in ("conv", "depthwise", "pooling")
        loss = self._parameters.split_loss_matmul if of_matrices else self._parameters.split_loss_conv
        return max(by_sample, 1.0 / (1.0 + loss * math.log2(cores)))

    def _barrier_s(self) -> float:
        found, settings = self._parameters, self._settings
        single_us = found.operator_us + found.barrier_per_core_us * (settings.cores - 1)
        return (
            single_us * 1e-6 * (1 + found.ols_barriers * (settings.ols - 1)) / math.pow(settings.mos, found.mos_relief)
        )
