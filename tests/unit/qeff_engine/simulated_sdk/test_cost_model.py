"""The cost model: published points, and properties that any such model must have."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeff_engine.simulated_sdk.cost_model import Work, predict_s
from qeff_engine.simulated_sdk.devices import KINDS


def _decode(parameters: float, *, layers: int, kv_width: int, ctx_len: int, mxfp6: bool = False) -> Work:
    """One decode step: all weights but the input embeddings, fp16 keys and values over the whole context."""
    return Work(
        flops=2 * parameters,
        weight_bytes=parameters * (6.25 / 8 if mxfp6 else 2),
        mx_weights=parameters if mxfp6 else 0,
        state_bytes=layers * 2 * kv_width * ctx_len * 2,
        matrix_ops=9 * layers + 1,
        reductions=2 * layers,
    )


# Published decode rates in tokens per second. Weights read per token: parameters without the input embedding table.
_GPT_J = {"parameters": 5.84e9, "layers": 28, "kv_width": 4096, "ctx_len": 2048}
_LLAMA = {"parameters": 6.61e9, "layers": 32, "kv_width": 4096, "ctx_len": 2048}
_OPT_13B = {"parameters": 12.6e9, "layers": 40, "kv_width": 5120, "ctx_len": 2048}
_PUBLISHED = [
    ("GPT-J 6B fp16, Standard", _decode(**_GPT_J), "standard", 1, 8.08),
    ("GPT-J 6B MXFP6, Standard", _decode(**_GPT_J, mxfp6=True), "standard", 1, 13.9),
    ("Amber 7B fp16, Standard", _decode(**_LLAMA | {"ctx_len": 128}), "standard", 1, 7.99),
    ("AmberChat 7B MXFP6, Standard", _decode(**_LLAMA, mxfp6=True), "standard", 1, 14.9),
    ("OPT 13B MXFP6, Standard", _decode(**_OPT_13B, mxfp6=True), "standard", 1, 6.98),
    ("Llama-2 7B fp16, Ultra card", _decode(**_LLAMA), "ultra", 4, 26.49),
    ("XGen 7B MXFP6, Ultra card", _decode(**_LLAMA, mxfp6=True), "ultra", 4, 43.46),
]


@pytest.mark.parametrize(
    ("work", "kind", "num_devices", "tok_s"), [row[1:] for row in _PUBLISHED], ids=[row[0] for row in _PUBLISHED]
)
def test_published_decode_rates_are_met_within_a_quarter(work, kind, num_devices, tok_s):
    traits = KINDS[kind]
    predicted = 1 / predict_s(work, kind=traits, cores=traits.cores, num_devices=num_devices)
    assert predicted == pytest.approx(tok_s, rel=0.25)


_works = st.builds(
    Work,
    flops=st.floats(0, 1e14),
    weight_bytes=st.floats(0, 3e10),
    mx_weights=st.floats(0, 3e10),
    state_bytes=st.floats(0, 1e10),
    matrix_ops=st.integers(0, 5000),
    reductions=st.integers(0, 200),
)
_kinds = st.sampled_from(sorted(KINDS))
_cores = st.integers(1, 14)


@given(_works, _kinds, _cores)
def test_a_call_takes_time_and_always_the_same(work, kind, cores):
    first = predict_s(work, kind=KINDS[kind], cores=cores)
    assert first > 0
    assert predict_s(work, kind=KINDS[kind], cores=cores) == first


@given(_works, _kinds, _cores, st.sampled_from([field.name for field in dataclasses.fields(Work)]))
def test_more_work_never_takes_less_time(work, kind, cores, field):
    more = dataclasses.replace(work, **{field: getattr(work, field) * 2 + 1})
    assert predict_s(more, kind=KINDS[kind], cores=cores) >= predict_s(work, kind=KINDS[kind], cores=cores)


@given(_works, _kinds, st.integers(1, 13))
def test_cores_without_barriers_never_hurt(work, kind, cores):
    smooth = dataclasses.replace(work, matrix_ops=0)
    slow, fast = (predict_s(smooth, kind=KINDS[kind], cores=count) for count in (cores, cores + 1))
    assert fast <= slow


def test_prefill_of_a_large_model_scales_nearly_with_its_cores():
    prefill = dataclasses.replace(_decode(6.6e9, layers=32, kv_width=4096, ctx_len=2048), flops=2 * 6.6e9 * 2048)
    times = {cores: predict_s(prefill, kind=KINDS["ultra"], cores=cores) for cores in (4, 8, 16)}
    assert 1.7 < times[4] / times[8] <= 2.0
    assert 1.7 < times[8] / times[16] <= 2.0


def test_decode_of_a_large_model_gains_little_beyond_eight_cores():
    decode = _decode(6.6e9, layers=32, kv_width=4096, ctx_len=2048)
    times = {cores: predict_s(decode, kind=KINDS["ultra"], cores=cores) for cores in (8, 14, 16)}
    assert times[8] > times[14] > times[16]
    assert times[8] / times[16] < 1.15


def test_decode_of_a_small_model_has_its_best_core_count_in_between():
    decode = _decode(1.35e8, layers=30, kv_width=192, ctx_len=256)
    times = [predict_s(decode, kind=KINDS["ultra"], cores=cores) for cores in range(1, 17)]
    assert 0 < times.index(min(times)) < 15
    assert len({round(times[cores - 1], 9) for cores in (8, 14, 16)}) == 3


def test_mxint8_states_halve_the_reading_of_a_long_context():
    fp16 = _decode(1e9, layers=32, kv_width=4096, ctx_len=32768)
    mxint8 = dataclasses.replace(fp16, state_bytes=fp16.state_bytes * 8.25 / 16)
    ratio = predict_s(fp16, kind=KINDS["ultra"], cores=16) / predict_s(mxint8, kind=KINDS["ultra"], cores=16)
    assert 1.6 < ratio < 16 / 8.25
