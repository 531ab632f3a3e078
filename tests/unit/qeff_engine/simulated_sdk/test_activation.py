"""What programs take of devices, across real processes, and what the runtime says when nothing is left."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import devices, occupancy, sdk_root
from qeff_engine.simulated_sdk.install import install
from tests.unit.qeff_engine.simulated_sdk import graphs

# Activates one program after the other on a device, says so, and holds what it has until its stdin closes.
_HOLDER = """
import sys
sys.path[:0] = sys.argv[1:3]
import qaicrt
context = qaicrt.Context(qaicrt.QIDList([int(sys.argv[3])]))
programs = [qaicrt.Program(context, None, qaicrt.Qpc(path), qaicrt.QAicProgramProperties()) for path in sys.argv[4:]]
print(*[int(program.load() or program.activate()) for program in programs], flush=True)
sys.stdin.read()
"""

# Locks and unlocks device 1 as lines of its stdin say, and answers each with the status.
_LOCKER = """
import sys
sys.path[:0] = sys.argv[1:3]
import qaicrt
for line in sys.stdin:
    print(int(qaicrt.Util().lockDevice(1, *(word == "True" for word in line.split()))), flush=True)
"""


@contextlib.contextmanager
def _started_holder(root, *programs, qid=0):
    """A process that activates programs, not waited for."""
    with _client(root, _HOLDER, str(qid), *map(str, programs)) as process:
        yield process


@contextlib.contextmanager
def _client(root, script, *arguments):
    """A process with the runtime, which ends by a kill."""
    folders = [str(root / "dev/lib" / platform.machine()), str(root / "dev/python")]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *folders, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QAIC_SIM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _statuses(process):
    """How its activations ended, when the last one has."""
    return [int(word) for word in process.stdout.readline().split()]


@contextlib.contextmanager
def _holder(root, *programs, qid=0):
    """A process that holds programs, and the statuses of their activations."""
    with _started_holder(root, *programs, qid=qid) as process:
        yield process, _statuses(process)


@pytest.fixture
def compiled(tmp_path, compile_in):
    """Programs by number of cores, and with any size of their retained state."""

    def make(cores, *, state_mb=0):
        folder = tmp_path / f"{cores}-{state_mb}"
        folder.mkdir()
        kinds = (TensorProto.FLOAT16, [max(state_mb, 1), 1 << 19])
        graph = graphs.model(
            [helper.make_node("Add", ["s", "x"], ["s_RetainedState"]), helper.make_node("Identity", ["x"], ["y"])],
            inputs={"s": kinds, "x": (TensorProto.FLOAT16, [1])},
            outputs={"s_RetainedState": kinds, "y": (TensorProto.FLOAT16, [1])},
        )
        path = graphs.save(graph, folder)
        assert compile_in(path, "-retained-state", f"-aic-num-cores={cores}") == 0
        return folder / "qpc"

    return make


def _free(rt, qid=0):
    _, info = rt.Util().getDeviceInfo(qid)
    return info.devData.resourceInfo.nspFree


def test_two_processes_share_a_device_as_long_as_the_sums_fit(compiled, runtime, simulated_sdk_root, capsys):
    rt, _ = runtime
    with _holder(simulated_sdk_root, compiled(10)) as (_, statuses):
        assert statuses == [0]
        assert _free(rt) == 6
        six = graphs.Client(*runtime, program=compiled(6))
        assert six.activate() == rt.QStatus.QS_SUCCESS
        assert _free(rt) == 0
        one = graphs.Client(*runtime, program=compiled(1))
        assert one.activate() == rt.QStatus.QS_DEV_ERROR
        text = capsys.readouterr().err
        assert "[QKmdDevice][activate:#1172] Device 0 activate failed: Failed to allocate NSP resources\n" in text
        assert "[QRuntime][activateNetwork:#333] Dev 0 activate failed status 300\n" in text
        assert "Failed to Activate program\n" in text
        with pytest.raises(RuntimeError, match="Failed to create ExecObj"):
            one.exec_object()
        assert "QAIC_ERROR_EXECOBJ_RUNTIME" in capsys.readouterr().err
        six.program.deactivate()
        assert _free(rt) == 6
        assert one.activate() == rt.QStatus.QS_SUCCESS
        one.program.deactivate()


def test_a_killed_process_gives_everything_back(compiled, runtime, simulated_sdk_root):
    rt, _ = runtime
    sixteen = compiled(16)
    with _holder(simulated_sdk_root, sixteen) as (process, statuses):
        assert statuses == [0]
        client = graphs.Client(*runtime, program=sixteen)
        assert client.activate() != rt.QStatus.QS_SUCCESS
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _free(rt) == 16
        assert client.activate() == rt.QStatus.QS_SUCCESS
        client.program.deactivate()


def test_a_forked_child_neither_keeps_nor_frees_its_parents_cores(tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1")
    (device,) = devices.load(root)
    holding = occupancy.take(root, device=device, amounts=occupancy.Amounts(cores=3))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # lives until the parent closes the pipe
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert occupancy.usage(root, device=device).taken.cores == 3
        holding.release()
        assert occupancy.usage(root, device=device).taken.cores == 0
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def test_a_program_for_16_cores_does_not_fit_a_device_with_14(compiled, runtime, capsys):
    rt, _ = runtime
    assert graphs.Client(*runtime, program=compiled(16), qid=1).activate() == rt.QStatus.QS_DEV_ERROR
    assert "Dev 1 activate failed" in capsys.readouterr().err
    fourteen = graphs.Client(*runtime, program=compiled(14), qid=1)
    assert fourteen.activate() == rt.QStatus.QS_SUCCESS
    fourteen.program.deactivate()


def test_a_program_larger_than_the_memory_fails_at_activation_only(compiled, runtime, capsys):
    rt, _ = runtime
    program = compiled(2, state_mb=15 * 1024)
    small, large = (graphs.Client(*runtime, program=program, qid=qid) for qid in (1, 0))
    assert small.program.load() == rt.QStatus.QS_SUCCESS
    assert small.program.activate() == rt.QStatus.QS_DEV_ERROR
    assert "Device 1 activate failed: Memory resource exhausted\n" in capsys.readouterr().err
    assert large.activate() == rt.QStatus.QS_SUCCESS, "an Ultra SoC has twice the memory"
    # Two of them do not fit there either, though the cores would.
    assert graphs.Client(*runtime, program=program).activate() == rt.QStatus.QS_DEV_ERROR
    assert _free(rt) == 14
    large.program.deactivate()


def test_a_device_has_sixteen_channels(tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1")
    (device,) = devices.load(root)
    holdings = [occupancy.take(root, device=device, amounts=occupancy.Amounts(channels=1)) for _ in range(16)]
    with pytest.raises(occupancy.Exhausted, match="virtual channel"):
        occupancy.take(root, device=device, amounts=occupancy.Amounts(channels=1))
    for holding in holdings:
        holding.release()
    assert occupancy.usage(root, device=device) == occupancy.Usage(taken=occupancy.Amounts(), programs=0)


def test_a_collected_program_gives_its_cores_back(compiled, runtime):
    rt, _ = runtime
    client = graphs.Client(*runtime, program=compiled(8))
    client.activate()
    assert _free(rt) == 8
    del client
    assert _free(rt) == 16


def test_processes_that_race_for_cores_never_get_more_than_there_are(compiled, runtime, simulated_sdk_root):
    program = compiled(4)
    with contextlib.ExitStack() as stack:
        # Three processes try three times each at once; the cores are enough for four of the nine programs.
        holders = [stack.enter_context(_started_holder(simulated_sdk_root, *[program] * 3)) for _ in range(3)]
        statuses = [status for process in holders for status in _statuses(process)]
        assert sorted(statuses) == [0] * 4 + [300] * 5
        assert _free(runtime[0]) == 0
    assert _free(runtime[0]) == 16


def test_invisible_devices_do_not_exist(compiled, runtime, monkeypatch):
    rt, _ = runtime
    program = compiled(1)
    monkeypatch.setenv("QAIC_VISIBLE_DEVICES", "1")
    assert list(rt.Util().getDeviceIds()[1]) == [1]
    assert rt.Util().getDeviceInfo(0)[0] == rt.QStatus.QS_NODEV
    with pytest.raises(RuntimeError, match="Invalid device:0"):
        graphs.Client(*runtime, program=program, qid=0)
    assert rt.Context().qids == [1]


def test_a_sliced_program_takes_all_its_devices_or_none(tmp_path, compile_in, runtime, capsys):
    rt, _ = runtime
    path = graphs.save(graphs.decoder(), tmp_path)
    mdp = tmp_path / "mdp_ts_2.json"
    mdp.write_text(
        '{"connections":[{"devices":[0,1],"type":"p2p"}],"partitions":[{"name":"Partition0","devices":'
        '[{"deviceId":0,"numCores":14},{"deviceId":1,"numCores":14}]}]}'
    )
    flags = ("-retained-state", "-aic-num-cores=14", f"-mdp-load-partition-config={mdp}")
    assert compile_in(path, *flags, specializations=graphs.SPECIALIZATIONS) == 0
    with pytest.raises(RuntimeError, match="compiled for 2 devices"):
        graphs.Client(*runtime, program=tmp_path / "qpc")

    context, qpc = rt.Context(rt.QIDList([0, 1])), rt.Qpc(str(tmp_path / "qpc"))
    properties = rt.QAicProgramProperties()
    properties.devMapping = "0:1"
    first, second = rt.Program(context, None, qpc, properties), rt.Program(context, None, qpc, properties)
    assert (first.load(), first.activate()) == (0, 0)
    assert (_free(rt, 0), _free(rt, 1)) == (2, 0)
    assert second.activate() == rt.QStatus.QS_DEV_ERROR
    assert (_free(rt, 0), _free(rt, 1)) == (2, 0), "what it took of the first device is given back"
    exec_object = rt.ExecObj(context, first)
    feeds = graphs.tokens([5], [0]) | graphs.logits()
    buffers = [rt.QBuffer(feeds[name]) if name in feeds else rt.QBuffer(b"") for name in _names(qpc, runtime)]
    assert exec_object.run(buffers) == 0
    got = np.frombuffer(bytes(exec_object.getData()[1][3]), np.float32)
    expected = graphs.EMBEDDING_VH[5] @ graphs.KEY_HH @ graphs.EMBEDDING_VH.T
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    first.deactivate()
    assert (_free(rt, 0), _free(rt, 1)) == (16, 14)
    capsys.readouterr()


def _names(qpc, runtime):
    description = runtime[1].IoDesc()
    description.ParseFromString(qpc.getIoDescriptor()[1])
    return [binding.name for binding in description.selected_set.bindings]


def test_threads_of_a_session_can_be_set():
    from qeff_engine.simulated_sdk import execution

    assert execution.num_threads({"QAIC_SIM_THREADS": "3"}) == 3
    assert 1 <= execution.num_threads({}) <= 2
    with pytest.raises(execution.ExecutionFailed, match="QAIC_SIM_THREADS is '0'"):
        execution.num_threads({"QAIC_SIM_THREADS": "0"})


def test_a_reset_of_the_card_ends_its_programs_until_they_are_activated_again(tmp_path, compile_in, runtime):
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", "-aic-num-cores=3", specializations=graphs.SPECIALIZATIONS) == 0
    client = graphs.Client(*runtime, program=tmp_path / "qpc")
    assert client.activate() == 0
    exec_object = client.exec_object()
    client.call(exec_object, graphs.tokens([5, 6, 7, 0], [0, 1, 2, -1]), outputs=graphs.logits())
    root = sdk_root.root()
    subprocess.run([root / "tools/qaic-util", "-s", "-d", "0"], check=True, env={})
    assert occupancy.usage(root, device=devices.load(root)[0]).taken.cores == 0
    assert exec_object.run(*client.buffers(graphs.tokens([8], [3]), outputs=graphs.logits())) == 300
    assert client.program.activate() == 0
    after = client.call(exec_object, graphs.tokens([8], [3]), outputs=graphs.logits())
    fresh = graphs.EMBEDDING_VH[[8]] @ graphs.KEY_HH @ graphs.EMBEDDING_VH.T
    np.testing.assert_allclose(after["logits"][0], fresh, rtol=1e-4, atol=1e-4, err_msg="states are gone")
    client.program.deactivate()
    assert occupancy.usage(root, device=devices.load(root)[0]).taken.cores == 0


def _ask(process, *, lock, block=False):
    process.stdin.write(f"{lock} {block}\n")
    process.stdin.flush()


def _asked(process, *, lock):
    _ask(process, lock=lock)
    return int(process.stdout.readline())


def test_an_advisory_lock_keeps_other_processes_out_until_it_is_given_back_or_its_process_dies(runtime, monkeypatch):
    util, status = runtime[0].Util(), runtime[0].QStatus
    monkeypatch.setenv("QAIC_SERIALIZE_DEVICE", "1")
    with _client(sdk_root.root(), _LOCKER) as other:
        assert _asked(other, lock=True) == status.QS_SUCCESS
        assert util.lockDevice(1, True, False) == status.QS_BUSY
        assert util.lockDevice(0, True, False) == status.QS_SUCCESS, "another device"
        assert util.lockDevice(1, False, False) == status.QS_SUCCESS, "which takes it from nobody"
        assert util.lockDevice(1, True, False) == status.QS_BUSY
        assert _asked(other, lock=False) == status.QS_SUCCESS
        assert [util.lockDevice(1, True, False) for _ in range(2)] == [status.QS_SUCCESS] * 2
        assert _asked(other, lock=True) == status.QS_BUSY
        _ask(other, lock=True, block=True)
        assert util.lockDevice(1, False, False) == status.QS_SUCCESS
        assert int(other.stdout.readline()) == status.QS_SUCCESS, "it waited"
        other.kill()
        assert util.lockDevice(1, True, True) == status.QS_SUCCESS, "waits for the end of the holder"
    assert [util.lockDevice(qid, False, False) for qid in (0, 1)] == [status.QS_SUCCESS] * 2


def test_an_advisory_lock_needs_a_device_and_the_variable(runtime, monkeypatch):
    util, status = runtime[0].Util(), runtime[0].QStatus
    monkeypatch.delenv("QAIC_SERIALIZE_DEVICE", raising=False)
    assert util.lockDevice(0, True, False) == status.QS_UNSUPPORTED
    monkeypatch.setenv("QAIC_SERIALIZE_DEVICE", "1")
    assert util.lockDevice(9, True, False) == status.QS_NODEV
