"""Sweeps become plans in which every piece of work stands once."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm import plan
from farm.axes import flag_values
from farm.errors import Usage
from farm.needs import ANYWHERE, Needs
from farm.sweep import Sweep, SweepModel
from farm.sweep import axes as axes_of_a_sweep
from farm.views import reports
from qeff_engine import spec
from qeff_engine.compiler_flags.table import OFFERED
from qeff_engine.errors import InvalidInput


def model(name: str = "a") -> SweepModel:
    source = spec.ResolveSpec(source=f"/models/{name}", kind="directory", fingerprint=f"print of {name}")
    return SweepModel(name=name, source=source)


def sweep(**axes: Any) -> Sweep:
    return Sweep(**{"models": (model(),), **axes})


def stages(made: plan.Plan) -> dict[str, int]:
    return dict(collections.Counter(str(job.stage) for job in made.jobs))


def test_three_core_counts_share_one_resolve_and_one_export() -> None:
    made = plan.expand(sweep(cores=(8, 14, 16)))
    assert stages(made) == {"resolve": 1, "export": 1, "compile": 3, "run": 3}
    assert [point.axes["cores"] for point in made.points] == [8, 14, 16]
    assert [len(point.plan_keys) for point in made.points] == [4, 4, 4]


def test_a_quantized_point_keeps_the_original_for_comparison() -> None:
    made = plan.expand(sweep(quantize=(None, spec.QuantizeSpec.parse("gptq:4:64"))))
    assert stages(made) == {"resolve": 1, "quantize": 1, "export": 2, "compile": 2, "run": 2}
    jobs = {job.plan_key: job for job in made.jobs}
    plain, quantized = (jobs[point.plan_keys[-1]] for point in made.points)
    (resolve,) = (job for job in made.jobs if job.stage == "resolve")
    (quantize,) = (job for job in made.jobs if job.stage == "quantize")
    assert plain.inputs["snapshot"] == plain.inputs["original"] == resolve.plan_key
    assert (quantized.inputs["snapshot"], quantized.inputs["original"]) == (quantize.plan_key, resolve.plan_key)
    assert quantized.inputs["program"] == made.points[1].plan_keys[-2]


def test_only_runs_hold_cores() -> None:
    made = plan.expand(sweep(cores=(8, 14)))
    held = {(str(job.stage), job.num_cores, job.num_devices) for job in made.jobs}
    assert held == {("resolve", 0, 0), ("export", 0, 0), ("compile", 0, 0), ("run", 8, 1), ("run", 14, 1)}


def test_queues_are_axes_of_runs_and_activations_hold_their_cores() -> None:
    plain = plan.expand(sweep(cores=(4,)))
    made = plan.expand(sweep(cores=(4,), set_size=(1, 10), activations=(1, 2)))
    assert stages(made) == {"resolve": 1, "export": 1, "compile": 1, "run": 4}
    runs = [job for job in made.jobs if job.stage == "run"]
    assert [(job.spec["set_size"], job.spec["activations"], job.num_cores) for job in runs] == [
        *((1, 1, 4), (1, 2, 8), (10, 1, 4), (10, 2, 8)),
    ]
    assert runs[-1].label == "run a 4 cores fp16 set 10 x2"
    assert made.points[1].axes["activations"] == 2
    # What does not ask for queues is the request that it was before there were any.
    assert "set_size" not in plain.points[0].axes
    assert "set_size" not in plain.jobs[-1].spec


def test_activations_that_no_device_can_hold_are_refused_or_left_out() -> None:
    with pytest.raises(Usage, match="2 activations of 14 cores are more than the 16 cores of a device"):
        plan.expand(sweep(cores=(8, 14), activations=(2,)))
    made = plan.expand(sweep(cores=(8, 14), activations=(2,), skip_illegal=True))
    assert [point.axes["cores"] for point in made.points] == [8]


axes = st.fixed_dictionaries(
    {
        "models": st.lists(st.sampled_from("abc"), min_size=1, unique=True).map(lambda names: tuple(map(model, names))),
        "cores": st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True).map(tuple),
        "batch": st.lists(st.integers(1, 8), min_size=1, max_size=2, unique=True).map(tuple),
        "ctx_len": st.lists(st.integers(64, 4096), min_size=1, max_size=2, unique=True).map(tuple),
        "prefill_len": st.lists(st.integers(1, 64), min_size=1, max_size=2, unique=True).map(tuple),
        "precision": st.lists(st.sampled_from(spec.PRECISIONS), min_size=1, unique=True).map(tuple),
        "kv": st.lists(st.sampled_from(spec.KV_PRECISIONS), min_size=1, unique=True).map(tuple),
        "quantize": st.lists(st.sampled_from(["none", "gptq", "awq"]), min_size=1, unique=True).map(
            lambda words: tuple(map(spec.QuantizeSpec.parse, words))
        ),
    }
)


@given(axes)
def test_a_plan_has_every_point_and_no_work_twice(values: dict[str, Any]) -> None:
    made = plan.expand(Sweep(**values))
    size = {name: len(items) for name, items in values.items()}
    quantized = sum(item is not None for item in values["quantize"])
    exports = size["models"] * size["quantize"]
    shapes = size["cores"] * size["batch"] * size["ctx_len"] * size["prefill_len"] * size["precision"] * size["kv"]
    expected = {"resolve": size["models"], "quantize": size["models"] * quantized, "export": exports}
    expected |= {"compile": exports * shapes, "run": exports * shapes}
    assert stages(made) == {stage: count for stage, count in expected.items() if count}
    assert len(made.points) == exports * shapes
    assert len({job.plan_key for job in made.jobs}) == len(made.jobs)
    assert len({str(sorted(point.axes.items())) for point in made.points}) == len(made.points)


@given(axes)
def test_parents_come_first_and_chains_are_the_longest_way_down(values: dict[str, Any]) -> None:
    made = plan.expand(Sweep(**values))
    seen: set[str] = set()
    longest: dict[str, int] = collections.defaultdict(int)
    for job in made.jobs:
        assert set(job.inputs.values()) <= seen
        seen.add(job.plan_key)
    for job in reversed(made.jobs):
        for parent in job.inputs.values():
            longest[parent] = max(longest[parent], longest[job.plan_key] + 1)
    assert {job.plan_key: job.chain for job in made.jobs} == {key: longest[key] for key in seen}


def test_an_encoder_takes_its_text_at_the_context_length() -> None:
    made = plan.expand(sweep(ctx_len=(64,), task="feature-extraction"))
    (compile_job,) = (job for job in made.jobs if job.stage == "compile")
    assert compile_job.spec["seq_len"] == 64
    assert [job.spec["task"] for job in made.jobs if job.stage == "export"] == ["feature-extraction"]


def test_the_default_prefill_fits_a_short_context() -> None:
    made = plan.expand(sweep(ctx_len=(8, 256)))
    assert [point.axes["prefill_len"] for point in made.points] == [8, 32]


def test_labels_name_what_is_unusual() -> None:
    made = plan.expand(sweep(cores=(14,), precision=("mxfp6",), kv=("mxint8",), batch=(4,), ctx_len=(256,)))
    assert made.jobs[-1].label == "run a 14 cores mxfp6 kv mxint8 batch 4 ctx 256"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cores": (0,)}, r"--cores is 0, expected a whole number of at least 1"),
        ({"cores": (8, 8)}, r"--cores has 8 twice"),
        ({"batch": (-1,)}, r"--batch is -1"),
        ({"cores": ()}, r"--cores is empty"),
        ({"models": ()}, r"--model is empty"),
        ({"models": (model(), model())}, r"--model has /models/a twice"),
        ({"quantize": (None, None)}, r"--quantize has none twice"),
        ({"precision": ("mxfp4",)}, r"--precision is 'mxfp4', expected fp16 or mxfp6. Did you mean 'mxfp6'\?"),
        ({"precision": ("int3",)}, r"--precision is 'int3', expected fp16 or mxfp6\.$"),
        ({"kv": ("int8",)}, r"--kv is 'int8', expected fp16 or mxint8. Did you mean 'mxint8'\?"),
        ({"ctx_len": (128, 32), "generation_len": 32}, r"context length 32 is too small for 32 .* at least 33"),
        ({"ctx_len": (32,), "prefill_len": (64,)}, r"prefill length 64 is longer than the context length 32"),
        ({"cores": tuple(range(1, 401)), "batch": tuple(range(1, 401))}, r"160000 points, expected at most 100000"),
    ],
)
def test_bad_sweeps_are_refused_with_value_and_expectation(values: dict[str, Any], message: str) -> None:
    with pytest.raises(Usage, match=message):
        sweep(**values)


@pytest.mark.parametrize("prompts", [(), ("",), ("fine", "")])
def test_empty_prompts_are_refused(prompts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="prompts"):
        sweep(prompts=prompts)


def test_generation_that_just_fits_is_accepted() -> None:
    assert sweep(ctx_len=(33,), generation_len=32).generation_len == 32


def test_jobs_need_of_their_places_what_their_stage_sees() -> None:
    asked = Needs(sku="ultra", labels=("lab-a",), host="h1", sdk="1.20", exclusive=True)
    planned = plan.expand(sweep(cores=(8,), num_devices=2, needs=asked)).jobs
    by_stage = {str(job.stage): job for job in planned}
    assert by_stage["export"].needs == {"host": "h1"}
    assert by_stage["compile"].needs == {"host": "h1", "sdk": "1.20"}
    assert by_stage["run"].needs == {"sku": "ultra", "labels": ["lab-a"], "host": "h1", "sdk": "1.20"}
    assert [job.exclusive for job in planned] == [job.stage == "run" for job in planned]
    assert (by_stage["run"].num_devices, by_stage["compile"].spec["num_devices"]) == (2, 2)
    assert by_stage["run"].label.endswith("8 cores of 2 devices fp16")


def test_a_run_at_a_certain_place_is_other_work_and_its_compile_is_not() -> None:
    plain, placed = (plan.expand(sweep(needs=needs)) for needs in (ANYWHERE, Needs(sku="ultra")))
    same = {job.plan_key for job in plain.jobs} & {job.plan_key for job in placed.jobs}
    assert {job.stage for job in plain.jobs if job.plan_key not in same} == {"run"}
    (alone,) = {job.fields["place"]["exclusive"] for job in plan.expand(sweep(needs=Needs(exclusive=True))).jobs[-1:]}
    assert alone


def test_a_request_keeps_everything_that_was_asked() -> None:
    asked = sweep(cores=(8, 14), quantize=(None, spec.QuantizeSpec.parse("awq")), generation_len=5)
    kept = asked.to_json()
    assert kept["flags"] == {}
    assert set(kept) == {field.name for field in dataclasses.fields(Sweep)}
    assert (kept["cores"], kept["quantize"]) == ([8, 14], ["none", "awq:4:64"])


def flags(**lists: Any) -> dict[str, tuple[Any, ...]]:
    return {name.replace("_", "-"): flag_values(name.replace("_", "-"), words) for name, words in lists.items()}


def test_flags_of_the_compiler_are_axes() -> None:
    made = plan.expand(sweep(cores=(8,), flags=flags(mos=[1, 2], ols=["default", "4"], combine_inputs=["false"])))
    axes = [(point.axes["mos"], point.axes["ols"], point.axes["combine-inputs"]) for point in made.points]
    assert axes == [(1, "default", False), (1, 4, False), (2, "default", False), (2, 4, False)]
    compiles = [job for job in made.jobs if job.stage == "compile"]
    assert [job.spec["compiler_options"] for job in compiles] == [
        {"combine-inputs": False, "mos": 1},
        {"combine-inputs": False, "mos": 1, "ols": 4},
        {"combine-inputs": False, "mos": 2},
        {"combine-inputs": False, "mos": 2, "ols": 4},
    ]
    assert compiles[1].label == "compile a 8 cores fp16 combine-inputs off mos 1 ols 4"
    assert stages(made) == {"resolve": 1, "export": 1, "compile": 4, "run": 4}


def test_a_flag_at_its_default_is_the_same_work_as_no_flag() -> None:
    plain, flagged = plan.expand(sweep()), plan.expand(sweep(flags=flags(mos=["default", 2])))
    assert {job.plan_key for job in plain.jobs} < {job.plan_key for job in flagged.jobs}


def test_combinations_without_support_are_refused_or_left_out_by_rule() -> None:
    asked: dict[str, Any] = {"cores": (1, 4), "flags": flags(mos=[1, 2, 4])}
    with pytest.raises(Usage, match=r"2 of 6 points cannot be compiled, such as cores 1 mos 2: mos is 2 with 1 cores"):
        plan.expand(sweep(**asked))
    made = plan.expand(sweep(**asked, skip_illegal=True))
    assert [(point.axes["cores"], point.axes["mos"]) for point in made.points] == [(1, 1), (4, 1), (4, 2), (4, 4)]
    assert [(item.axes["cores"], item.axes["mos"]) for item in made.left_out] == [(1, 2), (1, 4)]
    assert all("expected at most the number of cores" in item.why for item in made.left_out)
    with pytest.raises(Usage, match=r"1 of 1 points cannot be compiled, such as the only one: .* Correct the lists\.$"):
        plan.expand(sweep(cores=(1,), flags=flags(mos=[2]), skip_illegal=True))


def test_unlisted_flags_are_of_all_points_and_seen_in_their_labels() -> None:
    (job,) = (job for job in plan.expand(sweep(unlisted_flags=("-new=1",))).jobs if job.stage == "compile")
    assert job.spec["unlisted_flags"] == ["-new=1"]
    assert job.label.endswith(" -new=1")


def test_no_flag_is_named_as_an_axis_or_a_column_of_a_report() -> None:
    columns = {field.name for field in dataclasses.fields(reports.Row)} | {"parity", "model", *axes_of_a_sweep()}
    assert not columns & set(OFFERED)


def test_how_devices_share_a_program_reaches_compile_and_label_and_nothing_else() -> None:
    plain = plan.expand(sweep(num_devices=4))
    parted = plan.expand(sweep(num_devices=4, num_partitions=2, device_link="host"))
    (compile_job,) = (job for job in parted.jobs if job.stage == "compile")
    assert (compile_job.spec["num_partitions"], compile_job.spec["device_link"]) == (2, "host")
    assert compile_job.label == "compile a 16 cores of 4 devices in 2 parts through the host fp16"
    other = {job.plan_key for job in parted.jobs} - {job.plan_key for job in plain.jobs}
    assert {job.stage for job in parted.jobs if job.plan_key in other} == {"compile", "run"}
    with pytest.raises(Usage, match="4 devices do not divide into 3 equal parts"):
        plan.expand(sweep(num_devices=4, num_partitions=3))
