"""A model whose code comes with its checkpoint, through the stages and the library: with consent, and without."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qeff_engine import (
    QEFFAutoModelForCausalLM,
    __main__,
    actions,
    checkpoint,
    code_files,
    images,
    pipeline,
    spec,
    stage,
)
from qeff_engine.architectures import remote_code
from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.library import cache
from tests import exported_decoder, tiny, twist

PROMPTS = ["Once upon", "Two words"]  # the original's best tokens are clear, in float16 too
NUM_TOKENS = 5


def done(
    stage_spec: spec.StageSpec,
    *,
    out: Path,
    inputs: Mapping[str, Path] | None = None,
    trust: str = stage.AS_RESOLVED,
    sdk_root: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """What a stage leaves in a new directory, and its figures."""
    out.mkdir(parents=True)
    work = out.with_name(f"{out.name}.work")
    work.mkdir()
    context = stage.StageContext(out=out, work=work, inputs=inputs or {}, sdk_root=sdk_root, trust_remote_code=trust)
    return out, pipeline.run_stage(stage_spec, context=context).figures


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twist.save(tmp_path_factory.mktemp("twist"), own_tokenizer=True)


@pytest.fixture(scope="module")
def digest(source: Path) -> str:
    return code_files.read(source).digest


@pytest.fixture(scope="module")
def snapshot(source: Path, digest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made with consent."""
    out = tmp_path_factory.mktemp("made") / "snapshot"
    found, figures = done(checkpoint.resolve_spec(str(source), trust_remote_code=digest), out=out)
    assert figures["remote_code"] == digest
    return found


