"""Programs in the runtime's surface: containers, properties, and activation on devices."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from qeff_engine.simulated_sdk import (
    cost_model,
    descriptor,
    device_faults,
    network_description,
    occupancy,
    qpc_container,
    runtime_log,
    sdk_root,
    virtual_clock,
)
from qeff_engine.simulated_sdk import devices as device_list
from qeff_engine.simulated_sdk.device_objects import Context
from qeff_engine.simulated_sdk.network_description import Network, Stage
from qeff_engine.simulated_sdk.options import AI100
from qeff_engine.simulated_sdk.status import BufferIoTypeEnum, QStatus

if TYPE_CHECKING:
    from qeff_engine.simulated_sdk.execution import Execution

_MB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class BufferMapping:
    """Name, direction, size in bytes and index of a binding."""

    bufferName: str
    ioType: BufferIoTypeEnum
    size: int
    index: int


class Qpc:
    """A program's container."""

    def __init__(self, path: str) -> None:
        """Read the description in the container.

        Args:
            path: the program's directory, or the container in it.

        Raises:
            RuntimeError: there is no whole container of this version.
        """
        given = Path(path)
        self.container = given / qpc_container.FILE_NAME if given.is_dir() else given
        try:
            segments = qpc_container.read_segments(self.container)
            described = qpc_container.read_segment(self.container, segment=segments[qpc_container.NETWORK_DESCRIPTION])
            self.network = network_description.parse(described)
        except (OSError, KeyError, qpc_container.BadContainer, network_description.BadDescription) as error:
            runtime_log.error("[QRuntime][createQpc:#57]", message=f"Invalid qpc, failed to create qpc object: {error}")
            raise RuntimeError(f"Invalid qpc, failed to create qpc object: {error}") from error

    def getIoDescriptor(self) -> tuple[QStatus, bytes]:
        """The serialized ``IoDesc`` of the program."""
        description = descriptor.IoDesc()
        description.selected_set.name = "default"
        num_inputs = len(self.network.inputs)
        for index, binding in enumerate(self.network.bindings):
            description.selected_set.bindings.add(
                name=binding.name,
                index=index,
                type=binding.io_type.code,
                dir=descriptor.BUFFER_IO_TYPE_INPUT if index < num_inputs else descriptor.BUFFER_IO_TYPE_OUTPUT,
                dims=binding.largest,
                size=binding.io_type.num_bytes(binding.largest),
                is_partial_buf_allowed=bool(binding.state_of) or index >= num_inputs,
            )
        if self.network.specialized:
            for number in range(len(self.network.works)):
                shapes = description.allowed_shapes.add()
                for binding in self.network.bindings:
                    shapes.shapes.add(type=binding.io_type.code, dims=binding.shapes[number])
        return QStatus.QS_SUCCESS, description.SerializeToString()

    def getBufferMappings(self) -> list[BufferMapping]:
        """Name, direction and size of every binding, by index."""
        num_inputs = len(self.network.inputs)
        return [
            BufferMapping(
                bufferName=binding.name,
                ioType=BufferIoTypeEnum(int(index >= num_inputs)),
                size=binding.io_type.num_bytes(binding.largest),
                index=index,
            )
            for index, binding in enumerate(self.network.bindings)
        ]


class QAicProgramProperties:
    """Settings of a program: ``dataPathTimeoutMs``, and ``devMapping`` such as ``0:1:2:3`` for several devices."""

    __slots__ = ("dataPathTimeoutMs", "devMapping")

    def __init__(self) -> None:
        self.dataPathTimeoutMs = 0
        self.devMapping = ""


