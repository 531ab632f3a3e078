"""What the runner prints, from published transcripts, and the simulated one as a process."""

from __future__ import annotations

import sys

import pytest

from qeff_engine import errors
from qeff_engine.sdk import location, runner

# From the vendor's tutorials on performance tuning; the second is of a newer build.
_OLD = """Using bounded random inputs
 ---- Stats ----
InferenceCnt 5787 TotalDuration 20018960us BatchSize 8 Inf/Sec 2312.608
"""
_NEW = """Input file: a.raw
InferenceCnt 100 TotalDuration 1000000us BatchSize 1 Inf/Sec 100.000
 ---- Stats ----
InferenceCnt 4099 TotalDuration 10000725us BatchSize 1 Inf/Sec 409.870
Device Performance:
Metric, Avg, Min, Max, Std
ExecTimeUs, 2273.4, 2259.0, 2285.0, 4.1
InputWaitTimeUs, 140.2, 1.0, 200.5, 3.0
"""


def test_published_lines_are_calls_and_seconds():
    old = runner.parse(_OLD, in_flight=7)
    assert (old.num_calls, old.total_s) == (5787, 20.01896)
    assert old.calls_s * 8 == pytest.approx(2312.608, rel=1e-4)
    # 22.78 ms of execution and 1.40 ms of waiting are published beside it, for seven instances without a queue.
    assert old.latency_s == pytest.approx(0.02418, rel=0.01)
    assert runner.parse(_NEW, in_flight=1).num_calls == 4099


@pytest.mark.parametrize(
    "text", ["", "garbage\n", "InferenceCnt 0 TotalDuration 0us BatchSize 1 Inf/Sec 0.0", _OLD[:60]]
)
def test_output_without_statistics_is_an_error(text):
    with pytest.raises(errors.Infrastructure, match="no statistics"):
        runner.parse(text, in_flight=1)


def test_a_program_is_run_by_the_sdks_own_tool(program, simulated_sdk_root):
    tool = location.find(simulated_sdk_root).runner
    found = runner.measure(tool, program=program, qid=0, set_size=2, activations=2, seconds=0.5)
    assert found.total_s >= 0.5
    assert found.latency_s == pytest.approx(4 * found.total_s / found.num_calls)


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"qid": 9}, errors.DeviceLost, "Invalid device:9"),
        ({"activations": 5}, errors.DeviceLost, "Failed to allocate NSP resources"),
    ],
)
def test_failures_have_the_class_of_their_text(program, simulated_sdk_root, fields, kind, said):
    tool = location.find(simulated_sdk_root).runner
    asked = {"qid": 0, "set_size": 1, "activations": 1, **fields}
    with pytest.raises(kind, match=said):
        runner.measure(tool, program=program, **asked)


def test_a_program_that_is_none_and_a_tool_that_is_none(tmp_path, simulated_sdk_root):
    tool = location.find(simulated_sdk_root).runner
    with pytest.raises(errors.InvalidInput, match="Invalid qpc"):
        runner.measure(tool, program=tmp_path, qid=0, set_size=1, activations=1)
    with pytest.raises(errors.Infrastructure, match="could not be started"):
        runner.measure(tmp_path / "none", program=tmp_path, qid=0, set_size=1, activations=1)
    silent = tmp_path / "qaic-runner"
    silent.write_text(f"#!{sys.executable}\nprint('fine')")
    silent.chmod(0o755)
    with pytest.raises(errors.Infrastructure, match="no statistics: fine"):
        runner.measure(silent, program=tmp_path, qid=0, set_size=1, activations=1)
