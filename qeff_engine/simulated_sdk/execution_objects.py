"""Calls in the runtime's surface: execution objects, queues, and sets of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from qeff_engine.simulated_sdk import runtime_log, wrong_numbers
from qeff_engine.simulated_sdk.buffers import BufferDimensionsVecRef, QBuffer
from qeff_engine.simulated_sdk.device_objects import Context
from qeff_engine.simulated_sdk.io_types import MXINT8
from qeff_engine.simulated_sdk.network_description import Binding
from qeff_engine.simulated_sdk.program_objects import Program
from qeff_engine.simulated_sdk.status import QStatus

_SKIPPED = [0]
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What one call passes: buffers by index, and the number of the specialization or None when none fits."""

    buffers: list[QBuffer]
    specialization: int | None


class ExecObj:
    """One call at a time of an activated program."""

    def __init__(self, context: Context, program: Program) -> None:
        """Activate the program if it is not.

        Args:
            context: of the program.
            program: several execution objects of a program share its retained states.

        Raises:
            RuntimeError: the program cannot be activated.
        """
        self._program = program
        if program.execution is None and program.activate() != QStatus.QS_SUCCESS:
            runtime_log.say("QAIC_ERROR_EXECOBJ_RUNTIME Failed to create ExecObj: Error activating program")
            raise RuntimeError("Failed to create ExecObj: Error activating program")
        self._call: _Call | None = None
        self._results: list[QBuffer] | None = None
        self._outcome: tuple[QStatus, str] | None = None
        self._end_ns = 0

    def setData(self, buffers: Sequence[QBuffer], dims: BufferDimensionsVecRef | None = None) -> QStatus:
        """Take the buffers of the next call, one for each binding, by index.

        Args:
            buffers: a zero-length one is not passed (a retained state, an output that is not wanted).
            dims: element size and dims of each; without them every buffer must have its full size.
        """
        bindings = self._program.network.bindings
        self._call, self._results, self._outcome = None, None, None
        if len(buffers) != len(bindings) or (dims is not None and len(dims) != len(bindings)):
            return _refuse(f"{len(buffers)} buffers were given, the program has {len(bindings)} bindings")
        used = [_is_used(buffer, dims=dims, index=index) for index, buffer in enumerate(buffers)]
        num_inputs = len(self._program.network.inputs)
        for index, binding in enumerate(bindings):
            if index < num_inputs and not used[index] and not binding.state_of:
                return _refuse(f"no data for input '{binding.name}', which is no retained state")
            if used[index] and binding.io_type is MXINT8:
                _refuse(f"'{binding.name}' is MXINT8 and stays on the device")
                return QStatus.QS_UNSUPPORTED
        number = self._matching(buffers, dims=dims, used=used)
        if number is not None:
            for index, binding in enumerate(bindings):
                wanted_bytes = binding.io_type.num_bytes(binding.shapes[number])
                short_allowed = bool(binding.state_of) and index < num_inputs
                size = buffers[index].size
                if used[index] and (size > wanted_bytes or (size < wanted_bytes and not short_allowed)):
                    return _refuse(f"'{binding.name}' has {size} bytes, expected {wanted_bytes}")
        kept = [buffer if use else QBuffer() for buffer, use in zip(buffers, used, strict=True)]
        self._call = _Call(buffers=kept, specialization=number)
        return QStatus.QS_SUCCESS

    def run(self, buffers: Sequence[QBuffer], dims: BufferDimensionsVecRef | None = None) -> QStatus:
        """Set data, execute and wait."""
        status = self.setData(buffers, dims)
        if status == QStatus.QS_SUCCESS:
            status = self.execute()
        return self.waitForCompletion() if status == QStatus.QS_SUCCESS else status

    def execute(self) -> QStatus:
        """Compute the call now, in the order in which calls are enqueued; its outcome waits to be asked for."""
        if self._call is None:
            return QStatus.QS_INVAL
        call, self._call = self._call, None
        self._outcome = self._compute(call)
        return QStatus.QS_SUCCESS

    def waitForCompletion(self) -> QStatus:
        """How the enqueued call ended, to which the simulated clock goes on; the reason of a failure is printed."""
        if self._outcome is None:
            return QStatus.QS_INVAL
        status, reason = self._outcome
        self._program.clock.wait(self._end_ns)
        if status != QStatus.QS_SUCCESS:
            runtime_log.error("[ExecObj][waitForCompletion:#412]", message=reason)
        return status

    def getData(self) -> tuple[QStatus, list[QBuffer]]:
        """The buffers of the ended call by binding index, outputs filled."""
        if self._results is None:
            return QStatus.QS_INVAL, []
        return QStatus.QS_SUCCESS, self._results

    def _matching(
        self, buffers: Sequence[QBuffer], *, dims: BufferDimensionsVecRef | None, used: Sequence[bool]
    ) -> int | None:
        """The first specialization whose shapes are those of all buffers that are passed."""
        bindings = self._program.network.bindings
        for number in range(len(self._program.network.works)):
            fits = all(
                _fits(binding, number=number, buffer=buffers[index], dims=dims[index] if dims is not None else None)
                for index, binding in enumerate(bindings)
                if used[index]
            )
            if fits:
                return number
        return None

    def _compute(self, call: _Call) -> tuple[QStatus, str]:
        from qeff_engine.simulated_sdk.execution import ExecutionFailed

        if call.specialization is None:
            return QStatus.QS_INVAL, "No matching dimension found"
        network, number = self._program.network, call.specialization
        num_inputs = len(network.inputs)
        passed = {
            binding.graph_name: _array(binding, buffer=buffer, dims=binding.shapes[number])
            for binding, buffer in zip(network.inputs, call.buffers, strict=False)
            if buffer.size
        }
        wanted = {
            binding.graph_name
            for binding, buffer in zip(network.outputs, call.buffers[num_inputs:], strict=True)
            if buffer.size
        }
        with self._program.lock:
            if self._program.execution is None:
                return QStatus.QS_BADFD, "The program is not active"
            if self._program.lost:
                return QStatus.QS_DEV_ERROR, "NSP response error: the device was reset"
            disturbance = self._program.disturbance()
            if disturbance.failed is not None:
                return disturbance.failed.status, disturbance.failed.reason
            try:
                arrays = self._program.execution.run(passed, specialization=number, wanted=wanted)
            except ExecutionFailed as error:
                return QStatus.QS_DEV_ERROR, f"NSP response error: {error}"
            if disturbance.wrong is not None:
                arrays = wrong_numbers.spoiled(arrays, fault=disturbance.wrong)
            results = list(call.buffers)
            for index, binding in enumerate(network.outputs, start=num_inputs):
                if binding.graph_name in arrays:
                    results[index] = QBuffer(binding.io_type.to_client(arrays[binding.graph_name]))
            self._results = results
            self._end_ns = self._program.schedule(specialization=number, factor=disturbance.factor)
        return QStatus.QS_SUCCESS, ""


