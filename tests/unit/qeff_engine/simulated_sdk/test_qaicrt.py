"""The runtime, used as existing clients use it: names, numbers, retained states, specializations, failures."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import mx_formats
from tests.unit.qeff_engine.simulated_sdk import graphs

_KV = ("past_key.0", "past_key.0_RetainedState")


@pytest.fixture
def program(tmp_path, compile_in, runtime):
    """Compile :func:`graphs.decoder` and open a client on it."""
    opened = []

    def make(*flags, kv="", qid=0):
        path = graphs.save(graphs.decoder(), tmp_path)
        if kv:
            flags = (*flags, graphs.custom_io(tmp_path, dict.fromkeys(_KV, kv)))
        assert compile_in(path, "-retained-state", *flags, specializations=graphs.SPECIALIZATIONS) == 0
        opened.append(graphs.Client(*runtime, program=tmp_path / "qpc", qid=qid))
        return opened[-1]

    yield make
    for client in opened:
        client.program.deactivate()


def _expected(ids, *, embedding=graphs.EMBEDDING_VH, key=graphs.KEY_HH, head=graphs.EMBEDDING_VH, kept=lambda k: k):
    """Logits after tokens ``ids``: earlier keys as the device keeps them, those of this call in full."""
    return kept(embedding[ids] @ key).sum(axis=0) @ head.T


def test_the_surface_has_the_names_that_clients_use(runtime):
    rt, api = runtime
    devices = ["QIDList", "Context", "QLogLevel", "Queue", "Util"]
    programs = ["Qpc", "QAicProgramProperties", "Program", "ExecObj", "InferenceSet"]
    buffers = ["QBuffer", "BufferDimensionsVecRef", "BufferIoTypeEnum", "QStatus"]
    names = [*devices, *programs, *buffers]
    assert [name for name in names if not hasattr(rt, name)] == []
    types = ["FLOAT", "FLOAT_16", "INT8_Q", "UINT8_Q", "INT16_Q", "INT32_Q", "INT32_I", "INT64_I", "INT8", "BFLOAT16"]
    numbers = [getattr(api, f"{name}_TYPE") for name in types]
    assert len(set(numbers)) == len(types)
    assert api.BFLOAT16_TYPE == 11
    assert api.BUFFER_IO_TYPE_INPUT != api.BUFFER_IO_TYPE_OUTPUT
    assert (rt.QStatus.QS_SUCCESS, rt.QStatus.QS_NOMEM, rt.QStatus.QS_DEV_ERROR, rt.QStatus.QS_ERROR) == (
        0,
        3,
        300,
        500,
    )
    assert rt.BufferIoTypeEnum.BUFFER_IO_TYPE_OUTPUT == api.BUFFER_IO_TYPE_OUTPUT
    levels = [rt.QLogLevel.QL_DEBUG, rt.QLogLevel.QL_INFO, rt.QLogLevel.QL_WARN, rt.QLogLevel.QL_ERROR]
    assert sorted(levels) == levels
    status, qids = rt.Util().getDeviceIds()
    assert (status, list(qids)) == (rt.QStatus.QS_SUCCESS, [0, 1])


def test_the_description_lists_bindings_and_allowed_shapes_in_order(program, runtime):
    client, (_, api) = program("-convert-to-fp16", kv="float16"), runtime
    bindings = list(client.io.selected_set.bindings)
    assert [binding.name for binding in bindings] == ["input_ids", "position_ids", _KV[0], "logits", _KV[1]]
    assert [binding.index for binding in bindings] == [0, 1, 2, 3, 4]
    assert [binding.dir for binding in bindings] == [api.BUFFER_IO_TYPE_INPUT] * 3 + [api.BUFFER_IO_TYPE_OUTPUT] * 2
    kinds = [api.INT64_I_TYPE, api.INT64_I_TYPE, api.FLOAT_16_TYPE, api.FLOAT_TYPE, api.FLOAT_16_TYPE]
    assert [binding.type for binding in bindings] == kinds
    cache = [1, graphs.HEADS, graphs.CTX, graphs.HEAD_DIM]
    assert list(bindings[2].dims) == cache
    cache_bytes = 2 * int(np.prod(cache))
    assert [binding.size for binding in bindings] == [32, 32, cache_bytes, 4 * graphs.VOCAB, cache_bytes]
    assert [binding.is_partial_buf_allowed for binding in bindings] == [False, False, True, True, True]
    shapes = [[list(shape.dims) for shape in entry.shapes] for entry in client.io.allowed_shapes]
    assert shapes == [[[1, seq], [1, seq], cache, [1, 1, graphs.VOCAB], cache] for seq in (4, 1)]
    assert [shape.type for shape in client.io.allowed_shapes[0].shapes] == kinds


def test_buffer_mappings_agree_with_the_description(program, runtime):
    client, (rt, _) = program(), runtime
    mappings = rt.Qpc(str(client.program._container.parent)).getBufferMappings()
    described = [(item.name, item.index, item.size, item.dir) for item in client.io.selected_set.bindings]
    assert [(item.bufferName, item.index, item.size, item.ioType) for item in mappings] == described


def test_retained_states_stay_between_calls_and_padding_writes_nothing(program):
    client = program()
    assert client.activate() == 0
    exec_object = client.exec_object()
    prefill = client.call(exec_object, graphs.tokens([5, 6, 7, 0], [0, 1, 2, -1]), outputs=graphs.logits())
    np.testing.assert_allclose(prefill["logits"][0, 0], _expected([5, 6, 7]), rtol=1e-4, atol=1e-4)
    decode = client.call(exec_object, graphs.tokens([8], [3]), outputs=graphs.logits())
    np.testing.assert_allclose(decode["logits"][0, 0], _expected([5, 6, 7, 8]), rtol=1e-4, atol=1e-4)
    # Position 3 again: the key of token 8 is replaced.
    again = client.call(exec_object, graphs.tokens([9], [3]), outputs=graphs.logits())
    np.testing.assert_allclose(again["logits"][0, 0], _expected([5, 6, 7, 9]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("invalid", [-1, 2147483647, graphs.CTX])
def test_a_write_outside_the_cache_is_dropped(program, invalid):
    client = program()
    client.activate()
    out = client.call(
        client.exec_object(), graphs.tokens([5, 6, 7, 8], [0, invalid, 1, invalid]), outputs=graphs.logits()
    )
    np.testing.assert_allclose(out["logits"][0, 0], _expected([5, 7]), rtol=1e-4, atol=1e-4)


def test_a_read_outside_a_tensor_reads_something_and_does_not_fail(program):
    client = program()
    client.activate()
    out = client.call(client.exec_object(), graphs.tokens([2147483647], [-1]), outputs=graphs.logits())
    np.testing.assert_array_equal(out["logits"], 0)


def test_weights_are_rounded_to_fp16(program, fp32_arithmetic):
    client = program("-convert-to-fp16")
    client.activate()
    out = client.call(client.exec_object(), graphs.tokens([5], [0]), outputs=graphs.logits())
    embedding = graphs.fp16(graphs.EMBEDDING_VH)
    expected = _expected([5], embedding=embedding, key=graphs.fp16(graphs.KEY_HH), head=embedding)
    np.testing.assert_allclose(out["logits"][0, 0], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - _expected([5])).max() > 1e-4, "the rounding can be seen"


def test_mxfp6_rounds_products_along_their_reduction_and_leaves_embeddings(program, fp32_arithmetic):
    client = program("-convert-to-fp16", "-mxfp6-matmul")
    client.activate()
    out = client.call(client.exec_object(), graphs.tokens([5], [0]), outputs=graphs.logits())
    expected = _expected(
        [5],
        embedding=graphs.fp16(graphs.EMBEDDING_VH),
        key=graphs.fp16(mx_formats.round_fp6(graphs.KEY_HH, axis=0)),
        head=graphs.fp16(mx_formats.round_fp6(graphs.EMBEDDING_VH, axis=1)),
    )
    np.testing.assert_allclose(out["logits"][0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kv", "flags", "kept"),
    [
        ("mxint8", (), lambda key: mx_formats.round_int8(key.reshape(-1, 2, 32)).reshape(-1, 64)),
        ("mxint8", ("-convert-to-fp16",), lambda key: mx_formats.round_int8(key.reshape(-1, 2, 32)).reshape(-1, 64)),
        ("float16", (), graphs.fp16),
        ("", ("-convert-to-fp16",), graphs.fp16),
        ("", (), lambda key: key),
    ],
)
def test_states_are_kept_in_the_precision_of_the_card(program, fp32_arithmetic, kv, flags, kept):
    client = program(*flags, kv=kv)
    client.activate()
    exec_object = client.exec_object()
    client.call(exec_object, graphs.tokens([5, 6, 7, 0], [0, 1, 2, -1]), outputs=graphs.logits())
    # A call that writes nothing reads what the device kept.
    out = client.call(exec_object, graphs.tokens([0], [-1]), outputs=graphs.logits())
    rounded = graphs.fp16 if flags else lambda values: values
    embedding, key = rounded(graphs.EMBEDDING_VH), rounded(graphs.KEY_HH)
    expected = _expected([5, 6, 7], embedding=embedding, key=key, head=embedding, kept=kept)
    np.testing.assert_allclose(out["logits"][0, 0], expected, rtol=1e-5, atol=1e-4)


def test_a_state_can_be_read_and_written_in_its_boundary_type(program):
    client = program(kv="float16")
    client.activate()
    exec_object = client.exec_object()
    cache = np.zeros((1, graphs.HEADS, graphs.CTX, graphs.HEAD_DIM), np.float16)
    cache[0, :, 3] = 0.5
    feeds = graphs.tokens([5], [0]) | {_KV[0]: cache}
    out = client.call(exec_object, feeds, outputs=graphs.logits() | {_KV[1]: cache})
    keys = (graphs.EMBEDDING_VH[5] @ graphs.KEY_HH).reshape(graphs.HEADS, graphs.HEAD_DIM)
    np.testing.assert_allclose(out[_KV[1]][0, :, 0], keys.astype(np.float16), rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(out[_KV[1]][0, :, 3], 0.5)
    np.testing.assert_array_equal(out[_KV[1]][0, :, 4:], 0)
    # Partial: the first bytes of a state, the rest is zero.
    buffers, dims = client.buffers(feeds, outputs=graphs.logits())
    buffers[client.index[_KV[0]]] = client.rt.QBuffer(cache.tobytes()[: cache.nbytes // 2])
    assert exec_object.setData(buffers, dims) == 0


def test_an_mxint8_state_never_leaves_the_device(program):
    client = program(kv="mxint8")
    client.activate()
    cache = np.zeros((1, graphs.HEADS, graphs.CTX, graphs.HEAD_DIM), np.int8)
    buffers, dims = client.buffers(graphs.tokens([5], [0]) | {_KV[0]: cache}, outputs=graphs.logits())
    assert client.exec_object().setData(buffers, dims) == client.rt.QStatus.QS_UNSUPPORTED


def test_execution_objects_of_a_program_share_its_states(program):
    client = program()
    client.activate()
    first, second = client.exec_object(), client.exec_object()
    success = client.rt.QStatus.QS_SUCCESS
    assert first.setData(*client.buffers(graphs.tokens([5], [0]), outputs=graphs.logits())) == success
    assert second.setData(*client.buffers(graphs.tokens([6], [1]), outputs=graphs.logits())) == success
    # The order of enqueueing counts, not that of waiting.
    assert (client.queue.enqueue(first), client.queue.enqueue(second)) == (success, success)
    assert (second.waitForCompletion(), first.waitForCompletion()) == (success, success)
    for exec_object, ids in ((first, [5]), (second, [5, 6])):
        _, results = exec_object.getData()
        got = np.frombuffer(bytes(results[client.index["logits"]]), np.float32)
        np.testing.assert_allclose(got, _expected(ids), rtol=1e-4, atol=1e-4)


def test_states_are_gone_after_deactivation(program):
    client = program()
    client.activate()
    client.call(client.exec_object(), graphs.tokens([5], [0]), outputs=graphs.logits())
    client.program.deactivate()
    assert client.activate() == 0
    out = client.call(client.exec_object(), graphs.tokens([6], [1]), outputs=graphs.logits())
    np.testing.assert_allclose(out["logits"][0, 0], _expected([6]), rtol=1e-4, atol=1e-4)


def test_an_output_that_is_not_asked_for_is_empty(program):
    client = program()
    client.activate()
    exec_object = client.exec_object()
    assert client.call(exec_object, graphs.tokens([5], [0]), outputs={}) == {}
    _, results = exec_object.getData()
    assert results[client.index["logits"]].size == 0


def test_shapes_of_no_specialization_fail_at_the_wait_with_the_text_that_clients_look_for(program, capsys):
    client = program()
    client.activate()
    exec_object = client.exec_object()
    assert exec_object.setData(*client.buffers(graphs.tokens([5, 6], [0, 1]), outputs=graphs.logits())) == 0
    assert client.queue.enqueue(exec_object) == 0
    assert exec_object.waitForCompletion() != 0
    assert "No matching dimension found" in capsys.readouterr().err
    assert exec_object.getData()[0] != 0


def test_the_element_size_takes_part_in_the_match(program, capsys):
    client = program()
    client.activate()
    feeds = {name: array.astype(np.int32) for name, array in graphs.tokens([5], [0]).items()}
    exec_object = client.exec_object()
    assert exec_object.setData(*client.buffers(feeds, outputs=graphs.logits())) == 0
    client.queue.enqueue(exec_object)
    assert exec_object.waitForCompletion() != 0
    assert "No matching dimension found" in capsys.readouterr().err


def test_a_missing_input_and_a_wrong_number_of_bytes_are_refused(program):
    client = program()
    client.activate()
    exec_object = client.exec_object()
    feeds = graphs.tokens([5], [0])
    buffers, dims = client.buffers({"input_ids": feeds["input_ids"]}, outputs=graphs.logits())
    assert exec_object.setData(buffers, dims) == client.rt.QStatus.QS_INVAL
    buffers, dims = client.buffers(feeds, outputs=graphs.logits())
    buffers[0] = client.rt.QBuffer(bytes(12))
    assert exec_object.setData(buffers, dims) == client.rt.QStatus.QS_INVAL
    assert exec_object.setData(buffers[1:], dims) == client.rt.QStatus.QS_INVAL
    assert client.queue.enqueue(exec_object) != 0
    assert exec_object.waitForCompletion() != 0


def test_run_takes_full_buffers_without_dims(program):
    client = program()
    client.activate()
    buffers, _ = client.buffers(graphs.tokens([5, 6, 7, 8], [0, 1, 2, 3]), outputs=graphs.logits())
    exec_object = client.exec_object()
    assert exec_object.run(buffers) == 0
    _, results = exec_object.getData()
    got = np.frombuffer(bytes(results[client.index["logits"]]), np.float32)
    np.testing.assert_allclose(got, _expected([5, 6, 7, 8]), rtol=1e-4, atol=1e-4)


def test_an_inference_set_hands_out_and_takes_back_its_calls(program, runtime):
    client, (rt, _) = program("-aic-num-cores=4"), runtime
    calls = rt.InferenceSet(client.context, client._qpc, 0, 2, 3)
    _, info = rt.Util().getDeviceInfo(0)
    assert info.devStatus == rt.QDevStatus.QDS_READY
    assert info.devData.resourceInfo.nspFree == 16 - 3 * 4
    handles = [calls.getAvailable() for _ in range(6)]
    assert [status for status, _ in handles] == [0] * 6
    assert calls.getAvailable()[0] == rt.QStatus.QS_AGAIN
    _, handle = handles[0]
    buffers, _ = client.buffers(graphs.tokens([5], [0]), outputs=graphs.logits())
    assert handle.setBuffers(buffers) == 0
    assert calls.submit(handle, 17) == 0
    assert calls.getCompletedId(18)[0] != 0
    status, done = calls.getCompletedId(17)
    assert (status, done) == (0, handle)
    got = np.frombuffer(bytes(done.execObj().getData()[1][client.index["logits"]]), np.float32)
    np.testing.assert_allclose(got, _expected([5]), rtol=1e-4, atol=1e-4)
    assert calls.putCompleted(done) == 0
    assert calls.getAvailable() == (0, handle)
    del calls, handles, handle, done
    assert rt.Util().getDeviceInfo(0)[1].devData.resourceInfo.nspFree == 16


def test_only_executions_move_the_simulated_clock_and_always_by_as_much(program, runtime):
    client, (rt, _) = program("-convert-to-fp16"), runtime
    start = rt.simulatedTimeNs()
    client.activate()
    exec_object = client.exec_object()
    assert rt.simulatedTimeNs() == start
    steps = []
    for ids, positions in (([5, 6, 7, 8], [0, 1, 2, 3]), ([9], [4]), ([9], [5])):
        before = rt.simulatedTimeNs()
        client.call(exec_object, graphs.tokens(ids, positions), outputs=graphs.logits())
        steps.append(rt.simulatedTimeNs() - before)
    assert steps[0] >= steps[1] == steps[2] > 0


def test_a_program_without_specializations_has_one_shape(tmp_path, compile_in, runtime):
    graph = graphs.model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        inputs={"x": (TensorProto.FLOAT16, [2, 3])},
        outputs={"y": (TensorProto.FLOAT16, [2, 3])},
    )
    assert compile_in(graphs.save(graph, tmp_path)) == 0
    client = graphs.Client(*runtime, program=tmp_path / "qpc")
    assert len(client.io.allowed_shapes) == 0
    client.activate()
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    out = client.call(client.exec_object(), {"x": x}, outputs={"y": x})
    np.testing.assert_array_equal(out["y"], 2 * x)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_program_is_refused(program, tmp_path, runtime, damage):
    client, (rt, _) = program(), runtime
    path = tmp_path / "qpc" / "programqpc.bin"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-100])
    with pytest.raises(RuntimeError, match="Invalid qpc"):
        rt.Qpc(str(tmp_path / "qpc"))
    assert client.program.load() != 0


def _addresses(client):
    """Where the program's states are, by name."""
    return {name: array.ctypes.data for name, array in client.program.execution._resident.items()}


