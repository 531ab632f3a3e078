"""Predicted durations and memory: which samples count, and how a prediction that was exceeded grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.placement.estimates import NUM_KEPT, ends_at, estimate, keys_of, remember
from qeff_engine import spec

COMPILE = spec.CompileSpec(num_cores=8, precision="mxfp6").to_json()


def compile_keys(model: str = "tiny", sdk: str = "1.19", **changes: object) -> tuple[str, ...]:
    return keys_of("compile", spec={**COMPILE, **changes}, model=model, sdk=sdk)


def run_keys(num_cores: int = 8) -> tuple[str, ...]:
    return keys_of("run", spec=spec.RunSpec().to_json(), model="tiny", sdk="1.19", num_cores=num_cores, program=COMPILE)


def test_keys_go_from_the_very_spec_to_the_stage_alone() -> None:
    finest, *coarser = compile_keys()
    assert finest.startswith("compile/model=tiny/cores=8x1/mxfp6/sdk=1.19/spec=")
    assert coarser == [
        "compile/model=tiny/cores=8x1/mxfp6/sdk=1.19",
        "compile/model=tiny/cores=8x1/mxfp6",
        "compile/model=tiny/cores=8x1",
        "compile/model=tiny",
        "compile/cores=8x1",
        "compile",
    ]


def test_what_differs_in_little_shares_the_coarser_keys() -> None:
    assert compile_keys()[0] != compile_keys(ctx_len=256)[0]
    assert compile_keys()[1:] == compile_keys(ctx_len=256)[1:]
    assert set(compile_keys()) & set(compile_keys(sdk="1.20")) == set(compile_keys()[2:])
    assert set(compile_keys()) & set(compile_keys(model="other")) == {"compile/cores=8x1", "compile"}


def test_a_run_is_known_by_its_cores_and_by_the_program_that_it_runs() -> None:
    assert run_keys()[3] == "run/model=tiny/cores=8x1"
    assert set(run_keys(8)) & set(run_keys(14)) == {"run/model=tiny", "run"}


def test_a_stage_that_needs_no_sdk_is_known_whatever_the_sdk() -> None:
    fields = spec.ExportSpec().to_json()
    assert keys_of("export", spec=fields, model="m", sdk="1") == keys_of("export", spec=fields, model="m", sdk="2")


def test_the_finest_key_with_samples_decides() -> None:
    keys = compile_keys()
    samples = {keys[1]: [[10.0, 100]], keys[4]: [[99.0, 900]], keys[-1]: [[1.0, 1]]}
    found = estimate(samples, keys)
    assert (found.expected_s, found.from_key, found.num_samples) == (10.0, keys[1], 1)
    assert estimate(samples, compile_keys(model="other")).from_key == "compile"


def test_the_order_uses_the_median_of_the_last_five_and_reservations_nearly_the_worst() -> None:
    samples = [[100.0, 0]] * 3 + [[10.0, 0], [11.0, 0], [12.0, 0], [13.0, 0], [500.0, 0]]
    found = estimate({"run": samples}, ["run"])
    assert found.expected_s == 12.0
    assert found.reserved_s == pytest.approx(500 * (1 + 1 / 16))
    many = [[float(number), 0] for number in range(1, 21)]
    assert estimate({"run": many}, ["run"]).reserved_s == pytest.approx(18 * (1 + 1 / 40))


def test_memory_is_the_worst_peak_of_the_same_model_with_a_margin() -> None:
    keys = compile_keys()
    peaks = [[1.0, 1000], [1.0, 4000], [1.0, 0]]
    assert estimate({keys[3]: peaks}, keys).ram_bytes == 4600
    assert estimate({"compile": peaks}, keys).ram_bytes == 0


def test_memory_comes_from_a_coarser_key_when_the_finer_one_was_not_measured() -> None:
    keys = compile_keys()
    found = estimate({keys[0]: [[7.0, 0]], keys[4]: [[1.0, 1000]]}, keys)
    assert (found.expected_s, found.ram_bytes) == (7.0, 1150)


@pytest.mark.parametrize("stage", [*spec.Stage, "something new"])
def test_without_any_sample_the_stage_has_a_default(stage: str) -> None:
    found = estimate({}, keys_of(stage, spec={}, model="m", sdk="1"))
    assert (found.from_key, found.num_samples, found.ram_bytes) == (None, 0, 0)
    assert 0 < found.expected_s < found.reserved_s


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_a_reservation_is_never_shorter_than_what_is_expected(seconds: list[float]) -> None:
    samples: list[list[float]] = []
    for one in seconds:
        samples = remember(samples, seconds=one, peak_rss_bytes=7)
    found = estimate({"run": samples}, ["run"])
    assert found.expected_s <= found.reserved_s
    assert found.num_samples == min(len(seconds), NUM_KEPT)
    assert samples[-1] == [round(seconds[-1], 3), 7]


def test_a_prediction_that_was_exceeded_is_doubled_until_it_lies_ahead() -> None:
    assert ends_at(started_at=100, reserved_s=10, now=105) == 110
    assert ends_at(started_at=100, reserved_s=10, now=110) == 120
    assert ends_at(started_at=100, reserved_s=10, now=145) == 180


@given(st.floats(0, 1e5), st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_predicted_end_always_lies_ahead(reserved_s: float, started_at: float, now: float) -> None:
    assert ends_at(started_at=started_at, reserved_s=reserved_s, now=now) > now
