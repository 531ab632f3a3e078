"""The published points, the fit to them, and the page that reports both."""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks import compile_times, cost_fit, cost_model, cost_page, cost_plots, published
from qeff_engine.simulated_sdk import compile_time, cost_parameters
from qeff_engine.simulated_sdk.devices import KINDS

POINTS = published.points()
FITTED = [point for point in POINTS if point.fits]


def test_points_are_whole():
    assert len({point.id for point in POINTS}) == len(POINTS)
    for point in POINTS:
        assert point.published > 0
        assert point.source
        assert point.sku in KINDS
        assert point.group in (*cost_page.GROUPS, *cost_page.APART)
        assert point.unit in (published.PER_SECOND, published.LATENCY_MS)
        assert point.fits != bool(point.reason), f"{point.id} must be fitted, or say why not"
        assert point.model is not None or not point.fits
        if point.model is not None:
            assert 1 <= point.cores * point.instances <= KINDS[point.sku].cores, point.id
            assert point.work.operations


def test_medians_reach_the_goal_and_one_point_alone_is_beyond_the_worst_allowed():
    for group in cost_page.GROUPS:
        errors = sorted(
            abs(cost_fit.error(point, cost_fit.predicted(point))) for point in FITTED if point.group == group
        )
        assert errors[len(errors) // 2] < cost_page.GOAL_MEDIAN
    beyond = [
        point.id for point in FITTED if abs(cost_fit.error(point, cost_fit.predicted(point))) > cost_page.GOAL_WORST
    ]
    assert beyond == ["opt6.7b-ultra-fp16"]


def test_points_that_were_kept_from_the_fit_reach_the_goal():
    held_out = [point for point in POINTS if point.group == cost_page.HELD_OUT]
    assert len(held_out) > 50
    assert not any(point.fits for point in held_out)
    errors = sorted(abs(cost_fit.error(point, cost_fit.predicted(point))) for point in held_out)
    assert errors[len(errors) // 2] < cost_page.GOAL_MEDIAN
    assert errors[-1] < cost_page.GOAL_WORST


def test_the_page_and_the_plots_are_those_of_the_files():
    left_out = json.loads(cost_model.LEFT_OUT_FILE.read_text())
    text = cost_model.PAGE.read_text()
    assert cost_page.page(text, points=POINTS, left_out=left_out) == text
    assert (cost_model.DOCS / "cost-model-points.svg").read_text() == cost_plots.scatter(POINTS)
    assert (cost_model.DOCS / "cost-model-sweeps.svg").read_text() == cost_plots.sweeps(cost_page.curves())


def test_the_fitted_values_of_the_file_are_where_the_fit_ends():
    found = cost_fit.fit(FITTED, start=cost_parameters.load(), steps=2)
    for name in cost_fit.FREE:
        assert getattr(found, name) == pytest.approx(getattr(cost_parameters.load(), name), rel=0.05), name


def test_the_file_names_the_prior_of_each_fitted_value_and_is_written_as_it_is_read():
    table = cost_parameters.table()
    assert {name for name, entry in table["parameters"].items() if entry["kind"] == "fitted"} == cost_fit.FREE.keys()
    for name, (prior, _) in cost_fit.FREE.items():
        assert table["parameters"][name]["source"].startswith(f"prior {prior:g}")
    assert cost_model.text_of(dict(table)) == cost_parameters.FILE.read_text()


def test_a_fit_finds_the_parameters_behind_made_up_rates():
    truth = dataclasses.replace(cost_parameters.load(), conv_share=0.5, mx_weights_per_ns=6.0)
    made_up = [
        dataclasses.replace(point, published=cost_fit.predicted(point, parameters=truth))
        for point in FITTED
        if point.group in ("cnn", "decode")
    ]
    found = cost_fit.fit(made_up, start=cost_parameters.load(), steps=8)
    assert found.conv_share == pytest.approx(0.5, rel=0.08)
    assert found.mx_weights_per_ns == pytest.approx(6.0, rel=0.05)


def test_compile_times_of_the_file_are_where_their_fit_ends():
    chosen = [point for point in compile_times.points() if point.fits]
    for name, value in compile_times.fit(chosen).items():
        assert compile_time.load()[name] == pytest.approx(value, rel=1e-3), name
    for point in chosen:
        assert compile_times.predicted_s(point) == pytest.approx(point.published_s, rel=0.2), point.id


def test_a_fit_of_compile_times_finds_the_law_behind_made_up_ones():
    truth = {
        **compile_time.load(),
        "per_operator_s": 0.1,
        "per_core": 0.2,
        "per_core_and_ols": 0.03,
        "per_sample": 0.04,
    }
    made_up = [
        dataclasses.replace(point, published_s=compile_times.predicted_s(point, parameters=truth))
        for point in compile_times.points()
        if point.fits
    ]
    for name, value in compile_times.fit(made_up).items():
        assert value == pytest.approx(truth[name], rel=1e-6), name
