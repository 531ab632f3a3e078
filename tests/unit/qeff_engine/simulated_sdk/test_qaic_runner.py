"""The runner, against the vendor's option tables, published transcripts and the open runtime's source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import devices, occupancy, runner_cli
from tests.unit.qeff_engine.simulated_sdk import graphs

# As scripts read it, from the published transcripts.
_STATS = re.compile(r"^InferenceCnt (\d+) TotalDuration (\d+)us BatchSize (\d+) Inf/Sec ([\d.]+)$", re.MULTILINE)
_ROWS, _WIDTH = 8, 64
_WEIGHT = np.linspace(-1, 1, _WIDTH * _WIDTH, dtype=np.float32).reshape(_WIDTH, _WIDTH)


def _product(tmp_path, compile_in, *flags):
    """A program of one product: ``y = x W`` over ``batch`` rows of eight."""
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    sides = {"x": (TensorProto.FLOAT, ["batch", _WIDTH])}, {"y": (TensorProto.FLOAT, ["batch", _WIDTH])}
    model = graphs.model([node], inputs=sides[0], outputs=sides[1], weights={"weight": _WEIGHT})
    path = graphs.save(model, tmp_path)
    assert compile_in(path, f"-onnx-define-symbol=batch,{_ROWS}", f"-stats-batchsize={_ROWS}", *flags) == 0
    return tmp_path / "qpc"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch, runtime):
    """One thread for each program; ``runtime`` says so too."""


@pytest.fixture
def run(simulated_sdk_root, capsys):
    """Run the tool in this process: exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = runner_cli.main([str(argument) for argument in arguments], root=simulated_sdk_root)
        return code, *capsys.readouterr()

    return run


def test_random_inputs_give_the_published_lines(tmp_path, compile_in, run):
    code, out, err = run("-t", _product(tmp_path, compile_in, "-aic-num-cores=2"), "-d", "0")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["Using bounded random inputs", " ---- Stats ----"]
    count, duration_us, batch, rate = _STATS.fullmatch(lines[2]).groups()
    assert (count, batch) == ("40", str(_ROWS))
    # The rate counts samples: 5787 inferences of 8 in 20.019 s are 2312.6 per second in a published run.
    assert float(rate) == pytest.approx(int(count) * _ROWS / (int(duration_us) / 1e6), rel=0.02)
    assert lines[3:5] == ["Device Performance:", "Metric, Avg, Min, Max, Std"]
    names = ["ExecTimeUs", "InputWaitTimeUs", "OutputWaitTimeUs"]
    assert [line.split(", ")[0] for line in lines[5:]] == names
    assert all(re.fullmatch(r"\w+(, \d+\.\d+){4}", line) for line in lines[5:])


def test_the_installed_tool_picks_a_device_and_takes_old_and_new_spellings(tmp_path, compile_in, simulated_sdk_root):
    program = _product(tmp_path, compile_in)
    tool = simulated_sdk_root / "exec/qaic-runner"
    command = [tool, "--test-data", program, "-num-iter=3", "-time", "2", "--aic-num-of-activations", "2", "-S1", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"QAIC_SIM_THREADS": "1"})
    assert done.stdout.startswith(f"Device: ID 0\nTest path: {program}\nUsing bounded random inputs\n")
    assert "Inference run completed successfully!\n" in done.stdout
    found = _STATS.search(done.stdout)
    # Whole inferences until two simulated seconds are over.
    assert 2_000_000 <= int(found[2]) < 2_100_000


def test_execution_and_waiting_of_a_call_fill_the_time_between_two(tmp_path, compile_in, run):
    program = _product(tmp_path, compile_in)
    waits = []
    for set_size in (1, 10):
        _, out, _ = run("-t", program, "-n", "2000", "-a", "2", "-S", set_size)
        count, duration_us, _, _ = _STATS.search(out).groups()
        means = {name: float(mean) for name, mean in re.findall(r"^(\w+TimeUs), ([\d.]+)", out, re.MULTILINE)}
        between_us = 2 * int(duration_us) / int(count)
        assert means["ExecTimeUs"] + means["InputWaitTimeUs"] == pytest.approx(between_us, rel=0.01)
        waits.append(means["InputWaitTimeUs"])
    # A queue hides the host: 1.40 ms of waiting are published without one.
    assert waits[1] < waits[0] / 2


def test_a_long_run_has_the_pace_of_a_short_one(tmp_path, compile_in, run):
    program = _product(tmp_path, compile_in)
    rates = [float(_STATS.search(run("-t", program, "-n", count)[1])[4]) for count in (400, 1_000_000)]
    assert rates[0] == pytest.approx(rates[1], rel=0.01)