class Program:
    """A container on its devices. It holds cores, memory and a channel of each from activation on, until it is
    deactivated, collected, or its process ends."""

    def __init__(
        self, context: Context, qid: int | None, qpc: Qpc, properties: QAicProgramProperties | None = None
    ) -> None:
        """Choose the devices.

        Args:
            context: its first device is used when neither ``qid`` nor ``devMapping`` names one.
            qid: device, or None.
            qpc: the container.
            properties: settings.

        Raises:
            RuntimeError: a device does not exist, or there are not as many as the program was sliced over.
        """
        mapping = properties.devMapping if properties is not None else ""
        if mapping:
            if not all(part.isdigit() for part in mapping.split(":")):
                raise RuntimeError(f"Invalid devMapping '{mapping}', expected numbers of devices such as 0:1:2:3")
            qids = [int(part) for part in mapping.split(":")]
        else:
            qids = [context.qids[0] if qid is None else qid]
        self.network: Network = qpc.network
        self._devices = [context.device(qid) for qid in qids]
        # A program that is no pipeline has one stage, which all its devices share.
        whole = Stage(devices=tuple(range(len(qids))), dram_bytes=self.network.dram_bytes, works=self.network.works)
        self._stages = self.network.stages or (whole,)
        self._container = qpc.container
        if len(set(qids)) != self.network.num_devices:
            message = (
                f"Failed to create program with Qpc Buffer: it was compiled for {self.network.num_devices} devices, "
                f"{len(set(qids))} were given"
            )
            runtime_log.error("[QRuntime][createProgram:#204]", message=message)
            raise RuntimeError(message)
        try:
            self.clock = virtual_clock.of_process()
        except virtual_clock.BadClock as error:
            runtime_log.error("[QRuntime][createProgram:#204]", message=str(error))
            raise RuntimeError(str(error)) from error
        self._timeline = self.clock.add(qids)
        self._host_s = [cost_model.host_s(work) for work in self.network.works]
        self._predicted: dict[tuple[int, int], float] = {}
        self.lock = threading.Lock()
        self.execution: Execution | None = None
        self._holdings: list[occupancy.Holding] = []
        self._loaded = False
        self._finalizer = weakref.finalize(self, _release, self._holdings)

    def load(self) -> QStatus:
        """Check that the container is still there; resources are taken by :meth:`activate`."""
        try:
            qpc_container.read_segments(self._container)
        except (OSError, qpc_container.BadContainer) as error:
            runtime_log.error("[QProgram][load:#131]", message=f"Failed to load program: {error}")
            return QStatus.QS_ERROR
        self._loaded = True
        return QStatus.QS_SUCCESS

    def activate(self) -> QStatus:
        """Take the program's share of every device, all or nothing, without waiting."""
        with self.lock:
            if self.execution is not None and not self.lost:
                return QStatus.QS_SUCCESS
            _release(self._holdings)
            if not self._loaded:
                status = self.load()
                if status != QStatus.QS_SUCCESS:
                    return status
            status = self._take()
            if status != QStatus.QS_SUCCESS:
                return status
            return self._start()

    def deactivate(self) -> QStatus:
        """Give everything back; retained states are lost."""
        with self.lock:
            self.lose()
        return QStatus.QS_SUCCESS

    def createSlicingSpecHandle(self, specification: str) -> tuple[QStatus, None]:
        """Newer runtimes hand KV over between programs by this; refused here."""
        return QStatus.QS_UNSUPPORTED, None

    @property
    def lost(self) -> bool:
        """Whether a device was reset since the activation: nothing is held any more, and states are gone."""
        return any(holding.lost for holding in self._holdings)

    def lose(self) -> None:
        """Be active no more, as after a restart of the cores. The caller holds :attr:`lock`."""
        self.execution = None
        _release(self._holdings)

    def disturbance(self) -> device_faults.Disturbance:
        """What faults that were asked for do to the next call. The caller holds :attr:`lock`."""
        found = device_faults.of_call(sdk_root.root(), self._devices, model=self.network.name)
        if found.restarts:
            self.lose()
        return found

    def predicted_s(self, *, specialization: int, active: int = 1) -> float:
        """Predicted time of a call while so many activations are busy; slices take as long as the slowest device's,
        stages of a pipeline follow one another."""
        return self._device_s(specialization, active)

    def schedule(self, *, specialization: int, factor: float = 1.0) -> int:
        """When a call that is handed over now ends by the simulated clock, in nanoseconds.

        Args:
            specialization: its number.
            factor: times as long as predicted it takes.
        """
        return self.clock.schedule(
            self._timeline,
            host_s=self._host_s[specialization] * factor,
            device_s=lambda active: self._device_s(specialization, active) * factor,
        )

    def _device_s(self, specialization: int, active: int) -> float:
        key = specialization, active
        if key not in self._predicted:
            settings = cost_model.Settings(
                cores=self.network.num_cores,
                ols=self.network.ols,
                mos=self.network.mos,
                depth_first=self.network.depth_first,
            )
            self._predicted[key] = sum(
                max(
                    cost_model.call_s(
                        stage.works[specialization],
                        kind=self._devices[place].traits,
                        settings=dataclasses.replace(settings, num_devices=len(stage.devices)),
                        active=active,
                    )
                    for place in stage.devices
                )
                for stage in self._stages
            )
        return self._predicted[key]

    def _take(self) -> QStatus:
        if self.network.hw_version != AI100:
            return self._fail(self._devices[0], reason="Version mismatch", status=QStatus.QS_DEV_ERROR)
        failed = device_faults.activation_failure(sdk_root.root(), self._devices, model=self.network.name)
        if failed is not None:
            return self._fail(failed.device, reason=failed.reason, status=failed.status)
        for place, device in sorted(enumerate(self._devices), key=lambda item: item[1].qid):
            share_mb = -(-self.network.device_dram_bytes(place) // _MB)
            amounts = occupancy.Amounts(cores=self.network.num_cores, dram_mb=share_mb, channels=1)
            try:
                self._holdings.append(occupancy.take(sdk_root.root(), device=device, amounts=amounts))
            except occupancy.Exhausted as error:
                return self._fail(device, reason=str(error), status=QStatus.QS_DEV_ERROR)
            except OSError as error:
                return self._fail(device, reason=str(error), status=QStatus.QS_PERM)
        return QStatus.QS_SUCCESS

    def _fail(self, device: device_list.Device, *, reason: str, status: QStatus) -> QStatus:
        _release(self._holdings)
        where = f"{device.qid} activate failed"
        runtime_log.error("[QKmdDevice][activate:#1172]", message=f"Device {where}: {reason}")
        runtime_log.error("[QRuntime][activateNetwork:#333]", message=f"Dev {where} status {status:d}")
        runtime_log.say("Failed to Activate program")
        return status

    def _start(self) -> QStatus:
        # ONNX Runtime is imported only by processes that really run a program.
        from qeff_engine.simulated_sdk import execution

        try:
            self.execution = execution.Execution(self.network, container=self._container)
        except execution.ExecutionFailed as error:
            return self._fail(self._devices[0], reason=str(error), status=QStatus.QS_ERROR)
        except BaseException:
            _release(self._holdings)
            raise
        return QStatus.QS_SUCCESS


def _release(holdings: list[occupancy.Holding]) -> None:
    while holdings:
        with contextlib.suppress(OSError):
            holdings.pop().release()
