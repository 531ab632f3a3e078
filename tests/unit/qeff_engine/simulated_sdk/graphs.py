"""Tiny graphs with the exported contract, and a client that uses the runtime as existing clients do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, HEAD_DIM, HIDDEN, VOCAB = 2, 32, 64, 96
PREFILL, CTX = 4, 16

_rng = np.random.default_rng(3)
EMBEDDING_VH = _rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
KEY_HH = _rng.normal(size=(HIDDEN, HEADS * HEAD_DIM)).astype(np.float32) / 8

SPECIALIZATIONS = [
    {"batch_size": "1", "seq_len": str(PREFILL), "ctx_len": str(CTX)},
    {"batch_size": "1", "seq_len": "1", "ctx_len": str(CTX)},
]


def _ints(name: str, values: Sequence[int] | int) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64)))


def ctx_scatter() -> onnx.FunctionProto:
    """A scatter by positions like the reference library's: indices (batch, head, position), nothing masked."""
    nodes = [
        *(_ints(name, value) for name, value in (("zero", 0), ("one", 1))),
        *(_ints(name, value) for name, value in (("v0", [0]), ("v3", [3]), ("v1", [1]))),
        *(_ints(name, value) for name, value in (("ab", [1, 2, 3]), ("ah", [0, 2, 3]), ("ap", [1, 3]))),
        helper.make_node("Shape", ["data"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Gather", ["shape", "one"], ["heads"]),
        helper.make_node("Range", ["zero", "batch", "one"], ["b"]),
        helper.make_node("Range", ["zero", "heads", "one"], ["h"]),
        helper.make_node("Unsqueeze", ["b", "ab"], ["b4"]),
        helper.make_node("Unsqueeze", ["h", "ah"], ["h4"]),
        helper.make_node("Unsqueeze", ["positions", "ap"], ["p4"]),
        helper.make_node("Shape", ["updates"], ["updates_shape"]),
        helper.make_node("Slice", ["updates_shape", "v0", "v3"], ["three"]),
        helper.make_node("Concat", ["three", "v1"], ["full"], axis=0),
        *(helper.make_node("Expand", [f"{axis}4", "full"], [f"{axis}e"]) for axis in "bhp"),
        helper.make_node("Concat", ["be", "he", "pe"], ["indices"], axis=-1),
        helper.make_node("ScatterND", ["data", "indices", "updates"], ["out"]),
    ]
    inputs = ["data", "positions", "updates"]
    return helper.make_function(
        "com.qualcomm.cloud", "CtxScatter", inputs, ["out"], nodes, [helper.make_opsetid("", 18)]
    )


def decoder() -> onnx.ModelProto:
    """One key cache and no attention: logits are the embeddings' similarities with the sum of all cached keys."""
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "key_weight"], ["keys_flat"]),
        _ints("heads_shape", [0, 0, HEADS, HEAD_DIM]),
        helper.make_node("Reshape", ["keys_flat", "heads_shape"], ["keys_bshd"]),
        helper.make_node("Transpose", ["keys_bshd"], ["keys"], perm=[0, 2, 1, 3]),
        helper.make_node(
            "CtxScatter",
            ["past_key.0", "position_ids", "keys"],
            ["past_key.0_RetainedState"],
            domain="com.qualcomm.cloud",
        ),
        _ints("ctx_axis", [2]),
        helper.make_node("ReduceSum", ["past_key.0_RetainedState", "ctx_axis"], ["summed"], keepdims=0),
        _ints("flat_shape", [0, 1, -1]),
        helper.make_node("Reshape", ["summed", "flat_shape"], ["summary"]),
        helper.make_node("Transpose", ["embedding"], ["unembedding"], perm=[1, 0]),
        helper.make_node("MatMul", ["summary", "unembedding"], ["logits"]),
    ]
    cache = ["batch_size", HEADS, "ctx_len", HEAD_DIM]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
            helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
            helper.make_tensor_value_info("past_key.0", TensorProto.FLOAT, cache),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 1, VOCAB]),
            helper.make_tensor_value_info("past_key.0_RetainedState", TensorProto.FLOAT, cache),
        ],
        initializer=[
            numpy_helper.from_array(EMBEDDING_VH, "embedding"),
            numpy_helper.from_array(KEY_HH, "key_weight"),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.qualcomm.cloud", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[ctx_scatter()], ir_version=10)


def model(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    opsets: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model of these nodes; opset 18."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        initializer=[numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in ({"": 18} | dict(opsets or {})).items()]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def save(graph: onnx.ModelProto, directory: Path, *, external: bool = True) -> Path:
    """Write ``model.onnx`` with its weights in ``weights.bin``."""
    path = directory / "model.onnx"
    onnx.save_model(graph, path, save_as_external_data=external, location="weights.bin", size_threshold=256)
    return path


def command(model_path: Path, *flags: str, specializations: object = None) -> list[str]:
    """A compiler command line without the tool; the program goes to ``qpc`` beside the model."""
    line = ["-aic-hw", "-aic-hw-version=ai100", f"-m={model_path}", *flags]
    if specializations is not None:
        path = model_path.parent / "specializations.json"
        path.write_text(json.dumps({"specializations": specializations}))
        line.append(f"-network-specialization-config={path}")
    return [*line, f"-aic-binary-dir={model_path.parent / 'qpc'}"]


def custom_io(directory: Path, precisions: Mapping[str, str]) -> str:
    """Write a custom IO list and return the flag that names it."""
    path = directory / "custom_io.yaml"
    path.write_text("\n".join(f" - IOName: {name}\n   Precision: {value}\n" for name, value in precisions.items()))
    return f"-custom-IO-list-file={path}"


class Client:
    """A session as existing clients write it: buffers by binding index, zero-length ones for what stays."""

    def __init__(self, rt: Any, api: Any, *, program: Path, qid: int = 0) -> None:
        self.rt = rt
        self._qpc = rt.Qpc(str(program))
        status, serialized = self._qpc.getIoDescriptor()
        assert status == rt.QStatus.QS_SUCCESS
        self.io = api.IoDesc()
        self.io.ParseFromString(bytes(serialized))
        self.index = {binding.name: binding.index for binding in self.io.selected_set.bindings}
        self.context = rt.Context(rt.QIDList([qid]))
        self.queue = rt.Queue(self.context, qid)
        self.program = rt.Program(self.context, qid, self._qpc, rt.QAicProgramProperties())

    def activate(self) -> Any:
        status = self.program.load()
        return self.program.activate() if status == self.rt.QStatus.QS_SUCCESS else status

    def exec_object(self) -> Any:
        return self.rt.ExecObj(self.context, self.program)

    def buffers(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], *, outputs: Mapping[str, np.ndarray[Any, Any]]
    ) -> tuple[list[Any], Any]:
        arrays = {**feeds, **outputs}
        buffers = [self.rt.QBuffer(b"") for _ in self.index]
        dims = self.rt.BufferDimensionsVecRef([(1, [0]) for _ in self.index])
        for name, array in arrays.items():
            buffers[self.index[name]] = self.rt.QBuffer(array.tobytes())
            dims[self.index[name]] = (array.itemsize, array.shape)
        return buffers, dims

    def call(
        self,
        exec_object: Any,
        feeds: Mapping[str, np.ndarray[Any, Any]],
        *,
        outputs: Mapping[str, np.ndarray[Any, Any]],
    ) -> dict[str, np.ndarray[Any, Any]]:
        success = self.rt.QStatus.QS_SUCCESS
        assert exec_object.setData(*self.buffers(feeds, outputs=outputs)) == success
        assert self.queue.enqueue(exec_object) == success
        assert exec_object.waitForCompletion() == success
        status, results = exec_object.getData()
        assert status == success
        return {
            name: np.frombuffer(bytes(results[self.index[name]]), array.dtype).reshape(array.shape)
            for name, array in outputs.items()
        }


def tokens(ids: Sequence[int], positions: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of one call of :func:`decoder`."""
    return {"input_ids": np.array([ids], np.int64), "position_ids": np.array([positions], np.int64)}


def logits() -> dict[str, np.ndarray[Any, Any]]:
    """A place for the logits of :func:`decoder`."""
    return {"logits": np.zeros((1, 1, VOCAB), np.float32)}


def fp16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What fp16 holds of fp32 values; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
