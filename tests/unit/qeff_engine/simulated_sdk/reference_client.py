"""A stand-alone client, as scripts for the real SDK are written: it knows the runtime's published surface and no more.

Run as ``python reference_client.py PROGRAM QID``; it finds devices with ``qaic-util``, generates with a decoder, runs
the same program through an inference set, and prints what came out as JSON.
"""

import json
import os
import platform
import re
import subprocess
import sys

import numpy as np

ROOT = os.environ.get("QAIC_SDK_ROOT", "/opt/qti-aic")

try:
    import qaicrt
except ImportError:
    sys.path.append(f"{ROOT}/dev/lib/{platform.machine()}")
    import qaicrt
try:
    import QAicApi_pb2 as aicapi
except ImportError:
    sys.path.append(f"{ROOT}/dev/python")
    import QAicApi_pb2 as aicapi

OK = qaicrt.QStatus.QS_SUCCESS
NUMPY = {
    aicapi.FLOAT_TYPE: np.float32,
    aicapi.FLOAT_16_TYPE: np.float16,
    aicapi.INT8_Q_TYPE: np.int8,
    aicapi.UINT8_Q_TYPE: np.uint8,
    aicapi.INT16_Q_TYPE: np.int16,
    aicapi.INT32_Q_TYPE: np.int32,
    aicapi.INT32_I_TYPE: np.int32,
    aicapi.INT64_I_TYPE: np.int64,
    aicapi.INT8_TYPE: np.int8,
    getattr(aicapi, "BFLOAT16_TYPE", 11): np.float16,
}


def boards():
    """Ready devices that can be sliced over, four of each board: by the text of the query tool."""
    text = subprocess.run([f"{ROOT}/tools/qaic-util", "-q"], capture_output=True, text=True, check=True).stdout
    groups = {}
    for block in re.split(r"(?m)^(?=QID \d+\s*$)", text):
        qid = re.search(r"(?m)^QID (\d+)\s*$", block)
        cores = re.search(r"(?m)^\s*Nsp Total:(\d+)\s*$", block)
        serial = re.search(r"(?m)^\s*Board serial:(.+?)\s*$", block)
        fit = all(word in block for word in ("Status:Ready", "HybridBoot+", "MDP+"))
        if qid and cores and serial and fit and int(cores[1]) >= 16:
            groups.setdefault(serial[1], []).append(int(qid[1]))
    return [qids[:4] for qids in groups.values()]


class Session:
    def __init__(self, path, qids):
        self.context = qaicrt.Context(qaicrt.QIDList(qids))
        assert self.context.setLogLevel(qaicrt.QLogLevel.QL_WARN) == OK
        self.queue = qaicrt.Queue(self.context, qids[0])
        qpc = qaicrt.Qpc(path)
        status, serialized = qpc.getIoDescriptor()
        if status != OK:
            raise RuntimeError("Failed to getIoDescriptor")
        description = aicapi.IoDesc()
        description.ParseFromString(bytes(serialized))
        self.shapes = [
            [(NUMPY[item.type]().itemsize, list(item.dims)) for item in entry.shapes]
            for entry in description.allowed_shapes
        ]
        self.bindings = description.selected_set.bindings
        self.index = {binding.name.rsplit("/", 1)[-1]: binding.index for binding in self.bindings}
        properties = qaicrt.QAicProgramProperties()
        properties.dataPathTimeoutMs = 60_000
        if len(qids) > 1:
            properties.devMapping = ":".join(map(str, qids))
        self.program = qaicrt.Program(self.context, qids[0] if len(qids) == 1 else None, qpc, properties)
        if self.program.load() != OK:
            raise RuntimeError("Failed to load program")
        if self.program.activate() != OK:
            raise RuntimeError("Failed to activate program")
        self.object = qaicrt.ExecObj(self.context, self.program)
        self.buffers = [qaicrt.QBuffer(bytes(binding.size)) for binding in self.bindings]
        self.dims = qaicrt.BufferDimensionsVecRef(
            [(NUMPY[binding.type]().itemsize, list(binding.dims)) for binding in self.bindings]
        )

    def set(self, arrays):
        for name, array in arrays.items():
            self.buffers[self.index[name]] = qaicrt.QBuffer(array.tobytes())
            self.dims[self.index[name]] = (array.itemsize, array.shape if len(array.shape) > 0 else (1,))

    def skip(self, names):
        self.set({name: np.array([]) for name in names})

    def run(self, inputs):
        self.set(inputs)
        if self.object.setData(self.buffers, self.dims) != OK:
            raise MemoryError("Failed to setData")
        if self.queue.enqueue(self.object) != OK:
            raise MemoryError("Failed to enqueue")
        if self.object.waitForCompletion() != OK:
            raise ValueError("Failed to run")
        status, results = self.object.getData()
        if status != OK:
            raise MemoryError("Failed to getData")
        return {
            binding.name: np.frombuffer(bytes(results[binding.index]), NUMPY[binding.type])
            for binding in self.bindings
            if binding.dir == aicapi.BUFFER_IO_TYPE_OUTPUT and results[binding.index].size
        }


