"""Several activations of a program and the calls queued on them, in the runtime's surface."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from qeff_engine.simulated_sdk.buffers import BufferDimensionsVecRef, QBuffer
from qeff_engine.simulated_sdk.device_objects import Context
from qeff_engine.simulated_sdk.execution_objects import ExecObj
from qeff_engine.simulated_sdk.program_objects import Program, QAicProgramProperties, Qpc
from qeff_engine.simulated_sdk.status import QStatus


class InferenceHandle:
    """One call of an inference set, for use again and again."""

    def __init__(self, exec_object: ExecObj) -> None:
        self._exec_object = exec_object

    def setBuffers(self, buffers: Sequence[QBuffer], dims: BufferDimensionsVecRef | None = None) -> QStatus:
        """Take the buffers of the next call, as :meth:`ExecObj.setData` does."""
        return self._exec_object.setData(buffers, dims)

    def execObj(self) -> ExecObj:
        """The execution object behind it, for its data."""
        return self._exec_object


class InferenceSet:
    """Calls spread over ``num_activations`` activations with ``set_size`` calls queued on each.

    Calls are computed one after another; by the simulated clock, those of different activations overlap.
    """

    def __init__(
        self,
        context: Context,
        qpc: Qpc,
        qid: int | None,
        set_size: int,
        num_activations: int,
        properties: QAicProgramProperties | None = None,
        *,
        program: Callable[..., Program] = Program,
    ) -> None:
        """Activate.

        Args:
            context: of the device.
            qpc: the container.
            qid: device, or None where ``properties`` map several.
            set_size: calls that may be queued on each activation.
            num_activations: how many.
            properties: settings of the programs.
            program: makes each activation; for tools of this SDK.

        Raises:
            RuntimeError: not all activations fit on the device.
        """
        self._programs = [program(context, qid, qpc, properties) for _ in range(num_activations)]
        try:
            # Round robin over activations.
            self._available = deque(
                InferenceHandle(ExecObj(context, active)) for _ in range(set_size) for active in self._programs
            )
        except BaseException:
            # The error's traceback may keep them alive for long.
            for taken in self._programs:
                taken.deactivate()
            raise
        self._completed: dict[int, InferenceHandle] = {}

    def getAvailable(self) -> tuple[QStatus, InferenceHandle | None]:
        """A handle that no call uses; status AGAIN when all are in use."""
        if not self._available:
            return QStatus.QS_AGAIN, None
        return QStatus.QS_SUCCESS, self._available.popleft()

    def submit(self, handle: InferenceHandle, call_id: int) -> QStatus:
        """Enqueue a handle's call under a number of the caller's."""
        status = handle.execObj().execute()
        if status == QStatus.QS_SUCCESS:
            self._completed[call_id] = handle
        return status

    def getCompletedId(self, call_id: int) -> tuple[QStatus, InferenceHandle | None]:
        """The handle of the call with this number, when it has ended."""
        handle = self._completed.pop(call_id, None)
        if handle is None:
            return QStatus.QS_INVAL, None
        return handle.execObj().waitForCompletion(), handle

    def putCompleted(self, handle: InferenceHandle) -> QStatus:
        """Give a handle back for another call."""
        self._available.append(handle)
        return QStatus.QS_SUCCESS
