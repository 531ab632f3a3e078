"""What may be asked of the compiler: one form for each value, near misses, and combinations that it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qeff_engine import spec
from qeff_engine.compiler_flags import asking, page, values
from qeff_engine.compiler_flags.table import ALIASES, FLAGS, OFFERED
from qeff_engine.errors import InvalidInput


def digest_of(**fields: Any) -> str:
    return spec.digest(spec.CompileSpec(**fields).to_json())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"mos": 2, "ols": 4}, {"ols": 4, "mos": 2}),
        ({"mos": "02"}, {"mos": 2}),
        ({"mos": [2]}, {"mos": "2"}),
        ({"sdp-cluster-sizes": "7:7"}, {"sdp_cluster_sizes": [7, 7]}),
        ({"vtcm-working-set-limit-ratio": 1}, {"vtcm_working_set_limit_ratio": "1.00"}),
        ({"aic_enable_depth_first": True}, {"aic-enable-depth-first": "yes"}),
        ({"aic-enable-depth-first": False}, {}),
        ({"mxint8-mdp-io": True}, {"allow_mxint8_mdp_io": "true"}),
        ({"execute-nodes-in-fp16": "Div,Add"}, {"execute-nodes-in-fp16": ["Add", "Div", "Add"]}),
        ({"quantization-calibration": "klminimization"}, {"quantization-calibration": "KLMinimization"}),
    ],
)
def test_neither_order_nor_spelling_makes_another_request(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest_of(compiler_options=one, num_cores=16) == digest_of(compiler_options=other, num_cores=16)


def test_other_values_are_other_requests() -> None:
    asked: list[dict[str, Any]] = [{}, {"mos": 1}, {"mos": 2}, {"ols": 2}, {"combine-inputs": False}]
    assert len({digest_of(compiler_options=options) for options in asked}) == len(asked)
    assert digest_of(unlisted_flags=("-x",)) != digest_of(unlisted_flags=("-y",)) != digest_of()


def test_a_request_without_options_has_the_digest_that_it_had_before_there_were_any() -> None:
    fields = spec.CompileSpec(num_cores=14).to_json()
    assert not fields.keys() & {"compiler_options", "unlisted_flags"}
    assert spec.CompileSpec.from_json(fields) == spec.CompileSpec(num_cores=14)


def test_a_spec_survives_its_json() -> None:
    made = spec.CompileSpec(compiler_options={"mos": "1:2", "v": True}, unlisted_flags=("-new=3",))
    assert spec.CompileSpec.from_json(made.to_json()) == made
    assert dataclasses.replace(made, num_cores=8).compiler_options == {"mos": "1,2", "v": True}


_LEGAL = {
    values.Bare: st.just(True),
    values.Switch: st.booleans(),
    values.Numbers: st.lists(st.integers(1, 16), min_size=1, max_size=3),
    values.Names: st.lists(st.sampled_from("abc"), min_size=1, max_size=3),
    values.Text: st.from_regex(r"\A[a-z0-9]{1,8}\Z"),
    values.InputFile: st.just("a: 1\n"),
    values.OutputFile: st.just("out.json"),
}


def legal(kind: values.Kind) -> st.SearchStrategy[Any]:
    if isinstance(kind, values.Integer):
        return st.integers(kind.least, kind.most if kind.most is not None else kind.least + 10)
    if isinstance(kind, values.Decimal):
        return st.floats(kind.least, kind.most)
    if isinstance(kind, values.Choice):
        return st.sampled_from(kind.words)
    return _LEGAL[type(kind)]


@given(st.data())
def test_the_form_of_a_value_is_its_own_form(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(OFFERED))
    form = asking.value_of(name, data.draw(legal(FLAGS[name].kind)))
    assert asking.value_of(name, form) == form
    assert type(asking.value_of(name, form)) is type(form)
    if not isinstance(FLAGS[name].kind, values.InputFile):
        assert asking.value_of(name, str(form)) == form  # as a command line would say it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"moss": 1}, r"no compiler option 'moss'. Did you mean 'mos'\?.*--compiler-flag -NAME=VALUE"),
        ({"allocator_dealloc_dely": 1}, "Did you mean 'allocator-dealloc-delay'"),
        ({"mos": 0}, "mos is 0, expected whole numbers of at least 1"),
        ({"mos": True}, "mos is True"),
        ({"ols": "two"}, "ols is 'two', expected a whole number of at least 1"),
        ({"ols": 1.5}, "ols is 1.5"),
        ({"aic-depth-first-mem": 7}, "from 8 to 32"),
        ({"size-split-granularity": 4096}, "from 512 to 2048"),
        ({"vtcm-working-set-limit-ratio": "nan"}, "a number from 0 to 1"),
        ({"vtcm-working-set-limit-ratio": 1.01}, "a number from 0 to 1"),
        ({"aic-pmu-recipe": "AxiRdx"}, "one of AxiRd, AxiWr, AxiRdWr, KernelUtil, HmxMacs"),
        ({"aic-pmu-events": ",".join("abcdefghi")}, "at most 8"),
        ({"v": "maybe"}, "expected true or false"),
        ({"dump-profile": "../x"}, "a file name without directories"),
        ({"node-precision-info": "/a/path.yaml"}, "the path of a text file"),
        ({"m": "x.onnx"}, "-m is not for users to give. The export decides it."),
        ({"aic_num_cores": 4}, "Use the number of cores."),
        ({"mdp_load_partition_config": "x.json"}, "Use the number of devices."),
        ({"aic-binary-dir": "x"}, "gives each compile one of its own"),
        ({"mos": 1, "-mos": 1}, "mos is given twice"),
    ],
)
def test_what_is_not_legal_is_refused_with_what_would_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        spec.CompileSpec(compiler_options=options)


CLUSTERS = {"sdp-cluster-sizes": "7:7"}


@pytest.mark.parametrize(
    ("options", "fields", "words"),
    [
        ({"mos": 5}, {"num_cores": 4}, "mos is 5 with 4 cores"),
        ({"mos": "1:5"}, {"num_cores": 4}, "mos is 1,5 with 4 cores"),
        ({"mdts-mos": 2}, {}, "for one device"),
        ({"aic-depth-first-mem": 8}, {}, "needs aic-enable-depth-first"),
        ({"percentile-calibration-value": 99}, {}, "needs quantization-calibration=Percentile"),
        ({"host-preproc": True, "aic-preproc": True}, {}, "exclude each other"),
        ({"convert-to-quantize": True, "dump-profile": "p.yaml"}, {}, "exclude each other"),
        ({**CLUSTERS, "aic-enable-depth-first": True}, {}, "does not go with aic-enable-depth-first"),
        ({**CLUSTERS, "stats-level": 50}, {}, "does not go with stats-level 50"),
        (CLUSTERS, {"num_devices": 2}, "does not go with 2 devices"),
        (CLUSTERS, {"num_cores": 8}, "has 14 cores in all, expected at most the 8"),
        ({**CLUSTERS, "mos": "1:1:1"}, {}, "3 numbers for 2 clusters"),
        ({}, {"num_cores": 17}, "asks for 17 cores, expected at most the 16"),
        ({}, {"hw_version": "ai300"}, "hardware version is 'ai300'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_compiler_starts(
    options: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        spec.CompileSpec(compiler_options=options, **fields)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"mos": 4}, {"num_cores": 4}),
        ({"mdts-mos": 2}, {"num_devices": 2}),
        ({"aic-depth-first-mem": 8, "aic-enable-depth-first": True}, {}),
        ({**CLUSTERS, "mos": "1:4", "stats-level": 70}, {"num_cores": 14}),
        ({"percentile-calibration-value": 99, "quantization-calibration": "percentile"}, {}),
        ({}, {"num_cores": 20, "hw_version": "ai200"}),
        ({}, {"hw_version": "2.0"}),
    ],
)
def test_what_goes_together_is_taken(options: dict[str, Any], fields: dict[str, Any]) -> None:
    spec.CompileSpec(compiler_options=options, **fields)


def test_both_names_of_the_chip_are_one_request() -> None:
    assert digest_of(hw_version="2.0") == digest_of()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("new",), "expected -NAME or -NAME=VALUE"),
        (("--aic-num-cores=2",), "expected -NAME or -NAME=VALUE"),
        (("-mos=2",), "-mos is. Give it as the compiler option mos"),
        (("-mxint8-mdp-io",), "Give it as the compiler option allow-mxint8-mdp-io"),
        (("-aic-binary-dir=/x",), "gives each compile one of its own"),
        (("-new=1", "-new=2"), "-new twice"),
        (("-a b",), "expected -NAME"),
    ],
)
def test_the_escape_is_for_flags_that_the_table_does_not_have(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        spec.CompileSpec(unlisted_flags=flags)


def test_a_file_is_known_by_its_text(tmp_path: Any) -> None:
    here, there = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for path in (here, there):
        path.write_text("FP32NodeInstanceNames: [x]")
    one, other = (asking.with_files({"node_precision_info": str(path), "mos": 1}) for path in (here, there))
    assert one == other == {"node_precision_info": "FP32NodeInstanceNames: [x]\n", "mos": 1}
    here.write_bytes(b"\xff\xfe")
    for path, why in ((here, "it is not text"), (tmp_path / "none", "No such file")):
        with pytest.raises(InvalidInput, match=why):
            asking.with_files({"node-precision-info": str(path)})
    here.write_text("x" * values.MOST_FILE_BYTES)
    with pytest.raises(InvalidInput, match="expected text of less than 65536"):
        asking.with_files({"node-precision-info": str(here)})


def test_the_table_names_everything_once() -> None:
    assert not set(ALIASES) & set(FLAGS)
    assert all(flag.about and flag.kind.expected for flag in FLAGS.values())


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "Write docs/compiler-flags.md anew with: make docs"
