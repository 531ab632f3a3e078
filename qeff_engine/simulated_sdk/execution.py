"""Computes a program's calls with ONNX Runtime and keeps its retained states.

Constants are mapped from the container by the session, but for MXFP6 ones, which are unpacked first. States live in two
buffers each, between which calls alternate, and are rounded to the precision in which the card keeps them wherever a
call changed them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from qeff_engine.simulated_sdk import constants, fp16_graphs, lowering, mx_formats, qpc_container
from qeff_engine.simulated_sdk.io_types import BFLOAT16, FLOAT16, MXINT8
from qeff_engine.simulated_sdk.network_description import Binding, Network

THREADS_VARIABLE = "QAIC_SIM_THREADS"
ACTIVATIONS_VARIABLE = "QAIC_SIM_ACTIVATIONS"
_DEFAULT_THREADS = 2

Array = npt.NDArray[Any]


_ORT_ERRORS = (
    onnxruntime_pybind11_state.EPFail,
    onnxruntime_pybind11_state.Fail,
    onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime_pybind11_state.NoSuchFile,
    onnxruntime_pybind11_state.NotImplemented,
    onnxruntime_pybind11_state.RuntimeException,
    RuntimeError,
    ValueError,
)


class ExecutionFailed(Exception):
    """A call that could not be computed."""


def num_threads(environ: Mapping[str, str] | None = None) -> int:
    """Threads of a session: ``QAIC_SIM_THREADS``, else two or as many as there are processors.

    Raises:
        ExecutionFailed: the variable is no positive integer.
    """
    text = (os.environ if environ is None else environ).get(THREADS_VARIABLE, "")
    if not text:
        return min(_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
    if not text.isdigit() or int(text) < 1:
        raise ExecutionFailed(f"{THREADS_VARIABLE} is '{text}', expected a positive integer.")
    return int(text)


def rounds_activations(environ: Mapping[str, str] | None = None) -> bool:
    """Whether fp16 operators are rounded: ``QAIC_SIM_ACTIVATIONS`` is not ``fp32``, which shows what rounding does.

    Raises:
        ExecutionFailed: the variable is neither ``fp16`` nor ``fp32``.
    """
    text = (os.environ if environ is None else environ).get(ACTIVATIONS_VARIABLE) or "fp16"
    if text not in ("fp16", "fp32"):
        raise ExecutionFailed(f"{ACTIVATIONS_VARIABLE} is '{text}', expected fp16 or fp32.")
    return text == "fp16"


class Execution:
    """An activated program: a session and what the device keeps between calls."""

    def __init__(self, network: Network, *, container: Path) -> None:
        """Make the session.

        Args:
            network: description of the program.
            container: its ``programqpc.bin``.

        Raises:
            ExecutionFailed: ONNX Runtime refuses the graph.
        """
        self._network = network
        self._graph_rounds = rounds_activations()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = num_threads()
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 4
        # Idle threads of a pool spin by default; several programs share this host's processors.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(container.absolute().parent)
        )
        graph, self._unpacked = graph_of(container)
        settings.add_external_initializers(
            list(self._unpacked), [onnxruntime.OrtValue.ortvalue_from_numpy(item) for item in self._unpacked.values()]
        )
        try:
            self._session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise ExecutionFailed(" ".join(str(error).split())) from error
        self._resident: dict[str, Array] = {}
        self._spare: dict[str, Array] = {}
        self._states = {item.state_of: item for item in network.outputs if item.state_of}

    def run(self, passed: Mapping[str, Array], *, specialization: int, wanted: set[str]) -> dict[str, Array]:
        """Compute one call.

        Args:
            passed: arrays by graph name of the inputs that the client passes; others keep what the device has.
            specialization: number of the static shape.
            wanted: graph names of the outputs that shall be returned.

        Returns:
            The wanted outputs.

        Raises:
            ExecutionFailed: ONNX Runtime cannot compute the graph on these inputs.
        """
        io = self._session.io_binding()
        for binding in self._network.inputs:
            array = self._input(binding, passed=passed, dims=binding.shapes[specialization])
            io.bind_ortvalue_input(binding.graph_name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        targets: dict[str, Array] = {}
        bound = [item for item in self._network.outputs if item.state_of or item.graph_name in wanted]
        for binding in bound:
            target = self._target(binding, dims=binding.shapes[specialization])
            targets[binding.graph_name] = target
            io.bind_ortvalue_output(binding.graph_name, onnxruntime.OrtValue.ortvalue_from_numpy(target))
        try:
            self._session.run_with_iobinding(io)
        except _ORT_ERRORS as error:
            raise ExecutionFailed(" ".join(str(error).split())) from error
        self._advance(targets)
        # A later call writes where a state is now.
        return {
            item.graph_name: targets[item.graph_name].copy() if item.state_of else targets[item.graph_name]
            for item in bound
            if item.graph_name in wanted
        }

    def _input(self, binding: Binding, *, passed: Mapping[str, Array], dims: tuple[int, ...]) -> Array:
        """What the graph reads at an input: the client's own memory, or a state, which is the device's."""
        dtype = binding.graph_type.dtype
        if not binding.state_of:
            return passed[binding.graph_name].astype(dtype, copy=False)
        if binding.graph_name in passed:
            array = passed[binding.graph_name].astype(dtype)
            self._resident[binding.graph_name] = self._as_kept(array, binding=binding)
        kept = self._resident.get(binding.graph_name)
        if kept is None or kept.shape != dims:
            kept = np.zeros(dims, dtype)
            self._resident[binding.graph_name] = kept
        return kept

    def _target(self, binding: Binding, *, dims: tuple[int, ...]) -> Array:
        """Where the graph writes an output: new memory, or of a state what held its value before the present one."""
        spare = self._spare.pop(binding.state_of, None)
        if spare is None or spare.shape != dims:
            return np.empty(dims, binding.graph_type.dtype)
        return spare

    def _advance(self, targets: Mapping[str, Array]) -> None:
        """Make the new states the resident ones, rounded where they have changed."""
        for name, output in self._states.items():
            new, old = targets[output.graph_name], self._resident[name]
            if new.dtype == np.float32 and self._is_rounded_after(output):
                self._round_changes(new, old=old, binding=output)
            self._resident[name] = new
            self._spare[name] = old

    def _is_rounded_after(self, binding: Binding) -> bool:
        """Whether the card keeps a state in another precision than that in which the graph gives it."""
        if binding.io_type in (MXINT8, BFLOAT16):
            return True
        if self._network.round_states_to_fp16:
            return not self._graph_rounds
        return binding.io_type is FLOAT16

    def _round_changes(self, new: Array, *, old: Array, binding: Binding) -> None:
        if new.shape != old.shape or new.ndim == 0:
            new[...] = self._as_kept(new, binding=binding)
            return
        changed = (new.view(np.int32) != old.view(np.int32)).any(axis=-1)
        if changed.any():
            new[changed] = self._as_kept(new[changed], binding=binding)

    def _as_kept(self, values: Array, *, binding: Binding) -> Array:
        """A state's values in the precision in which the card keeps them."""
        if values.dtype != np.float32:
            return values
        if binding.io_type is MXINT8:
            return mx_formats.round_int8(values)
        if binding.io_type is BFLOAT16:
            return BFLOAT16.to_array(BFLOAT16.to_client(values), dims=values.shape)
        if binding.io_type is FLOAT16 or self._network.round_states_to_fp16:
            return constants.rounded_to_fp16(values)
        return values


def graph_of(container: Path) -> tuple[bytes, dict[str, Array]]:
    """The program's graph with its constants at their places in the container, and its unpacked MXFP6 weights."""
    segments = qpc_container.read_segments(container)
    graph = qpc_container.read_segment(container, segment=segments[qpc_container.NETWORK])
    model = onnx.load_model_from_string(graph)
    if not rounds_activations():
        fp16_graphs.without_rounding(model)
    start = segments[qpc_container.CONSTANTS].start
    unpacked: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        external = {entry.key: entry for entry in tensor.external_data}
        offset, length = start + int(external["offset"].value), int(external["length"].value)
        axis = external["location"].value.removeprefix(lowering.PACKED_LOCATION.format(axis=""))
        if axis.isdigit():
            packed = np.memmap(container, np.uint8, "r", offset=offset, shape=(length,))
            unpacked[tensor.name] = mx_formats.decode_fp6(packed, dims=tuple(tensor.dims), axis=int(axis))
            # What ONNX Runtime checks before it takes the unpacked values in place of a file's.
            external["length"].value = str(unpacked[tensor.name].nbytes)
        external["location"].value = container.name
        external["offset"].value = str(offset)
    return bytes(model.SerializeToString()), unpacked