@pytest.mark.parametrize(
    "device", [["-d", "1"], ["--dev", "1"], ["--aic-device-id=1"], ["-D", "1"], ["--dev-list", "1"]]
)
def test_a_device_may_be_named_in_every_spelling(tmp_path, compile_in, run, device):
    code, out, _ = run("-t", _product(tmp_path, compile_in), "-v", *device)
    assert code == 0
    assert out.startswith("Device: ID 1\n")


def test_a_device_with_room_is_picked(tmp_path, compile_in, run, simulated_sdk_root):
    program = _product(tmp_path, compile_in, "-aic-num-cores=7")
    first = devices.load(simulated_sdk_root)[0]
    holding = occupancy.take(simulated_sdk_root, device=first, amounts=occupancy.Amounts(cores=8, channels=1))
    try:
        assert run("-t", program, "-a", "2")[0] == 0
        code, _, err = run("-t", program, "-a", "2", "-d", "0")
    finally:
        holding.release()
    assert code == 1
    assert "Device 0 activate failed: Failed to allocate NSP resources" in err
    assert err.endswith("ExecObj creation failed\nFailed to initialize QAIC runner\n")
    # What an attempt has taken is free again.
    assert occupancy.usage(simulated_sdk_root, device=first).taken.cores == 0


def test_given_inputs_are_computed_and_written(tmp_path, compile_in, run):
    program = _product(tmp_path, compile_in)
    x = np.arange(_ROWS * _WIDTH, dtype=np.float32).reshape(_ROWS, _WIDTH) / 100
    (tmp_path / "x.raw").write_bytes(x.tobytes())
    out_dir = tmp_path / "outputs"
    given = ["-t", program, "-i", tmp_path / "x.raw", "-n", "3", "-d", "0"]
    code, out, _ = run(*given, "--write-output-dir", out_dir, "--write-output-start-iter", "1")
    assert code == 0
    assert out.splitlines()[:2] == [f"Input file: {tmp_path}/x.raw", f"Writing file:{out_dir}/y-activation-0-inf-1.bin"]
    assert [path.name for path in out_dir.iterdir()] == ["y-activation-0-inf-1.bin"]
    y = np.fromfile(out_dir / "y-activation-0-inf-1.bin", np.float32).reshape(_ROWS, _WIDTH)
    np.testing.assert_allclose(y, x @ _WEIGHT, rtol=1e-5, atol=1e-5)
    # The file that was written is the right answer, and another one is not.
    code, out, _ = run(*given, "-o", out_dir / "y-activation-0-inf-1.bin", "-v")
    assert code == 0
    assert "Output validation successful!" in out
    (tmp_path / "other.raw").write_bytes((y + 1).tobytes())
    code, _, err = run(*given, "-o", tmp_path / "other.raw")
    assert code == 1
    assert "Validation Failed for iteration 0, num failed: 1, num passed: 0" in err
    assert err.endswith("Output validation failed for iteration 1\nFailed to run QAIC runner\n")


def test_a_batch_from_json_runs_once_over_its_inferences(tmp_path, compile_in, run):
    program = _product(tmp_path, compile_in)
    lists = []
    for number in range(3):
        (tmp_path / f"x{number}.raw").write_bytes(np.full((_ROWS, _WIDTH), number, np.float32).tobytes())
        entry = {"path": f"x{number}.raw", "io-direction": "in", "elem-size": 4, "map-to": "x", "dims": [_ROWS, _WIDTH]}
        out = {"path": "y.raw", "io-direction": "out", "elem-size": 4, "map-to": "y", "dims": [_ROWS, _WIDTH]}
        lists.append([entry, out])
    (tmp_path / "ios.json").write_text(json.dumps({"IO-files": lists}))
    batch = ["--aic-batch-json-input", tmp_path / "ios.json", "--write-output-num-samples", "3"]
    code, out, _ = run("-t", program, *batch, "--write-output-dir", tmp_path)
    assert code == 0
    assert _STATS.search(out)[1] == "3"
    written = [np.fromfile(tmp_path / f"y-activation-0-inf-{number}.bin", np.float32) for number in range(3)]
    for number, values in enumerate(written):
        expected = np.full((_ROWS, _WIDTH), number, np.float32) @ _WEIGHT
        np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_batches_from_a_directory_and_from_a_list_are_one_inference_for_each_entry(tmp_path, compile_in, run):
    program = _product(tmp_path, compile_in)
    folder = tmp_path / "inputs"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.raw").write_bytes(bytes(4 * _ROWS * _WIDTH))
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in [*folder.iterdir(), folder / "0.raw"]))
    assert _STATS.search(run("-t", program, "--aic-batch-input-directory", folder)[1])[1] == "2"
    assert _STATS.search(run("-t", program, "--aic-batch-input-file-list", tmp_path / "list.txt")[1])[1] == "3"