def generate(session, vocabulary):
    """Prefill of three tokens and padding, then a token; the cache stays on the device."""
    session.skip([name for name in session.index if name.startswith("past_")])
    session.set({"logits": np.zeros((1, 1, vocabulary), np.float32)})
    prefill = session.run({"input_ids": np.array([[5, 6, 7, 0]]), "position_ids": np.array([[0, 1, 2, -1]])})
    decode = session.run({"input_ids": np.array([[8]]), "position_ids": np.array([[3]])})
    try:
        session.run({"input_ids": np.array([[8, 9]]), "position_ids": np.array([[3, 4]])})
    except ValueError as error:
        refused = str(error)
    return prefill["logits"], decode["logits"], refused


def queued(path, qid):
    """Six calls through two activations with two calls queued on each."""
    qpc = qaicrt.Qpc(path)
    context = qaicrt.Context()
    calls = qaicrt.InferenceSet(context, qpc, qid, 2, 2)
    kinds = qaicrt.BufferIoTypeEnum
    outputs = [item for item in qpc.getBufferMappings() if item.ioType == kinds.BUFFER_IO_TYPE_OUTPUT]
    inputs = [item for item in qpc.getBufferMappings() if item.ioType == kinds.BUFFER_IO_TYPE_INPUT]
    assert [item.index for item in inputs + outputs] == list(range(len(inputs + outputs)))
    sizes = []
    for number in range(6):
        status, handle = calls.getAvailable()
        assert status == OK
        data = [qaicrt.QBuffer(bytes(0 if "past_" in item.bufferName else item.size)) for item in inputs + outputs]
        assert handle.setBuffers(data) == OK
        assert calls.submit(handle, number) == OK
        status, handle = calls.getCompletedId(number)
        assert status == OK
        status, results = handle.execObj().getData()
        assert status == OK
        sizes.append(results[outputs[0].index].size)
        assert calls.putCompleted(handle) == OK
    return sizes


def devices():
    util = qaicrt.Util()
    status, qids = util.getDeviceIds()
    assert status == OK
    found = []
    for qid in list(qids):
        status, info = util.getDeviceInfo(qid)
        assert status == OK
        found.append([qid, info.devStatus == qaicrt.QDevStatus.QDS_READY, info.devData.resourceInfo.nspFree])
    return found


if __name__ == "__main__":
    program, qid = sys.argv[1], int(sys.argv[2])
    before = devices()
    session = Session(program, [qid])
    held = devices()
    prefill, decode, refused = generate(session, session.shapes[0][session.index["logits"]][1][-1])
    session.program.deactivate()
    sys.stdout.write(
        json.dumps(
            {
                "boards": boards(),
                "devices": [before, held],
                "prefill": prefill.tolist(),
                "decode": decode.tolist(),
                "refused": refused,
                "queued": queued(program, qid),
                "slicing": int(session.program.createSlicingSpecHandle("{}")[0]),
            }
        )
    )
