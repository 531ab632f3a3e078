"""The words of a sweep on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from farm.cli import _parser, _sweep
from farm.sweep import Sweep
from tests.farm_home import write_checkpoint


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """Two checkpoints of one name, and one of another."""
    return {name: write_checkpoint(tmp_path / name) for name in ("one/tiny", "two/tiny", "other")}


def parse(*words: object) -> Sweep:
    parser = _parser.command_parser("submit", description="")
    _sweep.add_arguments(parser)
    return _sweep.make(_parser.parse(parser, [*map(str, words)], defaults=argparse.Namespace()))


def test_nothing_said_is_one_point_of_the_defaults(models: dict[str, Path]) -> None:
    sweep = parse("--model", models["other"])
    assert (sweep.num_points, sweep.cores, sweep.precision) == (1, (16,), ("fp16",))


@pytest.mark.parametrize(
    ("words", "axis", "values"),
    [
        (("--cores", "8,14,16"), "cores", (8, 14, 16)),
        (("--cores", " 8 , 14 "), "cores", (8, 14)),
        (("--cores", "8", "--cores", "14,16"), "cores", (8, 14, 16)),
        (("--prefill-len", "16,32"), "prefill_len", (16, 32)),
        (("--precision", "mxfp6,fp16"), "precision", ("mxfp6", "fp16")),
        (("--kv", "mxint8"), "kv", ("mxint8",)),
    ],
)
def test_lists_are_comma_lists_and_add_up(
    words: tuple[str, ...], axis: str, values: tuple[Any, ...], models: dict[str, Path]
) -> None:
    assert getattr(parse("--model", models["other"], *words), axis) == values


def test_quantizations_are_words_of_the_engine(models: dict[str, Path]) -> None:
    sweep = parse("--model", models["other"], "--quantize", "none,gptq:4:64,awq")
    assert [item and item.label for item in sweep.quantize] == [None, "gptq:4:64", "awq:4:64"]


def test_models_have_short_names_where_these_are_unique(models: dict[str, Path]) -> None:
    sweep = parse("--model", models["one/tiny"], "--model", models["two/tiny"], "--model", models["other"])
    assert [model.name for model in sweep.models] == [str(models["one/tiny"]), str(models["two/tiny"]), "other"]


def test_a_hub_id_may_carry_its_revision() -> None:
    (model,) = parse("--model", "org/name@v1").models
    assert (model.name, model.source.source, model.source.revision) == ("org/name@v1", "org/name", "v1")


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "tiny@v1")
    (model,) = parse("--model", directory).models
    assert (model.source.kind, model.source.source, model.source.revision) == ("directory", str(directory), None)


def test_prompts_come_from_options_and_files(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('"two\\nlines"\n"x"\n')
    sweep = parse("--model", models["other"], "--prompt", "a", "--prompts-file", tmp_path / "lines.jsonl")
    assert sweep.prompts == ("a", "two\nlines", "x")


def test_flags_of_the_compiler_are_lists_too(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames: [x]")
    sweep = parse(
        *("--model", models["other"], "--mos", "1,2", "--ols", "1", "--ols", "2,default"),
        *("--compiler-option", "aic_enable_depth_first=true,false", "--compiler-option", "multicast-weights"),
        *("--compiler-option", "sdp-cluster-sizes=7:7,14", "--compiler-option", "mos=4"),
        *("--compiler-option", f"node-precision-info={tmp_path / 'npi.yaml'},default"),
        *("--compiler-flag", "-new=1", "--compiler-flag=-other", "--skip-illegal"),
    )
    assert sweep.flags == {
        "mos": (1, 2, 4),
        "ols": (1, 2, "default"),
        "aic-enable-depth-first": (True, False),
        "multicast-weights": (True,),
        "sdp-cluster-sizes": ("7,7", 14),
        "node-precision-info": ("FP32NodeInstanceNames: [x]\n", "default"),
    }
    assert sweep.unlisted_flags == ("-new=1", "-other")
    assert sweep.skip_illegal
    assert sweep.num_points == 3 * 3 * 2 * 2 * 2