@pytest.fixture(scope="module")
def program(snapshot: Path, simulated_sdk_root: Path) -> Path:
    onnx, _ = done(spec.ExportSpec(), out=snapshot.with_name("onnx"), inputs={stage.SNAPSHOT: snapshot})
    compile_spec = spec.CompileSpec(num_cores=8, prefill_len=4, ctx_len=32)
    inputs = {stage.ONNX: onnx}
    return done(compile_spec, out=snapshot.with_name("program"), inputs=inputs, sdk_root=simulated_sdk_root)[0]


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears as soon as a line of the model's code is run. Nobody is there to be asked, either."""
    monkeypatch.setenv(twist.MARKER, str(tmp_path / "marker"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    return tmp_path / "marker"


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """After each of these tests the process is what it was."""
    from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto

    def tables() -> list[Any]:
        return [
            dict(configuration_auto.CONFIG_MAPPING._extra_content),
            dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING._extra_content),
            dict(tokenization_auto.REGISTERED_TOKENIZER_CLASSES),
            list(sys.meta_path),
            list(sys.path),
            socket.socket.connect,
        ]

    before = tables()
    yield
    assert tables() == before
    assert [name for name in sys.modules if "twist" in name and not name.startswith("tests")] == []


def test_with_consent_a_program_says_what_the_model_says(
    source: Path, snapshot: Path, program: Path, simulated_sdk_root: Path, tmp_path: Path
) -> None:
    run_spec = spec.RunSpec(prompts=tuple(PROMPTS), generation_len=NUM_TOKENS)
    out, figures = done(
        run_spec,
        out=tmp_path / "run",
        inputs={stage.PROGRAM: program, stage.SNAPSHOT: snapshot},
        sdk_root=simulated_sdk_root,
    )
    assert figures["tokens_equal"] is True
    measured = json.loads((out / "measurement.json").read_text())
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    assert measured["prompt_tokens"] == prompts
    expected, _ = exported_decoder.reference(twist.model(tmp_path), prompts, num_tokens=NUM_TOKENS)
    assert measured["tokens"] == expected


def test_its_weights_can_be_quantized_with_calibration_and_exported(snapshot: Path, tmp_path: Path) -> None:
    quantize_spec = spec.QuantizeSpec(method="gptq", group_size=16, num_samples=2, seq_len=16)
    quantized, _ = done(quantize_spec, out=tmp_path / "quantized", inputs={stage.SNAPSHOT: snapshot})
    assert code_files.of_snapshot(quantized) is not None
    _, figures = done(spec.ExportSpec(), out=tmp_path / "onnx", inputs={stage.SNAPSHOT: quantized})
    assert figures["class_name"] == "TwistForCausalLM"


def test_without_consent_it_is_refused_with_the_option_and_nothing_of_it_runs(
    source: Path, digest: str, marker: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=rf"Read the code first.*--trust-remote-code {digest}"):
        done(checkpoint.resolve_spec(str(source)), out=tmp_path / "snapshot")
    with pytest.raises(InvalidInput, match=rf"Read the code first.*--trust-remote-code {digest}"):
        done(spec.ExportSpec(), out=tmp_path / "onnx", inputs={stage.SNAPSHOT: source}, trust="")
    assert not marker.exists()


@pytest.mark.parametrize("own_manifest", [False, True])
def test_no_stage_runs_code_of_a_snapshot_that_was_made_without_consent(
    snapshot: Path, program: Path, simulated_sdk_root: Path, marker: Path, tmp_path: Path, own_manifest: bool
) -> None:
    """Whether somebody has put files there, or a directory from elsewhere claims consent."""
    tampered = shutil.copytree(snapshot, tmp_path / "snapshot")
    trust = ""
    if not own_manifest:
        (tampered / code_files.MANIFEST).unlink()
        trust = stage.AS_RESOLVED
    stages: list[tuple[spec.StageSpec, dict[str, Path]]] = [
        (spec.QuantizeSpec(method="rtn", group_size=16), {}),
        (spec.ExportSpec(), {}),
        (spec.RunSpec(generation_len=1), {stage.PROGRAM: program}),
    ]
    for stage_spec, inputs in stages:
        with pytest.raises(InvalidInput):
            done(
                stage_spec,
                out=tmp_path / f"out_{stage_spec.STAGE}",
                inputs={stage.SNAPSHOT: tampered, **inputs},
                trust=trust,
                sdk_root=simulated_sdk_root,
            )
    assert not marker.exists()


def test_the_reference_of_a_run_is_not_loaded_without_consent(
    snapshot: Path, program: Path, simulated_sdk_root: Path, marker: Path, tmp_path: Path
) -> None:
    tampered = shutil.copytree(snapshot, tmp_path / "snapshot")
    (tampered / code_files.MANIFEST).unlink()
    tiny.tokenizer().save_pretrained(tampered)
    _, figures = done(
        spec.RunSpec(generation_len=1),
        out=tmp_path / "run",
        inputs={stage.SNAPSHOT: tampered, stage.PROGRAM: program},
        sdk_root=simulated_sdk_root,
    )
    assert figures["tokens_equal"] is None
    assert "without consent" in figures["parity_note"]
    assert not marker.exists()


def test_an_architecture_of_transformers_is_its_own_code_and_not_the_checkpoints(marker: Path, tmp_path: Path) -> None:
    source = tiny.save_model(tmp_path / "source", "llama")
    twist.write_code(source)
    for name in ("config.json", "tokenizer_config.json"):
        fields = json.loads((source / name).read_text())
        evil = {"AutoTokenizer": ["tokenizer_twist.TwistTokenizer", None], "AutoProcessor": "modeling_twist.X"}
        twist.change(source / name, {**fields, "auto_map": {**twist.AUTO_MAP, **evil}})
    snapshot, _ = done(checkpoint.resolve_spec(str(source)), out=tmp_path / "snapshot")
    assert not list(snapshot.rglob("*.py"))
    inputs = {stage.SNAPSHOT: snapshot}
    done(spec.QuantizeSpec(method="gptq", group_size=16, num_samples=1, seq_len=8), out=tmp_path / "q", inputs=inputs)
    _, figures = done(spec.ExportSpec(), out=tmp_path / "onnx", inputs=inputs)
    assert figures["class_name"] == "LlamaForCausalLM"
    assert not marker.exists()


def test_code_that_changes_after_consent_is_refused_with_both_digests(
    source: Path, snapshot: Path, digest: str, marker: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(source, tmp_path / "source")
    resolve_spec = checkpoint.resolve_spec(str(changed), trust_remote_code=digest)
    (changed / "parts" / "twisting.py").write_text(twist.FILES["parts/twisting.py"] + "\n")
    other = code_files.read(changed).digest
    for attempt in (
        lambda: checkpoint.resolve_spec(str(changed), trust_remote_code=digest),
        lambda: done(resolve_spec, out=tmp_path / "snapshot"),
    ):
        with pytest.raises(InvalidInput, match=f"{digest}.*{other}"):
            attempt()
    tampered = shutil.copytree(snapshot, tmp_path / "tampered")
    shutil.copy(changed / "parts" / "twisting.py", tampered / "parts" / "twisting.py")
    for number, trust in enumerate((stage.AS_RESOLVED, digest)):
        with pytest.raises(InvalidInput, match=f"{digest}.*{other}"):
            done(spec.ExportSpec(), out=tmp_path / f"onnx{number}", inputs={stage.SNAPSHOT: tampered}, trust=trust)
    assert not marker.exists()


def test_consent_is_part_of_what_the_work_is_and_code_of_what_it_reads(
    source: Path, digest: str, snapshot: Path, tmp_path: Path
) -> None:
    def key(resolve_spec: spec.ResolveSpec) -> str:
        return actions.action_key("resolve", fields=resolve_spec.to_json(), input_digests={}, toolchain={})[0]

    without, with_it = (checkpoint.resolve_spec(str(source), trust_remote_code=consent) for consent in ("", digest))
    assert key(without) != key(with_it)
    moved = shutil.copytree(source, tmp_path / "moved", copy_function=shutil.copy2)
    assert key(checkpoint.resolve_spec(str(moved), trust_remote_code=digest)) == key(with_it)
    changed = shutil.copytree(snapshot, tmp_path / "changed")
    (changed / "modeling_twist.py").write_text(twist.FILES["modeling_twist.py"] + "\n")
    assert cache.tree_digest(changed) != cache.tree_digest(snapshot)


STRANGE = {
    "opens a socket": (
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        InvalidInput,
        "may not connect to .'127.0.0.1', 1",
    ),
    "ends the process": ("raise SystemExit(0)", InvalidInput, "cannot be imported: SystemExit"),
    "leads outside": ("from ..outside import x", InvalidInput, "beyond top-level package"),
    "names another file": ("from .gone import x", InvalidInput, "imports gone.py, which does not come with"),
    "needs a package": ("import no_such_package", Unsupported, "needs the package 'no_such_package'"),
    "loads more code": (
        "from transformers.dynamic_module_utils import get_class_from_dynamic_module as get; get('x.Y', 'some/where')",
        InvalidInput,
        "may not load more of it: x.py of some/where",
    ),
    "reads the token": (
        "import os, huggingface_hub; assert huggingface_hub.get_token() is None; assert 'HF_TOKEN' in os.environ",
        InvalidInput,
        "AssertionError",
    ),
    "has no such class": ("x = 1", InvalidInput, "has no class TwistConfig"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_code_may_not_do_or_cannot_do_is_said(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, failure, words = STRANGE[name]
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "configuration_twist.py").write_text(text)
    consent = code_files.read(tmp_path / "source").digest
    with pytest.raises(failure, match=words):
        done(spec.ExportSpec(), out=tmp_path / "onnx", inputs={stage.SNAPSHOT: tmp_path / "source"}, trust=consent)
    assert os.environ["HF_TOKEN"] == "hf_very_secret"


@pytest.mark.parametrize("failure", ["Exception('no')", "SystemExit(0)", "OSError('no')"])
def test_code_that_fails_later_is_a_failure_of_the_model(failure: str, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    modeling = twist.FILES["modeling_twist.py"].replace("self.post_init()", f"raise {failure}")
    (tmp_path / "source" / "modeling_twist.py").write_text(modeling)
    consent = code_files.read(tmp_path / "source").digest
    with pytest.raises(Unsupported, match=rf"code fails at modeling_twist\.py, line \d+: {failure.partition('(')[0]}"):
        done(spec.ExportSpec(), out=tmp_path / "onnx", inputs={stage.SNAPSHOT: tmp_path / "source"}, trust=consent)


def test_other_threads_of_the_process_may_connect_meanwhile(snapshot: Path) -> None:
    code = code_files.of_snapshot(snapshot)
    assert code is not None
    inside, found = threading.Event(), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect() -> None:
            inside.wait()
            socket.create_connection(server.getsockname()).close()
            found.append("connected")

        thread = threading.Thread(target=connect)
        thread.start()
        with remote_code.introduced(snapshot, code=code):
            with pytest.raises(PermissionError):
                socket.create_connection(server.getsockname())
            inside.set()
            thread.join()
    assert found == ["connected"]


PROCESSING = """
from transformers import BaseImageProcessor, ProcessorMixin


class TwistImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]


class TwistProcessor(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)
"""


@pytest.mark.parametrize("trusting", [False, True])
def test_processors_are_code_like_any_other(trusting: bool, source: Path, marker: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(source, tmp_path / "source")
    (directory / "processing_twist.py").write_text(twist.TELL + PROCESSING)
    for name, auto, kind in (
        ("preprocessor_config.json", "AutoImageProcessor", "TwistImageProcessor"),
        ("processor_config.json", "AutoProcessor", "TwistProcessor"),
    ):
        twist.change(directory / name, {"auto_map": {auto: f"processing_twist.{kind}"}})
    if not trusting:
        with pytest.raises(InvalidInput, match="no processor for images that can be read"):
            images.Reader(directory)
        assert not marker.exists()
        return
    with remote_code.introduced(directory, code=code_files.read(directory)) as left_out:
        assert left_out == []
        processor = images.Reader(directory)._processor
        kinds = [type(item).__name__ for item in (processor, processor.image_processor, processor.tokenizer)]
    assert kinds == ["TwistProcessor", "TwistImageProcessor", "TwistTokenizer"]


OWN_LLAMA = """
from torch import nn
from transformers import LlamaForCausalLM


class OwnForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.act_fn = nn.ReLU()
"""


def test_an_architecture_of_transformers_with_a_class_of_its_own_is_tried_and_forgotten(
    marker: Path, tmp_path: Path
) -> None:
    source = tiny.save_model(tmp_path / "source", "llama")
    (source / "modeling_own.py").write_text(OWN_LLAMA)
    fields = json.loads((source / "config.json").read_text())
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    # The name of an implementation of attention could be that of code on the hub, to which nobody has consented.
    twist.change(source / "config.json", {**fields, "auto_map": auto_map, "_attn_implementation": "some/kernel"})
    names = []
    for number, consent in enumerate((code_files.read(source).digest, "")):
        resolve_spec = checkpoint.resolve_spec(str(source), trust_remote_code=consent)
        snapshot, _ = done(resolve_spec, out=tmp_path / f"snapshot{number}")
        said: list[str] = []
        context = stage.StageContext(
            out=tmp_path / f"onnx{number}",
            work=tmp_path,
            inputs={stage.SNAPSHOT: snapshot},
            emit=lambda event, said=said: said.append(event.message),  # type: ignore[misc]
            trust_remote_code=stage.AS_RESOLVED,
        )
        context.out.mkdir()
        names.append(pipeline.run_stage(spec.ExportSpec(), context=context).figures["class_name"])
        assert any("trying a small llama" in message for message in said) == bool(consent)
        done(spec.QuantizeSpec(method="rtn", group_size=16), out=tmp_path / f"q{number}", inputs=context.inputs)
    assert names == ["OwnForCausalLM", "LlamaForCausalLM"]


def test_a_tokenizer_that_needs_a_missing_package_is_left_out_where_nobody_needs_it(
    source: Path, tmp_path: Path
) -> None:
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "tokenizer_twist.py").write_text("import no_such_package\n")
    consent = code_files.read(tmp_path / "source").digest
    inputs = {stage.SNAPSHOT: tmp_path / "source"}
    _, figures = done(spec.ExportSpec(), out=tmp_path / "onnx", inputs=inputs, trust=consent)
    assert figures["class_name"] == "TwistForCausalLM"


def test_a_small_model_is_tried_whatever_its_config_calls_its_layers(tmp_path: Path) -> None:
    """A checkpoint of many layers whose number has a name of the code's own."""
    source = twist.save(tmp_path / "source", fields={"depth": 18, "hidden_size": 16, "intermediate_size": 16})
    consent = code_files.read(source).digest
    _, figures = done(spec.ExportSpec(), out=tmp_path / "onnx", inputs={stage.SNAPSHOT: source}, trust=consent)
    assert (figures["num_layers"], figures["num_layer_functions"]) == (18, 1)


def test_the_library_takes_a_digest_and_nothing_less(
    source: Path,
    digest: str,
    marker: Path,
    simulated_sdk_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    monkeypatch.setenv("QEFF_HOME", str(tmp_path / "cache"))
    load = QEFFAutoModelForCausalLM.from_pretrained
    with pytest.raises(InvalidInput, match=f"trust_remote_code='{digest}'"):
        load(source)
    with pytest.raises(InvalidInput, match=f"trust_remote_code is 'True'.*Read the code first.*{digest}"):
        load(source, trust_remote_code=True)
    assert not marker.exists()
    model = load(source, trust_remote_code=digest)
    model.compile(num_cores=8, prefill_seq_len=4, ctx_len=32)
    answer = model.generate(prompts=PROMPTS, generation_len=NUM_TOKENS)
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    expected, _ = exported_decoder.reference(twist.model(tmp_path), prompts, num_tokens=NUM_TOKENS)
    assert answer.generated_ids == expected
    again = model.generate(tokenizer=tiny.tokenizer(), prompts=PROMPTS, generation_len=NUM_TOKENS)
    assert again.generated_ids == expected
    with pytest.raises(InvalidInput, match="not run without consent"):
        load(source)  # what is in the cache by now was made with consent


def test_the_command_line_takes_the_digest_for_each_stage_that_runs_code(
    snapshot: Path, digest: str, marker: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--snapshot", str(snapshot), "--out", str(tmp_path / "onnx")]
    assert __main__.main(command) == __main__.FAILED
    assert f"--trust-remote-code {digest}" in capfd.readouterr().err
    assert __main__.main([*command, "--trust-remote-code", "main"]) == __main__.WRONG_USAGE
    assert "expected sha256:DIGEST" in capfd.readouterr().err
    assert not marker.exists()
    assert __main__.main([*command, "--trust-remote-code", digest]) == __main__.DONE
    assert marker.exists()


def test_transformers_alone_would_leave_the_rotary_table_of_the_reference_to_chance(snapshot: Path) -> None:
    """Why the buffers of a class that is not of transformers come from its constructor."""
    from qeff_engine import parity

    code = code_files.of_snapshot(snapshot)
    assert code is not None
    with remote_code.introduced(snapshot, code=code):
        model = parity._load(snapshot, auto_class="AutoModelForCausalLM")
    expected = 1.0 / 50.0 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected)
