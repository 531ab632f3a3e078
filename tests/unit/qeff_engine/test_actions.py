"""Action keys are made of content and of everything that can change it."""

from __future__ import annotations

from typing import Any

import pytest

from qeff_engine import actions, spec

TOOLCHAIN = {
    "engine": "1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "onnx": "1.23.0",
    "onnxscript": "0.7.2",
    "gguf": "0.19.0",
    "sdk_apps": "1.20.0",
    "sdk_platform": "1.20.0",
    "architectures": "made_up: made-up 1.0",
}
SPECS: dict[spec.Stage, spec.StageSpec] = {
    spec.Stage.RESOLVE: spec.ResolveSpec(source="/models/a", kind="directory", fingerprint="f1"),
    spec.Stage.QUANTIZE: spec.QuantizeSpec(method="gptq"),
    spec.Stage.EXPORT: spec.ExportSpec(),
    spec.Stage.COMPILE: spec.CompileSpec(),
    spec.Stage.RUN: spec.RunSpec(),
}


def key(stage_spec: spec.StageSpec, **changes: Any) -> str:
    arguments: dict[str, Any] = {"input_digests": {"snapshot": "d1"}, "toolchain": TOOLCHAIN, **changes}
    return actions.action_key(stage_spec.STAGE, fields=stage_spec.to_json(), **arguments)[0]


@pytest.mark.parametrize("kind", ["directory", "gguf"])
def test_same_files_under_another_path_are_the_same_action(kind: str) -> None:
    here = spec.ResolveSpec(source="/models/a", kind=kind, fingerprint="f1")
    there = spec.ResolveSpec(source="/copy/of/a", kind=kind, fingerprint="f1")
    assert key(here) == key(there)


def test_changed_files_under_the_same_path_are_another_action() -> None:
    before = spec.ResolveSpec(source="/models/a", kind="directory", fingerprint="f1")
    after = spec.ResolveSpec(source="/models/a", kind="directory", fingerprint="f2")
    assert key(before) != key(after)


def test_hub_ids_and_revisions_are_told_apart() -> None:
    keys = {
        key(spec.ResolveSpec(source=source, kind="hub", revision=revision))
        for source in ("org/a", "org/b")
        for revision in ("c" * 40, "d" * 40)
    }
    assert len(keys) == 4


def test_no_path_stands_in_the_parts() -> None:
    _, parts = actions.action_key(
        spec.Stage.RESOLVE, fields=SPECS[spec.Stage.RESOLVE].to_json(), input_digests={}, toolchain=TOOLCHAIN
    )
    assert "/models" not in str(parts)


@pytest.mark.parametrize("stage", list(spec.Stage))
def test_every_ingredient_changes_the_key(stage: spec.Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_spec = SPECS[stage]
    keys = [key(stage_spec), key(stage_spec, input_digests={"snapshot": "d2"}), key(stage_spec, input_digests={})]
    for name in actions.TOOLCHAIN_OF_STAGE[stage]:
        keys.append(key(stage_spec, toolchain={**TOOLCHAIN, name: "other"}))
        keys.append(key(stage_spec, toolchain={n: version for n, version in TOOLCHAIN.items() if n != name}))
    monkeypatch.setattr(spec, "STAGE_VERSIONS", {**spec.STAGE_VERSIONS, stage: 2})
    keys.append(key(stage_spec))
    assert len(set(keys)) == len(keys)


def test_every_field_of_a_spec_changes_the_key() -> None:
    base = SPECS[spec.Stage.COMPILE].to_json()
    other = {"num_cores": 8, "num_devices": 2, "batch_size": 2, "prefill_len": 16, "ctx_len": 64, "seq_len": 16}
    other |= {"precision": "mxfp6", "kv_precision": "mxint8", "hw_version": "ai200"}
    assert set(other) == set(base)
    changed = [spec.CompileSpec.from_json({**base, name: value}) for name, value in other.items()]
    assert len({key(item) for item in changed} | {key(SPECS[spec.Stage.COMPILE])}) == len(base) + 1


@pytest.mark.parametrize("stage", list(spec.Stage))
def test_versions_that_a_stage_does_not_use_do_not_void_its_cache(stage: spec.Stage) -> None:
    unused = {name: "other" for name in TOOLCHAIN if name not in actions.TOOLCHAIN_OF_STAGE[stage]}
    assert unused
    assert key(SPECS[stage]) == key(SPECS[stage], toolchain={**TOOLCHAIN, **unused, "something else": "1"})


def test_the_order_of_names_does_not_matter() -> None:
    one = key(spec.RunSpec(), input_digests={"program": "p", "snapshot": "s"})
    two = key(spec.RunSpec(), input_digests={"snapshot": "s", "program": "p"})
    assert one == two
