import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qeff_engine import command_line, spec
from tests import toy_decoder

COMMAND = [sys.executable, "-m", "qeff_engine"]


def call(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def exported_model(tmp_path):
    directory = tmp_path / "onnx"
    directory.mkdir()
    toy_decoder.export(directory)
    return directory


@pytest.fixture
def slow_sdk(tmp_path):
    """An SDK whose compiler starts a child, says so, and then does not end."""
    root = tmp_path / "sdk"
    (root / "exec").mkdir(parents=True)
    tool = root / "exec" / "qaic-compile"
    tool.write_text('#!/bin/sh\nsleep 600 &\necho "pids $$ $!"\nwait\n')
    tool.chmod(0o755)
    return root


def test_help_loads_neither_torch_nor_numpy():
    code = (
        "import sys, qeff_engine.__main__ as m\n"
        "try: m.main(['compile', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'onnx', 'onnxruntime', 'psutil', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--num-cores N" in done.stdout


def test_importing_the_package_loads_no_torch_and_its_names_are_there():
    code = (
        "import sys, qeff_engine\n"
        "assert 'QEffAutoModel' in dir(qeff_engine)\n"
        "assert qeff_engine.QEffAutoModel is qeff_engine.QEFFAutoModel\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", [stage for stage in spec.Stage if stage is not spec.Stage.RESOLVE])
def test_every_field_of_a_spec_is_an_option_with_its_words(stage):
    command = next(action for action in command_line.parser()._actions if isinstance(action.choices, dict)).choices[
        stage
    ]
    options = {action.dest: action for action in command._actions}
    for field in dataclasses.fields(spec.SPECS[stage]):
        option = {"compiler_options": "compiler_option", "unlisted_flags": "compiler_flag"}.get(field.name, field.name)
        assert options[field.name].option_strings[0] == "--" + option.replace("_", "-")
        assert options[field.name].help


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-cores", "0"], "num_cores is 0"),
        (["--precision", "mxfp8"], "Did you mean 'mxfp6'?"),
        (["--num-corse", "8"], "unrecognized arguments: --num-corse"),
        (["--ctx-len", "8"], "prefill length is 32"),
        (["--onnx", "/does/not/exist"], "/does/not/exist"),
        (["--out", "."], "--out is ., which exists already"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_message(exported_model, tmp_path, options, message):
    done = call("compile", "--onnx", exported_model, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_failure_ends_with_1_one_message_and_a_failed_event(exported_model, tmp_path):
    done = call("compile", "--onnx", exported_model, "--out", tmp_path / "out", QAIC_SDK_ROOT=str(tmp_path / "no-sdk"))
    assert done.returncode == 1
    assert "compile failed (infrastructure): No Cloud AI SDK at" in done.stderr
    assert "Traceback" not in done.stderr
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert kinds == ["started", "failed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx"]


def test_verbose_shows_the_traceback(exported_model, tmp_path):
    done = call(
        "compile", "--onnx", exported_model, "--out", tmp_path / "out", "-v", QAIC_SDK_ROOT=str(tmp_path / "no-sdk")
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stage_its_children_and_its_files(exported_model, slow_sdk, tmp_path, number):
    out = tmp_path / "out"
    command = [*COMMAND, "compile", "--onnx", exported_model, "--out", out, "--sdk-root", slow_sdk, "--ctx-len", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        messages = (json.loads(line)["message"] for line in process.stdout)
        said = next(message for message in messages if message.startswith("pids"))
        children = [psutil.Process(int(pid)) for pid in said.split()[1:]]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == f"compile ended by {number.name}\n"
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert len(gone) == 2, alive
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "sdk"]


def test_doctor_says_what_is_missing_and_ends_with_1(tmp_path):
    done = call("doctor", QAIC_SDK_ROOT=str(tmp_path / "no-sdk"), QEFF_HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    assert f"cache {tmp_path / 'home'}" in done.stdout
    assert re.search(r"^fail  SDK +No Cloud AI SDK at", done.stdout, re.MULTILINE)
    assert "\nSDK: Install the Cloud AI SDK" in done.stdout


def test_doctor_finds_compiler_and_devices(simulated_sdk_root):
    done = call("doctor", "--json", QAIC_SDK_ROOT=str(simulated_sdk_root))
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"]) == (0, [])
    assert report["sdk"]["simulated"]
    assert [device["nsp_total"] for device in report["devices"]] == [16, 14]
    assert Path(report["sdk"]["compiler"]).name == "qaic-compile"


def test_flags_of_the_compiler_reach_the_program_and_stand_in_it(exported_model, tmp_path, simulated_sdk_root):
    (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames: [x]\n")
    done = call(
        *("compile", "--onnx", exported_model, "--ctx-len", 32, "--out", tmp_path / "program"),
        *("--num-cores", 4, "--mos", "2", "--compiler-option", "aic-enable-depth-first"),
        *("--compiler-option", f"node_precision_info={tmp_path / 'npi.yaml'}", "--sdk-root", simulated_sdk_root),
    )
    assert done.returncode == 0, done.stderr
    recorded = json.loads((tmp_path / "program" / "program.json").read_text())
    assert recorded["compile_spec"]["compiler_options"] == {
        "aic-enable-depth-first": True,
        "mos": 2,
        "node-precision-info": "FP32NodeInstanceNames: [x]\n",
    }
    assert {"-mos=2", "-aic-enable-depth-first"} <= set(recorded["commands"]["decoder"])


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--compiler-option", "mso=1"), 2, "Did you mean 'mos'?"),
        (("--mos", "5", "--num-cores", "4"), 2, "mos is 5 with 4 cores"),
        (("--mos", "1", "--compiler-option", "mos=1"), 2, "given twice"),
        (("--compiler-option", "node-precision-info=/none"), 2, "cannot be read: No such file"),
        (("--compiler-flag", "-ols=2"), 2, "Give it as the compiler option ols"),
        (("--compiler-flag", "-brand-new=2"), 1, "Invalid option -brand-new=2"),
    ],
)
def test_flags_of_the_compiler_are_checked_first(exported_model, tmp_path, simulated_sdk_root, options, code, words):
    out = tmp_path / "program"
    directories = ("--onnx", exported_model, "--out", out, "--sdk-root", simulated_sdk_root)
    done = call("compile", *directories, "--ctx-len", 32, *options)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_compiler_that_does_not_end_is_ended_by_its_limit(exported_model, tmp_path, slow_sdk):
    directories = ("--onnx", exported_model, "--out", tmp_path / "program", "--sdk-root", slow_sdk)
    done = call("compile", *directories, "--ctx-len", 32, "--compiler-timeout", "0.5")
    assert done.returncode == 1
    assert "compile failed (timeout): The compiler ran for longer than the limit of 0.5 s" in done.stderr
    (line,) = [json.loads(line) for line in done.stdout.splitlines() if "pids" in line]
    pids = map(int, line["message"].split()[1:])
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "program").exists()
    assert call("compile", *directories, "--compiler-timeout", "0").returncode == 2
