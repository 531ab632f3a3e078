"""The simulated clock: calls of an activation follow one another, activations overlap, options change both."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import cost_model, devices, runtime_log, virtual_clock
from qeff_engine.simulated_sdk.program_objects import Program, Qpc
from qeff_engine.simulated_sdk.virtual_clock import BadClock, Clock, ClockOptions, parse
from tests.unit.qeff_engine.simulated_sdk import graphs


def _clock(text="", **passed):
    return Clock(parse(text), **passed)


def _seconds_from(start_ns, end_ns):
    return pytest.approx((end_ns - start_ns) / 1e9, abs=1e-8)


def test_a_queue_hides_the_host_and_calls_of_an_activation_follow_one_another():
    clock, start = _clock(), runtime_log.simulatedTimeNs()
    timeline = clock.add([0])
    ends = [clock.schedule(timeline, host_s=0.25, device_s=lambda _: 1.0) for _ in range(3)]
    assert [_seconds_from(start, end) for end in ends] == [1.25, 2.25, 3.25]
    assert runtime_log.simulatedTimeNs() == start, "only waiting moves the clock"
    clock.wait(ends[1])
    clock.wait(ends[0])
    assert runtime_log.simulatedTimeNs() == ends[1]
    clock.wait(ends[2])
    unqueued = clock.schedule(timeline, host_s=0.25, device_s=lambda _: 1.0)
    assert _seconds_from(ends[2], unqueued) == 1.25


def test_activations_overlap_and_know_how_many_share_a_device():
    clock, start = _clock(), runtime_log.simulatedTimeNs()
    seen = []

    def device_s(active):
        seen.append(active)
        return 1.0

    timelines = [clock.add(qids) for qids in ([0], [0], [1], [0, 1])]
    ends = [clock.schedule(timeline, host_s=0.0, device_s=device_s) for timeline in timelines]
    assert [_seconds_from(start, end) for end in ends] == [1.0] * 4
    assert seen == [1, 2, 1, 4]
    clock.wait(max(ends))
    clock.schedule(timelines[0], host_s=0.0, device_s=device_s)
    assert seen[-1] == 1, "calls that have ended share nothing"


def test_an_activation_that_is_gone_shares_nothing():
    clock, seen = _clock(), []
    gone, kept = clock.add([0]), clock.add([0])
    clock.schedule(gone, host_s=0.0, device_s=lambda _: 1.0)
    del gone
    clock.schedule(kept, host_s=0.0, device_s=lambda active: seen.append(active) or 1.0)
    assert seen == [1]


def _times(clock, *, count):
    timeline, found = clock.add([0]), []
    for _ in range(count):
        before = max(timeline.free_ns, runtime_log.simulatedTimeNs())
        found.append((clock.schedule(timeline, host_s=0.0, device_s=lambda _: 1.0) - before) / 1e9)
    return found


def test_noise_is_as_wide_as_asked_for_and_the_same_for_the_same_seed():
    first = _times(_clock("noise=0.05,seed=3"), count=400)
    assert first == _times(_clock("noise=0.05,seed=3"), count=400)
    assert first != _times(_clock("noise=0.05,seed=4"), count=400)
    logs = [math.log(value) for value in first]
    assert statistics.mean(logs) == pytest.approx(0.0, abs=4 * 0.05 / math.sqrt(400))
    assert statistics.stdev(logs) == pytest.approx(0.05, rel=0.2)


def test_the_first_calls_of_an_activation_are_slower_while_it_warms_up():
    assert _times(_clock("warm_up=3:4"), count=6) == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0, 1.0])


def test_an_activation_is_throttled_after_so_much_work():
    assert _times(_clock("throttle=1.5:3"), count=6) == pytest.approx([1.0, 1.0, 1.0, 1.5, 1.5, 1.5])


def test_pacing_waits_in_real_time_for_what_computing_has_not_taken():
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    clock = _clock("pace=0.5", real_s=lambda: now[0], sleep=sleep)
    timeline = clock.add([0])
    for computing_s in (0.0, 0.2, 2.0, 0.0):
        now[0] += computing_s
        clock.wait(clock.schedule(timeline, host_s=0.0, device_s=lambda _: 1.0))
    assert slept == pytest.approx([0.5, 0.3, 0.5]), "a slow call is not made up for"


def test_without_pacing_nothing_is_waited_for():
    clock = _clock(sleep=lambda _: pytest.fail("slept"))
    clock.wait(clock.schedule(clock.add([0]), host_s=0.0, device_s=lambda _: 3600.0))


def test_the_variable_is_off_when_it_is_empty():
    assert parse("") == ClockOptions()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("speed=2", "expected one of pace, noise, seed, warm_up, throttle"),
        ("noise", "noise"),
        ("noise=-1", "negative"),
        ("pace=inf", "finite"),
        ("seed=1.5", "seed=1.5"),
        ("warm_up=2", "warm_up=2"),
        ("throttle=0.5:10", "below 1"),
        ("throttle=2:3:4", "throttle"),
    ],
)
def test_what_cannot_be_read_is_refused_and_named(text, named):
    with pytest.raises(BadClock, match=virtual_clock.VARIABLE) as raised:
        parse(text)
    assert named in str(raised.value)


def test_a_program_is_refused_while_the_variable_cannot_be_read(compile_in, runtime, tmp_path, monkeypatch, capsys):
    rt, _ = runtime
    decoder = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(decoder, specializations=graphs.SPECIALIZATIONS) == 0
    monkeypatch.setattr(virtual_clock, "_clock", None)
    monkeypatch.setenv(virtual_clock.VARIABLE, "noise=much")
    with pytest.raises(RuntimeError, match="noise=much"):
        Program(rt.Context(rt.QIDList([0])), 0, Qpc(str(tmp_path / "qpc")))
    assert "noise=much" in capsys.readouterr().err


def _save_products(directory):
    """Four products of 64 x 512 with 512 x 512 in a row, without states."""
    names = ["x", "a", "b", "c", "y"]
    model = graphs.model(
        [helper.make_node("MatMul", [source, "weight"], [made]) for source, made in itertools.pairwise(names)],
        inputs={"x": (TensorProto.FLOAT, [64, 512])},
        outputs={"y": (TensorProto.FLOAT, [64, 512])},
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((512, 512), np.float32), "weight"))
    return graphs.save(model, directory)


def _rate(rt, directory, *, set_size, activations, calls):
    """Calls per simulated second of an inference set that is kept full, and what the cost model says alone."""
    qpc = rt.Qpc(str(directory))
    network = qpc.network
    inference_set = rt.InferenceSet(rt.Context(rt.QIDList([0])), qpc, 0, set_size, activations)
    start, queued = rt.simulatedTimeNs(), []
    for number in range(calls):
        _, handle = inference_set.getAvailable()
        if handle is None:
            _, done = inference_set.getCompletedId(queued.pop(0))
            inference_set.putCompleted(done)
            _, handle = inference_set.getAvailable()
        buffers = [rt.QBuffer(bytes(item.io_type.num_bytes(item.shapes[0]))) for item in network.bindings]
        assert handle.setBuffers(buffers) == 0
        assert inference_set.submit(handle, number) == 0
        queued.append(number)
    for number in queued:
        inference_set.getCompletedId(number)
    settings = cost_model.Settings(cores=network.num_cores, ols=network.ols, mos=network.mos)
    period_s = cost_model.period_s(
        network.works[0],
        kind=devices.KINDS["ultra"],
        settings=settings,
        instances=activations,
        set_size=set_size,
    )
    return calls / ((rt.simulatedTimeNs() - start) / 1e9), activations / period_s


@pytest.mark.parametrize(("set_size", "activations"), [(1, 1), (4, 1), (4, 3)])
def test_an_inference_set_is_as_fast_as_the_cost_model_says(compile_in, runtime, tmp_path, set_size, activations):
    rt, _ = runtime
    model = _save_products(tmp_path)
    assert compile_in(model, "-convert-to-fp16", "-aic-num-cores=4") == 0
    found, expected = _rate(
        rt, tmp_path / "qpc", set_size=set_size, activations=activations, calls=60 * set_size * activations
    )
    assert found == pytest.approx(expected, rel=0.03)


def test_settings_of_the_compiler_reach_the_clock(compile_in, runtime, tmp_path):
    rt, _ = runtime
    rates = {}
    for name, flags in {"plain": (), "ols": ("-ols=8",), "cores": ("-aic-num-cores=4",)}.items():
        (tmp_path / name).mkdir()
        model = _save_products(tmp_path / name)
        assert compile_in(model, "-convert-to-fp16", *flags) == 0
        rates[name], _ = _rate(rt, tmp_path / name / "qpc", set_size=4, activations=1, calls=20)
    assert rates["cores"] > rates["plain"] != rates["ols"]
