"""What faults do to the compiler, to qaic-util and to programs, seen as clients see it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qeff_engine.simulated_sdk import devices, qpc_cli, util_cli
from tests.unit.qeff_engine.simulated_sdk import graphs


@pytest.fixture
def have(simulated_sdk_root, monkeypatch):
    """Say which faults the shared SDK has; none at the end."""
    monkeypatch.delenv("QAIC_SIM_FAULTS", raising=False)
    path = simulated_sdk_root / "faults.json"

    def say(*entries):
        path.write_text(json.dumps({"faults": entries}))

    yield say
    path.unlink(missing_ok=True)


@pytest.fixture
def compiler(simulated_sdk_root, tmp_path):
    """Start a compiler of the SDK on a tiny model."""
    model = graphs.save(graphs.decoder(), tmp_path)
    arguments = graphs.command(model, "-retained-state", specializations=graphs.SPECIALIZATIONS)

    with contextlib.ExitStack() as stack:

        def start(tool="qaic-compile"):
            command = [simulated_sdk_root / "exec" / tool, *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)  # also one that hangs when its test has failed
            return process

        yield start


def ended(process):
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("shape", 1, "Unable to AddNodesToGraphFromModel"),
        ("constant", 1, "'limit' input must be a constant tensor"),
        ("json", 255, "[json.exception.type_error.302] type must be string, but is object"),
    ],
)
def test_a_compiler_refuses_with_the_text_and_the_code_of_the_real_one(compiler, have, error, code, said):
    have({"kind": "compiler-error", "error": error})
    found = ended(compiler())
    assert found[0] == code
    assert said in found[2]
    assert "Reading ONNX Model from" in found[1]


@pytest.mark.parametrize(("kind", "number"), [("compiler-crash", signal.SIGSEGV), ("compiler-oom", signal.SIGKILL)])
def test_a_compiler_dies_of_the_signal_and_leaves_no_program(compiler, have, tmp_path, kind, number):
    have({"kind": kind})
    assert ended(compiler())[0] == -number
    assert not (tmp_path / "qpc").exists()


def test_a_compiler_that_hangs_ends_by_sigterm_unless_it_shall_ignore_it(compiler, have):
    for entry, by in (({}, signal.SIGTERM), ({"ignore_sigterm": True}, signal.SIGKILL)):
        have({"kind": "compiler-hang", **entry})
        process = compiler()
        assert process.stdout.readline().startswith("Reading")
        assert process.stdout.readline().startswith("Compile started")
        assert _ignores(process.pid, signal.SIGTERM) == (by is signal.SIGKILL)
        process.send_signal(by)
        assert ended(process)[0] == -by


def _ignores(pid, number):
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    ("kind", "code", "left"),
    [("compiler-empty", 0, []), ("compiler-truncated", 0, ["programqpc.bin"]), ("compiler-half", 1, ["tmp"])],
)
def test_a_compiler_leaves_a_half_written_program(
    compiler, have, tmp_path, simulated_sdk_root, capsys, kind, code, left
):
    have({"kind": kind})
    assert ended(compiler())[0] == code
    found = list((tmp_path / "qpc").iterdir())
    assert [path.name.rsplit(".", 1)[-1] if code else path.name for path in found] == left
    binary = str(tmp_path / "qpc" / "programqpc.bin")
    assert qpc_cli.main(["validate", "-i", binary], root=simulated_sdk_root) == 1
    capsys.readouterr()


def test_a_fault_of_one_compiler_and_of_one_model_is_not_anothers(compiler, have, tmp_path):
    have({"kind": "compiler-error", "tool": "qaic-exec"}, {"kind": "compiler-crash", "model": "vision"})
    assert ended(compiler())[0] == 0
    assert ended(compiler("qaic-exec"))[0] == 1


def test_faults_that_cannot_be_understood_fail_the_tools_with_words(compiler, have, simulated_sdk_root, capsys):
    (simulated_sdk_root / "faults.json").write_text("{")
    code, _, err = ended(compiler())
    assert code == 1
    assert "faults.json is no JSON" in err
    assert util_cli.main(["-q"], root=simulated_sdk_root) == 255
    assert "faults.json is no JSON" in capsys.readouterr().err


def listed(root, capsys):
    """Number, status and address of each device that qaic-util names."""
    assert util_cli.main(["-q"], root=root) == 0
    text = capsys.readouterr().out
    return re.findall(r"^QID (\d+)\n\tStatus:(\w+)\n\tPCI Address:(\S+)$", text, re.MULTILINE)


def test_devices_fail_vanish_and_come_back_under_another_number(have, simulated_sdk_root, capsys, runtime):
    rt, _ = runtime
    first, second = (device.pci_address for device in devices.load(simulated_sdk_root))
    for kind in ("device-error", "device-permission"):
        have({"kind": kind, "device": 1})
        assert listed(simulated_sdk_root, capsys) == [("0", "Ready", first), ("1", "Error", second)]
        assert rt.Util().getDeviceInfo(1)[1].devStatus == rt.QDevStatus.QDS_ERROR
    have({"kind": "device-missing", "device": 0})
    assert listed(simulated_sdk_root, capsys) == [("1", "Ready", second)]
    assert list(rt.Util().getDeviceIds()[1]) == [1]
    have({"kind": "device-missing", "device": 0, "renumber": True})
    assert listed(simulated_sdk_root, capsys) == [("0", "Ready", second)]
    have({"kind": "device-moved", "device": first, "qid": 1})
    assert listed(simulated_sdk_root, capsys) == [("0", "Ready", second), ("1", "Ready", first)]
    have()
    assert listed(simulated_sdk_root, capsys) == [("0", "Ready", first), ("1", "Ready", second)]


def test_a_hot_device_shows_a_lower_clock_and_its_temperature(have, simulated_sdk_root, tmp_path, capsys):
    have({"kind": "device-throttled", "device": 0, "clock": 0.5, "celsius": 99})
    assert util_cli.main(["-q", "-j", str(tmp_path / "x.json")], root=simulated_sdk_root) == 0
    hot, cool = json.loads((tmp_path / "x.json").read_text())["device_info"]
    assert (hot["nsp_frequency_mhz"], hot["soc_temperature_c"]) == (415, 99)
    assert (cool["nsp_frequency_mhz"], cool["soc_temperature_c"]) == (1240, 40)


@pytest.fixture
def programs(tmp_path, compile_in, runtime, capsys):
    """Two activated programs of the tiny decoder on device 0, and one that is not active."""
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", "-aic-num-cores=2", specializations=graphs.SPECIALIZATIONS) == 0
    found = [graphs.Client(*runtime, program=tmp_path / "qpc") for _ in range(3)]
    assert [found[0].activate(), found[1].activate()] == [0, 0]
    capsys.readouterr()
    yield found
    for client in found:
        client.program.deactivate()


def asked(client):
    """Status of a call, and its logits if there are any."""
    calls = client.exec_object()
    assert calls.setData(*client.buffers(graphs.tokens([5], [0]), outputs=graphs.logits())) == 0
    assert client.queue.enqueue(calls) == 0
    status = calls.waitForCompletion()
    return int(status), np.frombuffer(
        bytes(calls.getData()[1][client.index["logits"]]), np.float32
    ) if not status else ()


def test_a_restart_of_the_cores_loses_a_call_and_the_activation_of_one_program_only(programs, runtime, have, capsys):
    rt, _ = runtime
    one, other, _ = programs
    calls = one.exec_object()
    have({"kind": "device-ssr", "device": 0, "after": 1, "times": 1})
    data = one.buffers(graphs.tokens([5], [0]), outputs=graphs.logits())
    statuses = []
    for _ in range(3):
        assert calls.setData(*data) == 0
        assert one.queue.enqueue(calls) == 0
        statuses.append(int(calls.waitForCompletion()))
    assert statuses == [0, 300, 8], "the second call is lost, and then the program is not active"
    assert "NSP under SSR" in capsys.readouterr().err
    assert asked(other)[0] == 0
    assert rt.Util().getDeviceInfo(0)[1].devData.resourceInfo.nspFree == 14, "its cores are free"
    assert one.activate() == rt.QStatus.QS_SUCCESS
    assert asked(one)[0] == 0


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("device-error", 300, "Device:0 not in ready state"),
        ("device-permission", 1, "Permission denied"),
        ("device-missing", 5, "Invalid device:0"),
    ],
)
def test_a_device_that_fails_under_a_program_fails_its_calls_and_every_activation(
    programs, have, capsys, kind, status, said
):
    one, _, idle = programs
    calls = one.exec_object()
    assert calls.setData(*one.buffers(graphs.tokens([5], [0]), outputs=graphs.logits())) == 0
    have({"kind": kind, "device": 0})
    one.queue.enqueue(calls)
    assert calls.waitForCompletion() == status
    assert said in capsys.readouterr().err
    assert idle.activate() == status
    assert said in capsys.readouterr().err
    have()
    assert idle.activate() == 0


def test_a_call_that_times_out_says_so(programs, have, capsys):
    have({"kind": "device-timeout", "times": 1})
    assert asked(programs[0])[0] == 9
    assert "IOCTL: Connection timed out ERROR" in capsys.readouterr().err
    assert asked(programs[0])[0] == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("nsp", "Failed to allocate NSP resources"),
        ("memory", "Memory resource exhausted"),
        ("vc", "virtual channel"),
        ("mcid", "multicast IDs"),
        ("semaphore", "GSM semaphore"),
        ("version", "Version mismatch"),
    ],
)
def test_an_activation_is_refused_with_the_text_of_the_firmware(programs, have, capsys, code, said):
    have({"kind": "activation-refused", "code": code})
    assert programs[2].activate() == 300
    text = capsys.readouterr().err
    assert re.search(rf"\[QKmdDevice\]\[activate:#1172\] Device 0 activate failed: .*{said}", text)


def test_wrong_numbers_have_the_other_sign_and_the_state_stays_right(programs, have):
    status, right = asked(programs[0])
    have({"kind": "wrong-numbers"})
    wrong_status, wrong = asked(programs[0])
    assert status == wrong_status == 0
    np.testing.assert_array_equal(wrong, -right)
    have({"kind": "wrong-numbers", "share": 0.25, "seed": 3})
    _, partly = asked(programs[0])
    assert 0 < np.count_nonzero(partly != right) < right.size / 2
    have()
    np.testing.assert_array_equal(asked(programs[0])[1], right)


def test_a_slow_or_hot_device_takes_longer_on_the_simulated_clock(programs, runtime, have):
    rt, _ = runtime

    def taken():
        before = rt.simulatedTimeNs()
        assert asked(programs[0])[0] == 0
        return rt.simulatedTimeNs() - before

    plain = taken()
    have({"kind": "device-slow", "factor": 3, "device": 0})
    assert taken() == pytest.approx(3 * plain, abs=10)
    have({"kind": "device-throttled", "clock": 0.25, "device": 0})
    assert taken() == pytest.approx(4 * plain, abs=10)
    have({"kind": "device-slow", "device": 1})
    assert taken() == plain
