"""The cost model: properties that any such model must have, and shapes that published sweeps show."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import convolutional, geometries
from qeff_engine.simulated_sdk import cost_parameters, operations
from qeff_engine.simulated_sdk.cost_model import Settings, call_s, host_s, period_s
from qeff_engine.simulated_sdk.devices import KINDS
from qeff_engine.simulated_sdk.operations import Operation, Work

STANDARD, ULTRA = KINDS["standard"], KINDS["ultra"]
_LLAMA = geometries.DECODERS["llama-2-7b"]
_DECODE = geometries.decoder_work(_LLAMA, batch=1, tokens=1, ctx_len=2048)

_sizes = st.integers(1, 4096)
_operations = st.one_of(
    st.builds(
        operations.matmul,
        rows=_sizes,
        inner=_sizes,
        columns=_sizes,
        samples=st.integers(1, 32),
        precision=st.sampled_from(["fp32", "fp16", "mxfp6", "int8"]),
    ),
    st.builds(
        operations.product, matrices=st.integers(1, 64), rows=_sizes, inner=_sizes, columns=_sizes, samples=_sizes
    ),
    st.builds(operations.vector, st.sampled_from(operations.VECTOR_KINDS), samples=st.integers(1, 32), elements=_sizes),
    st.builds(operations.states, num_bytes=st.integers(1, 1 << 28), samples=st.integers(1, 32)),
)
_works = st.builds(
    Work,
    operations=st.lists(_operations, min_size=1, max_size=6).map(operations.merged),
    reductions=st.integers(0, 200),
    reduction_bytes=st.integers(0, 1 << 24),
    io_bytes=st.integers(0, 1 << 26),
)
_kinds = st.sampled_from(sorted(KINDS))
_settings = st.builds(
    Settings,
    cores=st.integers(1, 14),
    num_devices=st.sampled_from([1, 2, 4]),
    ols=st.integers(1, 8),
    mos=st.integers(1, 14),
    depth_first=st.booleans(),
)


@given(_works, _kinds, _settings)
def test_a_call_takes_time_and_always_the_same(work, kind, settings):
    first = call_s(work, kind=KINDS[kind], settings=settings)
    assert first > 0
    assert call_s(work, kind=KINDS[kind], settings=settings) == first


@given(_works, _kinds, _settings, _operations)
def test_more_work_never_takes_less_time(work, kind, settings, operation):
    more = dataclasses.replace(work, operations=operations.merged([*work.operations, operation]), io_bytes=1 << 27)
    assert call_s(more, kind=KINDS[kind], settings=settings) >= call_s(work, kind=KINDS[kind], settings=settings)
    assert host_s(more) >= host_s(work)


@given(_works, _kinds, _settings, st.integers(1, 13))
def test_other_busy_activations_never_make_a_program_faster_than_a_free_device_without_boost(
    work, kind, settings, others
):
    unboosted = dataclasses.replace(cost_parameters.load(), max_boost=1.0)
    times = [
        call_s(work, kind=KINDS[kind], settings=settings, active=active, parameters=unboosted)
        for active in (1, 1 + others)
    ]
    assert times[0] <= times[1] * (1 + 1e-12)


@given(_works, _kinds, _settings, st.integers(1, 10))
def test_a_longer_queue_never_lowers_the_rate_and_never_beats_the_device(work, kind, settings, set_size):
    periods = [period_s(work, kind=KINDS[kind], settings=settings, set_size=size) for size in (set_size, set_size + 1)]
    assert periods[0] >= periods[1] >= call_s(work, kind=KINDS[kind], settings=settings)


@given(_works, _kinds)
def test_equal_records_cost_what_one_with_their_count_costs(work, kind):
    settings = Settings(cores=4)
    single = [dataclasses.replace(item, count=1) for item in work.operations for _ in range(item.count)]
    spread = dataclasses.replace(work, operations=tuple(single))
    assert call_s(spread, kind=KINDS[kind], settings=settings) == pytest.approx(
        call_s(work, kind=KINDS[kind], settings=settings), rel=1e-9
    )


def test_prefill_of_a_large_model_gains_from_every_doubling_of_its_cores():
    prefill = geometries.decoder_work(_LLAMA, batch=1, tokens=2048, ctx_len=2048)
    times = {cores: call_s(prefill, kind=ULTRA, settings=Settings(cores=cores)) for cores in (4, 8, 16)}
    assert 1.5 < times[4] / times[8] < 2.0
    assert 1.3 < times[8] / times[16] < 2.0


def test_decode_of_a_large_model_gains_little_beyond_eight_cores():
    times = {cores: call_s(_DECODE, kind=ULTRA, settings=Settings(cores=cores)) for cores in (1, 8, 14)}
    assert times[1] / times[8] > 1.5
    assert 1.0 < times[8] / times[14] < 1.15


def test_decode_of_a_small_model_has_its_best_core_count_in_between():
    small = geometries.DECODERS["smollm2-135m"]
    work = geometries.decoder_work(small, batch=1, tokens=1, ctx_len=256)
    times = [call_s(work, kind=ULTRA, settings=Settings(cores=cores)) for cores in range(1, 17)]
    assert 0 < times.index(min(times)) < 15
    assert len({round(times[cores - 1], 9) for cores in (8, 14, 16)}) == 3


def test_mxint8_states_halve_the_reading_of_a_long_context():
    times = [
        call_s(
            geometries.decoder_work(_LLAMA, batch=1, tokens=1, ctx_len=131072, kv=kv),
            kind=ULTRA,
            settings=Settings(cores=16),
        )
        for kv in ("fp16", "mxint8")
    ]
    assert 1.5 < times[0] / times[1] < 16 / 8.25


def _bert_rate(*, cores, instances, batch):
    work = geometries.encoder_work(geometries.ENCODERS["bert-base"], batch=batch, tokens=128)
    settings = Settings(cores=cores, ols=2)
    period = period_s(work, kind=STANDARD, settings=settings, instances=instances, set_size=10)
    return instances * batch / period


def test_throughput_is_flat_from_two_to_four_cores_an_instance_and_about_half_with_one_large_instance():
    rates = {cores: _bert_rate(cores=cores, instances=14 // cores, batch=16) for cores in (2, 4, 12)}
    assert 0.8 < rates[4] / rates[2] < 1.05
    assert 0.4 < rates[12] / rates[2] < 0.65


def test_latency_falls_about_three_times_from_one_core_to_fourteen():
    work = convolutional.convolutional_work("resnet-50", batch=1)
    times = {cores: call_s(work, kind=STANDARD, settings=Settings(cores=cores)) + host_s(work) for cores in (1, 14)}
    assert 2.0 < times[1] / times[14] < 5.0


def test_a_batch_that_the_cores_do_not_divide_costs_the_next_one_that_they_do():
    def seconds(batch):
        return call_s(
            convolutional.convolutional_work("resnet-50", batch=batch), kind=STANDARD, settings=Settings(cores=8)
        )

    assert seconds(8) == pytest.approx(seconds(7), rel=0.1)
    assert seconds(16) / seconds(8) == pytest.approx(1.9, rel=0.1)


def test_programs_of_all_devices_share_the_work_and_pay_for_their_exchange():
    one, four = (call_s(_DECODE, kind=ULTRA, settings=Settings(cores=16, num_devices=devices)) for devices in (1, 4))
    reductions = _DECODE.reductions * cost_parameters.load().all_reduce_us * 1e-6
    assert one / 4 < four - reductions < one / 3


def test_every_number_says_its_unit_its_kind_and_where_it_is_from():
    table = json.loads(cost_parameters.FILE.read_text())
    entries = [
        *table["parameters"].values(),
        *table["passes"].values(),
        *table["compile_time"].values(),
        *table["limits"].values(),
        *(entry for device in table["devices"].values() for entry in device.values()),
    ]
    for entry in entries:
        assert entry.keys() == {"value", "unit", "kind", "source"}
        assert entry["kind"] in ("published", "derived", "fitted", "assumed")
        assert entry["source"]
    assert table["passes"].keys() <= set(operations.KINDS)
    assert {"ultra", "pro", "standard"} == KINDS.keys()


def test_merging_keeps_all_work():
    item = Operation(kind="matmul", flops=3, elements=1)
    other = Operation(kind="matmul", flops=5, elements=1, count=2)
    made = Work(operations=operations.merged([item, other, item, item]))
    assert [(one.flops, one.count) for one in made.operations] == [(3, 3), (5, 2)]
    assert made.flops == 3 * 3 + 2 * 5
    assert made.num_operators == 5
