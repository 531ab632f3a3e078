"""The model configurator, against the vendor's pages and the transcripts in its tutorials."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import configurator_cli, configurator_search, devices, occupancy, runner_cli
from qeff_engine.simulated_sdk.configurator_search import Point, Space
from tests.unit.qeff_engine.simulated_sdk import graphs

_SCRIPT = "scripts/qaic-model-configurator/model_configurator.py"
_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
_INITIAL = {"cores": 1, "mos": 1, "ols": 1, "bs": 1, "instances": 14}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A product over ``batch`` rows, in a directory of its own, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QAIC_VISIBLE_DEVICES", raising=False)
    side = (TensorProto.FLOAT, ["batch", 256])
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    weight = np.ones((256, 256), np.float32)
    return graphs.save(
        graphs.model([node], inputs={"x": side}, outputs={"y": side}, weights={"weight": weight}), tmp_path
    )


def _search_file(tmp_path, **changed):
    ranges = {"cores": (1, 2), "bs": (1, 2), "instances": (1, 14)}
    search = {
        "max_func_eval": 200,
        "objective": "maximize_inf_rate",
        "params": {name: {"min": low, "max": high} for name, (low, high) in ranges.items()},
        "initial_values": [_INITIAL],
        **changed,
    }
    path = tmp_path / "search.json"
    path.write_text(json.dumps(search))
    return path


def test_an_optimized_search_prints_and_writes_what_the_tool_does(model, tmp_path, simulated_sdk_root):
    # As in the tutorial, started as an argument of some Python.
    command = [
        *(sys.executable, simulated_sdk_root / _SCRIPT, "model.onnx", "onnx"),
        *("-onnx-define-symbol-batch-size=batch", "-multicast-weights", "-convert-to-fp16"),
        *("-optimized-config-search", _search_file(tmp_path), "-max-compilation-threads", "8", "-time", "5"),
        *("-device-id", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(_STAMP + r" - \[INFO\]: Starting \S+/model_configurator.py model.onnx onnx .*", lines[0])
    assert re.fullmatch(_STAMP + r" - \[INFO\]: Model Name: model.onnx", lines[1])
    assert re.fullmatch(_STAMP + r" - \[INFO\]: Running optimized search", lines[3])
    first = rf"\[{_STAMP}\] \[info\] "
    compiling = r"Compiling model with compiler parameters: \[\(cores=1, mos=\[1\], ols=1, batchSize=1\)\]"
    assert re.fullmatch(first + compiling, lines[4])
    path = "model_configurator_output/compiled_models/qpc-cores-1-mos-1-ols-1-bs-1-output"
    assert re.fullmatch(first + rf"Running model at path {path} with runnerParams \(instances=14\)", lines[5])
    on_device = rf"Model at path {path} with runnerParams \(instances=14\) running on device ID 1"
    assert re.fullmatch(first + on_device, lines[6])
    header, row = lines[-3:-1]
    columns = [
        "OptimizerStatus",
        "InitialValue",
        "cores",
        "mos",
        "ols",
        "batchSize",
        "instances",
        "Objective",
        "(inf/sec)",
    ]
    assert header.split() == columns
    initial = r"\(cores=1, mos=\[1\], ols=1, batchSize=1, instances=14\)"
    assert re.fullmatch(rf"0\s+SUCCESS\s+{initial}\s+\d+\s+\[1\]\s+1\s+\d+\s+\d+\s+[\d.]+", row)
    assert re.fullmatch(_STAMP + r" - \[INFO\]: Total execution time \d\d:\d\d:\d\d\.\d{3}", lines[-1])
    output = tmp_path / "model_configurator_output"
    assert (output / "model_configurator.log").read_text().splitlines() == lines
    assert not (output / "compiled_models").exists(), "binaries are kept only with -retain-binaries"
    with (output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda result: float(result["infPerSec"]))
    best_words = [best["cores"], f"[{best['mos']}]", best["ols"], best["batchSize"], best["instances"]]
    assert row.split()[-6:-1] == best_words
    assert float(row.split()[-1]) == pytest.approx(float(best["infPerSec"]), rel=1e-3)
    assert all(int(result["cores"]) * int(result["instances"]) <= 14 for result in rows)


def test_brute_force_over_lists_keeps_binaries_and_points_on_demand(model, tmp_path, simulated_sdk_root, capsys):
    arguments = ["model.onnx", "onnx", "-onnx-define-symbol-batch-size=batch", "-cores", "2,16", "-batchsize=1"]
    more = ["-iter", "10", "-retain-binaries", "-save-config", "points.csv", "-list-configs", "-device-id", "0"]
    assert configurator_cli.main([*arguments, *more], root=simulated_sdk_root) == 0
    out = capsys.readouterr().out
    assert "0 (cores=2, mos=[1], ols=1, batchSize=1, instances=8)\n" in out
    compiled = tmp_path / "model_configurator_output" / "compiled_models"
    folders = {f"qpc-cores-{cores}-mos-1-ols-1-bs-1-output" for cores in (2, 16)}
    assert {path.name for path in compiled.iterdir()} == folders
    assert all((compiled / folder / "programqpc.bin").is_file() for folder in folders)
    # The runner on the same binary says the same.
    with (tmp_path / "model_configurator_output" / "results.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["cores"] == "2")
    kept = str(compiled / "qpc-cores-2-mos-1-ols-1-bs-1-output")
    assert runner_cli.main(["-t", kept, "-a", "8", "-n", "10", "-d", "0"], root=simulated_sdk_root) == 0
    rate = re.search(r"Inf/Sec ([\d.]+)", capsys.readouterr().out)
    assert float(row["infPerSec"]) == pytest.approx(float(rate[1]), rel=1e-3)
    lines = (tmp_path / "points.csv").read_text().splitlines()
    assert lines == ["cores,mos,ols,batchSize,instances", "2,1,1,1,8", "16,1,1,1,1"]
    # The saved points again, edited: only compiled, and kept.
    (tmp_path / "points.csv").write_text("\n".join(lines[:2]))
    again = ["-load-configs", "points.csv", "-compile-only", "-device-id", "0"]
    assert configurator_cli.main([*arguments[:3], *again], root=simulated_sdk_root) == 0
    out = capsys.readouterr().out
    assert out.count("Compiling model") == 1
    assert "Running model" not in out
    assert (compiled / "qpc-cores-2-mos-1-ols-1-bs-1-output" / "programqpc.bin").is_file()


def test_points_that_fail_are_rows_with_the_reason(model, simulated_sdk_root, capsys, tmp_path):
    device = devices.load(simulated_sdk_root)[0]
    holding = occupancy.take(simulated_sdk_root, device=device, amounts=occupancy.Amounts(cores=12, channels=1))
    arguments = ["model.onnx", "onnx", "-onnx-define-symbol-batch-size=batch", "-cores", "8", "-device-id", "0"]
    try:
        assert configurator_cli.main(arguments, root=simulated_sdk_root) == 1
    finally:
        holding.release()
    assert "RUN_FAILURE" in capsys.readouterr().out
    assert configurator_cli.main(["model.onnx", "onnx", "-cores", "8", "-strange-flag"], root=simulated_sdk_root) == 1
    out = capsys.readouterr().out
    assert "COMPILE_FAILURE" in out
    assert "Invalid option -strange-flag" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.onnx"], "expected a model and its type onnx, got model.onnx"),
        (["model.onnx", "onnx", "-cores", "4-1"], "-cores is '4-1', expected values and ranges such as 1-4,8,12"),
        (["model.onnx", "onnx", "-cores"], "-cores needs a value"),
        (["model.onnx", "onnx", "-time", "0"], "-time is '0', expected seconds"),
        (["model.onnx", "onnx", "-iter", "x"], "-iter is 'x', expected a whole number of at least 1"),
        (["model.onnx", "onnx", "-device-id", "9"], "Device:9 not in ready state"),
        (["model.onnx", "onnx", "-load-configs", "none.csv"], "none.csv has no rows of cores, mos"),
        (["model.onnx", "onnx", "-cores", "15", "-instances", "2"], "no point of the search space fits a device of 16"),
        (["model.onnx", "onnx", "-optimized-config-search", "search.json", "-mos", "1"], "goes with neither"),
        (["model.onnx", "onnx", "-optimized-config-search", "none.json"], "none.json is no search file"),
        (["model.onnx", "onnx", "-optimized-config-search", "odd.json"], "batch sizes that are powers of two"),
    ],
)
def test_wrong_usage_ends_with_1_and_says_why(model, tmp_path, simulated_sdk_root, capsys, arguments, said):
    _search_file(tmp_path, initial_values=[{**_INITIAL, "bs": 3}]).rename(tmp_path / "odd.json")
    assert configurator_cli.main(arguments, root=simulated_sdk_root) == 1
    assert said in capsys.readouterr().err


# The search itself, on made-up landscapes.
_SPACE = Space(
    ranges={"cores": (1, 14), "mos": (1, 8), "ols": (1, 8), "bs": (1, 16), "instances": (1, 14)}, device_cores=14
)
_START = Point(instances=14)


def _distance(point, best):
    return sum(abs(getattr(point, name) - getattr(best, name)) for name in configurator_search.PARAMETERS)


def test_the_search_finds_the_top_of_a_smooth_hill_from_every_start_of_the_tutorial():
    best = Point(cores=2, mos=1, ols=4, bs=8, instances=7)
    for cores, instances in ((1, 14), (2, 7), (4, 3), (7, 2), (14, 1)):
        tried = []

        def evaluate(points, tried=tried):
            tried.extend(points)
            return [float(-_distance(point, best)) for point in points]

        start = Point(cores=cores, instances=instances)
        found = configurator_search.search(start, space=_SPACE, evaluate=evaluate, max_evaluations=200)
        assert (found.status, found.best) == ("SUCCESS", best)
        assert len(tried) == len(set(tried)) < 200, "no point is measured twice"
        assert all(_SPACE.allows(point) for point in tried)


@given(
    values=st.dictionaries(st.integers(0, 50), st.one_of(st.none(), st.floats(0, 1e6)), min_size=1),
    limit=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_the_search_ends_within_its_budget_at_the_best_point_that_it_saw(values, limit):
    seen = {}

    def evaluate(points):
        for point in points:
            seen[point] = values.get(hash(point) % 51)
        return [seen[point] for point in points]

    found = configurator_search.search(_START, space=_SPACE, evaluate=evaluate, max_evaluations=limit)
    assert len(seen) <= limit
    if values.get(hash(_START) % 51) is None:
        assert (found.status, found.value) == ("NUMERICAL_FAILURE", None)
    else:
        assert found.value == max(value for value in seen.values() if value is not None)
        assert seen[found.best] == found.value
        assert found.status in ("SUCCESS", "EXCEED_MAX_EVAL", "EXCEED_MAX_ITER")


def test_a_start_that_no_device_can_run_is_refused():
    found = configurator_search.search(Point(cores=8, instances=2), space=_SPACE, evaluate=list, max_evaluations=9)
    assert (found.status, found.value) == ("CONSTRAIN_FAILURE", None)
