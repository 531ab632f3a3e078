"""A report has a row per point, marks the best, and names every failure once."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from farm.states import JobState
from farm.views import queries, reports, sweeps

AXES = {"model": "m", "quantize": "none", "precision": "fp16", "kv": "fp16", "batch": 1, "ctx_len": 128}
RUN = {
    "ttft_s": 0.02,
    "decode_tok_s": 100.0,
    "total_tok_s": 90.0,
    "num_generated_tokens": 32,
    "tokens_equal": True,
    "num_tokens_equal": 32,
    "qid": 0,
    "sku": "ultra",
    "simulated": True,
}
COMPILE = {"compile_s": 12.0, "program_bytes": 1000, "simulated": True}
NUMBERS = {"compile": 0, "run": 1}


def outcome(job_id: int, stage: str, state: JobState, figures: dict[str, Any], **fields: Any) -> sweeps.Outcome:
    values: dict[str, Any] = dict.fromkeys(queries.Job.__dataclass_fields__)
    values |= {"id": job_id, "stage": stage, "label": f"{stage} {job_id}", "state": state, "reason": "", **fields}
    device = sweeps.Device(host="h1", qid=0, sku="ultra", simulated=True) if stage == "run" and figures else None
    return sweeps.Outcome(job=queries.Job(**values), producer_id=job_id, figures=figures, device=device)


def point(number: int, *, model: str = "m", cores: int = 8, state: JobState = JobState.SUCCEEDED, **run: Any) -> Any:
    outcomes = (
        outcome(10 * number, "compile", JobState.SUCCEEDED, COMPILE),
        outcome(10 * number + 1, "run", state, {**RUN, **run}),
    )
    axes = {**AXES, "model": model, "prefill_len": 32, "cores": cores}
    return sweeps.Point(number=number, axes=axes, outcomes=outcomes)


def test_a_row_has_the_figures_of_compile_and_run() -> None:
    (row,) = reports.build([point(0, cores=14)]).rows
    assert (row.axes["cores"], row.state, row.device, row.host) == (14, "succeeded", "ultra/0", "h1")
    assert (row.ttft_s, row.decode_tok_s, row.total_tok_s) == (0.02, 100.0, 90.0)
    assert (row.compile_s, row.program_bytes, row.simulated, row.reused) == (12.0, 1000, True, False)


@pytest.mark.parametrize(
    ("figures", "parity"),
    [
        ({}, "yes"),
        ({"tokens_equal": False, "num_tokens_equal": 23}, "23 of 32"),
        ({"tokens_equal": None, "num_tokens_equal": None}, "not checked"),
    ],
)
def test_tokens_are_equal_or_counted_or_not_checked(figures: dict[str, Any], parity: str) -> None:
    (row,) = reports.build([point(0, **figures)]).rows
    assert row.parity == parity


def test_an_encoder_says_how_far_its_embeddings_are_off() -> None:
    made = point(0)
    figures = {"latency_s": 0.001, "embeddings_s": 900.0, "embeddings_equal": False, "max_abs_diff": 0.0312}
    run = outcome(1, "run", JobState.SUCCEEDED, figures)
    (row,) = reports.build([sweeps.Point(number=0, axes=made.axes, outcomes=(made.outcomes[0], run))]).rows
    assert (row.latency_s, row.embeddings_s, row.parity) == (0.001, 900.0, "off by 0.031")


def test_queued_calls_and_energy_are_figures_like_others() -> None:
    figures = {"inferences_s": 900.0, "queued_latency_s": 0.01, "power_w": 40.0, "joules_per_text": 0.05}
    rows = reports.build([point(0, **figures), point(1, inferences_s=800.0)]).rows
    assert {name: getattr(rows[0], name) for name in figures} == figures
    assert rows[1].power_w is None
    assert ["inferences_s" in row.best for row in rows] == [True, False]


def test_the_best_points_are_marked_per_model() -> None:
    made = reports.build(
        [
            point(0, decode_tok_s=100.0, ttft_s=0.01),
            point(1, decode_tok_s=120.0, ttft_s=0.02),
            point(2, decode_tok_s=90.0, ttft_s=0.03),
            point(3, model="other", decode_tok_s=5.0),
        ]
    )
    assert [row.best for row in made.rows] == [("ttft_s",), ("decode_tok_s",), (), ()]


def test_reused_measurements_are_told_from_fresh_ones() -> None:
    made = reports.build([point(0), point(1, state=JobState.CACHED)])
    assert [row.reused for row in made.rows] == [False, True]


def test_a_failed_job_is_named_once_with_all_the_points_it_stops() -> None:
    broken = outcome(
        5,
        "export",
        JobState.FAILED,
        {},
        failure_class="unsupported",
        failure_message="No such operator.\nDetails follow.",
    )
    blocked = [outcome(number, "run", JobState.BLOCKED, {}) for number in (6, 7)]
    axes = {**AXES, "prefill_len": 32, "cores": 8}
    made = reports.build(
        [sweeps.Point(number=number, axes=axes, outcomes=(broken, run)) for number, run in enumerate(blocked)]
    )
    (failure,) = made.failures
    assert (failure.job, failure.failure_class, failure.points) == (5, "unsupported", (0, 1))
    assert failure.message == "No such operator."
    assert [row.state for row in made.rows] == ["failed", "failed"]
    assert [row.reused for row in made.rows] == [None, None]


def test_a_point_that_still_works_has_the_state_of_its_first_open_job() -> None:
    outcomes = (
        outcome(1, "compile", JobState.RUNNING, {}),
        outcome(2, "run", JobState.WAITING, {}),
    )
    axes = {**AXES, "prefill_len": 32, "cores": 8}
    (row,) = reports.build([sweeps.Point(number=0, axes=axes, outcomes=outcomes)]).rows
    assert (row.state, row.ttft_s, row.compile_s, row.run_job) == ("running", None, None, 2)


def test_json_and_csv_say_the_same() -> None:
    made = reports.build([point(0, decode_tok_s=100.0), point(1, decode_tok_s=120.0)])
    from_json = json.loads(json.dumps(made.to_json()))["rows"]
    from_csv = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert [row["decode_tok_s"] for row in from_json] == [100.0, 120.0]
    assert [list(row) for row in from_csv] == [list(row) for row in from_json]
    for left, right in zip(from_csv, from_json, strict=True):
        for key, value in right.items():
            expected = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
            assert left[key] == expected