@pytest.mark.parametrize("kv", ["", "mxint8"])
def test_states_alternate_between_two_places_and_nothing_is_copied(program, kv):
    client = program("-convert-to-fp16", kv=kv)
    client.activate()
    exec_object = client.exec_object()
    places = []
    for position in range(6):
        client.call(exec_object, graphs.tokens([5], [position]), outputs=graphs.logits())
        places.append(_addresses(client)[_KV[0]])
    assert places[0] != places[1]
    assert places == places[:2] * 3


def test_inputs_and_outputs_are_the_clients_and_the_results_memory(program, runtime, monkeypatch):
    from qeff_engine.simulated_sdk import execution

    client, (rt, _) = program("-convert-to-fp16"), runtime
    client.activate()
    bound = {}
    make = execution.onnxruntime.OrtValue.ortvalue_from_numpy

    class Watched(execution.onnxruntime.OrtValue):
        @staticmethod
        def ortvalue_from_numpy(array):
            bound[array.ctypes.data] = array.shape
            return make(array)

    monkeypatch.setattr(execution.onnxruntime, "OrtValue", Watched)
    exec_object = client.exec_object()
    feeds = graphs.tokens([5], [0])
    _, dims = client.buffers(feeds, outputs=graphs.logits())
    arrays = {**feeds, **graphs.logits()}
    buffers = [rt.QBuffer(arrays[name]) if name in arrays else rt.QBuffer(b"") for name in client.index]
    assert exec_object.setData(buffers, dims) == 0
    assert client.queue.enqueue(exec_object) == 0
    assert {array.ctypes.data for array in feeds.values()} <= bound.keys()
    _, results = exec_object.getData()
    result = np.frombuffer(results[client.index["logits"]].view, np.float32)
    assert bound[result.ctypes.data] == (1, 1, graphs.VOCAB)