class Queue:
    """Where calls are handed over; they are executed in that order."""

    def __init__(self, context: Context, qid: int = 0) -> None:
        """A queue of a device.

        Args:
            context: of the device.
            qid: the device; not looked at, since a call knows its program's device.
        """
        self._context = context
        self._qid = qid

    def enqueue(self, exec_object: ExecObj) -> QStatus:
        """Execute the call of ``exec_object``, whose data must have been set."""
        return exec_object.execute()


def _refuse(message: str) -> QStatus:
    runtime_log.error("[ExecObj][setData:#268]", message=message)
    return QStatus.QS_INVAL


def _is_used(buffer: QBuffer, *, dims: BufferDimensionsVecRef | None, index: int) -> bool:
    return buffer.size > 0 and (dims is None or dims[index][1] != _SKIPPED)


def _fits(binding: Binding, *, number: int, buffer: QBuffer, dims: tuple[int, list[int]] | None) -> bool:
    shape = binding.shapes[number]
    if dims is None:
        return buffer.size == binding.io_type.num_bytes(shape)
    # Clients write scalars with one axis.
    return dims[0] == binding.io_type.item_bytes and tuple(dims[1]) in (shape, shape or (1,))


def _array(binding: Binding, *, buffer: QBuffer, dims: tuple[int, ...]) -> Array:
    """A passed buffer as an array; what a short one leaves out is zero."""
    missing = binding.io_type.num_bytes(dims) - buffer.size
    data = bytes(buffer) + bytes(missing) if missing else buffer.view
    return binding.io_type.to_array(data, dims=dims)
