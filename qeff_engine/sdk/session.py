"""A program active on a device: named arrays in, named arrays out.

Retained states (KV cache and the like) stay on the device between calls and are never passed. The runtime picks the
specialization by the shapes of what is passed; :class:`Session` does the same first, so that a wrong shape is our
message and not the runtime's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qeff_engine.errors import DeviceLost, Infrastructure, InvalidInput
from qeff_engine.exported import RETAINED
from qeff_engine.program import BINARY
from qeff_engine.sdk import runtime, runtime_failures
from qeff_engine.sdk.captured import captured
from qeff_engine.sdk.location import Sdk

_DATA_PATH_TIMEOUT_MS = 60_000
_SKIPPED = (1, (0,))  # element size and dims of a buffer that stays on the device or is not wanted
_DTYPE_BY_CONSTANT = {
    "FLOAT_TYPE": np.float32,
    "FLOAT_16_TYPE": np.float16,
    "INT8_Q_TYPE": np.int8,
    "UINT8_Q_TYPE": np.uint8,
    "INT16_Q_TYPE": np.int16,
    "INT32_Q_TYPE": np.int32,
    "INT32_I_TYPE": np.int32,
    "INT64_I_TYPE": np.int64,
    "INT8_TYPE": np.int8,
}

Array = NDArray[Any]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """An input or output of a program.

    Attributes:
        name: without the graph's prefix.
        index: position among all buffers.
        dtype: numpy type, or None for one that numpy lacks.
    """

    name: str
    index: int
    dtype: np.dtype[Any] | None


class Session:
    """A program on one device, or sliced over several. Active inside a ``with`` block, and only there.

    Attributes:
        inputs: bindings that every call passes, by name; retained states are not among them.
        retained: retained states by name, which a call may pass to give them a new value.
        outputs: bindings that calls may ask for, by name.
        specializations: shapes of inputs and outputs, one entry for each static shape of the program.
    """

    def __init__(self, sdk: Sdk, *, program: Path, qids: Sequence[int]) -> None:
        """Read the program's description; nothing is held on the device yet.

        Args:
            sdk: whose runtime is used.
            program: directory with ``programqpc.bin``.
            qids: devices, in the order in which the program is sliced over them.

        Raises:
            InvalidInput: ``program`` is not a program.
            Infrastructure: the runtime cannot be loaded.
        """
        if not (program / BINARY).is_file():
            raise InvalidInput(f"{program} is not a program: it has no {BINARY}.", advice="Compile the model again.")
        if not qids:
            raise InvalidInput("No device was given to run on, expected at least one.")
        self._runtime = runtime.load(sdk)
        self._program_path = program
        self._qids = tuple(qids)
        self._qpc, description = self._describe()
        self._dtypes = _dtypes(self._runtime.api)
        self._read(description)
        self._output_buffers: dict[tuple[int, int], Any] = {}
        self._context: Any = None
        self._queue: Any = None
        self._program: Any = None
        self._exec: Any = None

    def clock(self) -> float:
        """Seconds since some start: the device's own time when it is simulated."""
        return self._runtime.clock()

    def __enter__(self) -> Self:
        """Load and activate: from here on the cores are held.

        Raises:
            DeviceLost: not enough free cores or channels, or the device does not answer.
            DeviceOutOfMemory: the program does not fit the device's memory.
            InvalidInput: the program was made by another SDK.
        """
        rt = self._runtime.qaicrt
        where = f"device {':'.join(map(str, self._qids))}"
        try:
            properties = rt.QAicProgramProperties()
            properties.dataPathTimeoutMs = _DATA_PATH_TIMEOUT_MS
            if len(self._qids) > 1:
                properties.devMapping = ":".join(map(str, self._qids))
            qid = self._qids[0] if len(self._qids) == 1 else None
            self._context = self._call(f"open {where}", lambda: rt.Context(rt.QIDList(list(self._qids))))
            self._queue = self._call(f"open a queue on {where}", lambda: rt.Queue(self._context, self._qids[0]))
            self._program = self._call(
                f"create the program on {where}", lambda: rt.Program(self._context, qid, self._qpc, properties)
            )
            self._succeed(f"load the program on {where}", self._program.load)
            self._succeed(f"activate the program on {where}", self._program.activate)
            self._exec = self._call(f"use the program on {where}", lambda: rt.ExecObj(self._context, self._program))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the cores back."""
        self.close()

    def close(self) -> None:
        """Deactivate, whatever state the session is in. A second call does nothing."""
        program, self._program, self._exec = self._program, None, None
        self._output_buffers.clear()
        try:
            if program is not None:
                program.deactivate()
        finally:
            self._queue = self._context = None

    def run(self, feeds: Mapping[str, Array], *, outputs: Sequence[str]) -> dict[str, Array]:
        """Run the program once.

        Args:
            feeds: every input by name, of one specialization's shapes, and any retained states; cast to the program's
                types.
            outputs: names of the outputs that are wanted.

        Raises:
            InvalidInput: names or shapes fit no specialization.
            DeviceLost: the device failed during the call.
        """
        if self._exec is None:
            raise InvalidInput("The session is not active.", advice="Use it inside a with block.")
        number, buffers, shapes = self._prepared(feeds, outputs=outputs)
        dims = self.specializations[number]
        vector = self._runtime.qaicrt.BufferDimensionsVecRef([(size, list(shape)) for size, shape in shapes])
        results = self._execute(buffers, vector)
        return {
            name: np.frombuffer(bytes(results[self.outputs[name].index]), _dtype_of(self.outputs[name])).reshape(
                dims[name]
            )
            for name in outputs
        }

    def _prepared(
        self, feeds: Mapping[str, Array], *, outputs: Sequence[str]
    ) -> tuple[int, list[Any], list[tuple[int, Sequence[int]]]]:
        """A call's specialization, and the runtime's buffers by index with the element size and dims of each."""
        rt = self._runtime.qaicrt
        number = self._matching(feeds)
        dims = self.specializations[number]
        buffers = [self._skipped] * self._num_buffers
        shapes: list[tuple[int, Sequence[int]]] = [_SKIPPED] * self._num_buffers
        for name, array in feeds.items():
            binding = self.inputs[name] if name in self.inputs else self.retained[name]
            data = np.ascontiguousarray(array, dtype=_dtype_of(binding))
            buffers[binding.index] = rt.QBuffer(data)
            shapes[binding.index] = (data.itemsize, data.shape)
        for name in outputs:
            binding = self.outputs[name]
            buffers[binding.index] = self._output_buffer(number, binding)
            shapes[binding.index] = (_dtype_of(binding).itemsize, dims[name])
        return number, buffers, shapes

    def _execute(self, buffers: list[Any], dims: Any) -> Any:
        success = self._runtime.qaicrt.QStatus.QS_SUCCESS
        steps = (
            ("hand over the inputs", lambda: self._exec.setData(buffers, dims)),
            ("enqueue the program", lambda: self._queue.enqueue(self._exec)),
            ("run the program", self._exec.waitForCompletion),
        )
        for step, call in steps:
            status = call()
            if status != success:
                raise runtime_failures.failure(step, status=status, default=DeviceLost)
        status, results = self._exec.getData()
        if status != success:
            raise runtime_failures.failure("fetch the outputs", status=status, default=DeviceLost)
        return results

    def _matching(self, feeds: Mapping[str, Array]) -> int:
        """The number of the specialization that has the shapes of ``feeds``."""
        if feeds.keys() - self.retained.keys() != self.inputs.keys():
            raise InvalidInput(f"The program's inputs are {sorted(self.inputs)}, got {sorted(feeds)}.")
        for number, shapes in enumerate(self.specializations):
            if all(array.shape == shapes[name] for name, array in feeds.items()):
                return number
        got = {name: array.shape for name, array in feeds.items()}
        known = [{name: shapes[name] for name in feeds} for shapes in self.specializations]
        raise InvalidInput(f"No specialization of the program has the shapes {got}; it has {known}.")

    def _output_buffer(self, number: int, binding: Binding) -> Any:
        """A buffer for an output, kept for all calls, since results are copied out of it."""
        key = number, binding.index
        if key not in self._output_buffers:
            size = int(np.prod(self.specializations[number][binding.name])) * _dtype_of(binding).itemsize
            self._output_buffers[key] = self._runtime.qaicrt.QBuffer(bytes(size))
        return self._output_buffers[key]

    def _describe(self) -> tuple[Any, Any]:
        """The program's container and the parsed description of its inputs and outputs."""
        rt = self._runtime.qaicrt
        qpc = self._call(f"read the program {self._program_path}", lambda: rt.Qpc(str(self._program_path)))
        status, serialized = qpc.getIoDescriptor()
        if status != rt.QStatus.QS_SUCCESS:
            raise runtime_failures.failure(
                f"read the inputs of {self._program_path}", status=status, default=InvalidInput
            )
        description = self._runtime.api.IoDesc()
        description.ParseFromString(bytes(serialized))
        return qpc, description

    def _read(self, description: Any) -> None:
        """Fill the public attributes from an ``IoDesc``."""
        bindings = list(description.selected_set.bindings)
        names = {binding.index: binding.name.rsplit("/", 1)[-1] for binding in bindings}
        retained = {name.removesuffix(RETAINED) for name in names.values() if name.endswith(RETAINED)}
        self._num_buffers = len(bindings)
        self._skipped = self._runtime.qaicrt.QBuffer(b"")
        self.inputs: dict[str, Binding] = {}
        self.retained: dict[str, Binding] = {}
        self.outputs: dict[str, Binding] = {}
        for binding in bindings:
            name = names[binding.index]
            if name.endswith(RETAINED):
                continue
            inputs = self.retained if name in retained else self.inputs
            side = inputs if binding.dir == self._runtime.api.BUFFER_IO_TYPE_INPUT else self.outputs
            side[name] = Binding(name=name, index=binding.index, dtype=self._dtypes.get(binding.type))
        allowed: list[Shapes] = [
            {names[index]: tuple(shape.dims) for index, shape in enumerate(entry.shapes)}
            for entry in description.allowed_shapes
        ]
        self.specializations = allowed or [{names[item.index]: tuple(item.dims) for item in bindings}]

    def _call(self, step: str, call: Any) -> Any:
        """What a constructor of the runtime returns; what it raises becomes ours."""
        raised: Exception | None = None
        with captured() as said:
            try:
                return call()
            except (RuntimeError, ValueError, OSError) as error:
                raised = error
        raise runtime_failures.failure(step, status=raised, text=said.text) from raised

    def _succeed(self, step: str, call: Any) -> None:
        """Make a call that answers with a status, and raise when that is not success."""
        status = None
        with captured() as said:
            try:
                status = call()
            except (RuntimeError, ValueError, OSError) as error:
                status = error
        if status != self._runtime.qaicrt.QStatus.QS_SUCCESS:
            raise runtime_failures.failure(step, status=status, text=said.text)


def _dtypes(api: Any) -> dict[int, np.dtype[Any]]:
    """Numpy types by the runtime's type number."""
    return {
        int(getattr(api, constant)): np.dtype(dtype)
        for constant, dtype in _DTYPE_BY_CONSTANT.items()
        if hasattr(api, constant)
    }


def _dtype_of(binding: Binding) -> np.dtype[Any]:
    if binding.dtype is None:
        raise Infrastructure(f"'{binding.name}' has a type that numpy lacks, so it cannot leave the device.")
    return binding.dtype