def test_a_state_that_a_client_passes_is_never_written_in_its_memory(program, runtime):
    client, (rt, _) = program(), runtime
    client.activate()
    exec_object = client.exec_object()
    cache = np.full((1, graphs.HEADS, graphs.CTX, graphs.HEAD_DIM), 0.5, np.float32)
    feeds = graphs.tokens([5], [0]) | {_KV[0]: cache}
    buffers, dims = client.buffers(feeds, outputs=graphs.logits())
    buffers[client.index[_KV[0]]] = rt.QBuffer(cache)
    assert exec_object.setData(buffers, dims) == 0
    assert client.queue.enqueue(exec_object) == 0
    for position in range(1, 4):
        client.call(exec_object, graphs.tokens([5], [position]), outputs=graphs.logits())
    np.testing.assert_array_equal(cache, 0.5)


def test_a_state_that_is_read_stays_as_it_was_in_later_calls(program):
    client = program()
    client.activate()
    exec_object = client.exec_object()
    buffers, dims = client.buffers(
        graphs.tokens([5], [0]),
        outputs=graphs.logits() | {_KV[1]: np.zeros((1, graphs.HEADS, graphs.CTX, graphs.HEAD_DIM), np.float32)},
    )
    assert exec_object.setData(buffers, dims) == 0
    assert client.queue.enqueue(exec_object) == 0
    _, results = exec_object.getData()
    before = bytes(results[client.index[_KV[1]]])
    for position in range(1, 4):
        client.call(exec_object, graphs.tokens([6], [position]), outputs=graphs.logits())
    assert bytes(results[client.index[_KV[1]]]) == before