def test_a_decoder_keeps_its_states_and_takes_random_tokens(tmp_path, compile_in, run):
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", specializations=graphs.SPECIALIZATIONS) == 0
    code, out, _ = run("-t", tmp_path / "qpc", "-n", "5", "-d", "0", "--unbound-random")
    assert code == 0
    assert out.startswith("Using unbounded random inputs\n")
    assert _STATS.search(out)[3] == "1"


def test_live_reports_come_in_their_period(tmp_path, compile_in, run):
    _, out, _ = run("-t", _product(tmp_path, compile_in), "--time", "3.5", "-l", "-r", "1000")
    before, _, _ = out.partition(" ---- Stats ----")
    assert [int(found[1]) for found in _STATS.findall(before)] == [1_000_000, 2_000_000, 3_000_000]


_USAGE_CASES = [
    ([], "Error: Missing test data path"),
    (["-t", "qpc", "-n", "0"], "Set a positive value for num-iter"),
    (["-t", "qpc", "-d", "-1"], "Set a valid aic-device-id"),
    (["-t", "qpc", "--write-output-start-iter", "x"], "Set non-negative value for write-output-start-iter"),
    (["-t", "qpc", "--write-output-num-samples", "0"], "Set positive value for write-output-num-samples"),
    (["-t", "qpc", "--time", "soon"], "Set a positive value for time"),
    (["-t", "qpc", "-D", "0:1,2"], "Set a valid dev-list"),
    (["-t", "qpc", "--write-output-dir", "/nowhere/x"], "Invalid output dir: /nowhere/x"),
    (["-t", "qpc", "-n", "2", "--write-output-num-samples", "3"], "should be <= numInf(2)."),
    (["-t", "qpc", "--batch"], "unrecognized option '--batch'"),
    (["-t", "qpc", "-t"], "option requires an argument -- 't'"),
    (["-t", "qpc", "--aic-profiling-type", "latency"], "--aic-profiling-type is not supported by the simulated runner"),
]


@pytest.mark.parametrize(("arguments", "said"), _USAGE_CASES)
def test_wrong_usage_ends_with_1_the_reason_and_the_usage(run, arguments, said):
    code, out, err = run(*arguments)
    assert code == 1
    assert said in err
    assert err.endswith("Failed to validate arguments\n")
    assert out.startswith("Usage: qaic-runner [options]\n")


def test_help_ends_with_0(run):
    code, out, err = run("-h")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: qaic-runner [options]\n")


def test_devices_programs_and_inputs_that_do_not_fit_end_with_1(tmp_path, compile_in, run, monkeypatch):
    program = _product(tmp_path, compile_in)
    assert run("-t", program, "-d", "7") == (1, "", "Invalid device:7\nFailed to initialize QAIC runner\n")
    code, _, err = run("-t", tmp_path / "nothing", "-d", "0")
    assert code == 1
    assert err.endswith("Invalid qpc, failed to create qpc object\nFailed to initialize QAIC runner\n")
    (tmp_path / "short.raw").write_bytes(b"abc")
    code, _, err = run("-t", program, "-d", "0", "-i", tmp_path / "short.raw")
    assert code == 1
    assert "Input files have the bytes {'x': 3}, the program takes [{'x': 2048}]" in err
    assert err.endswith("Inference vector creation failed\nFailed to initialize QAIC runner\n")
    (tmp_path / "ios.json").write_text('{"IO-files": [[{"path": "short.raw"}]]}')
    assert run("-t", program, "--aic-batch-json-input", tmp_path / "ios.json")[0] == 1
    monkeypatch.setenv("QAIC_VISIBLE_DEVICES", "9")
    assert run("-t", program)[2] == "No device in ready state\nFailed to initialize QAIC runner\n"


def test_a_device_that_may_not_be_opened_is_not_ready(tmp_path, compile_in, run, simulated_sdk_root):
    program = _product(tmp_path, compile_in)
    state = simulated_sdk_root / "state"
    moved = state.rename(tmp_path / "moved")
    try:
        state.write_text("no folder")
        code, _, err = run("-t", program, "-d", "0")
    finally:
        state.unlink()
        shutil.move(moved, state)
    assert (code, err) == (1, "Device:0 not in ready state\nFailed to initialize QAIC runner\n")
