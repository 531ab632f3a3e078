import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from qeff_engine import errors, pipeline, program
from qeff_engine.spec import CompileSpec, RunSpec
from qeff_engine.stage import ONNX, ORIGINAL, PROGRAM, SNAPSHOT, DeviceGrant, StageContext
from tests import toy_decoder

WORDS = [f"w{number}" for number in range(toy_decoder.VOCAB)]
PROMPTS = ("w3 w1 w4 w1 w5", "w9 w2")
IDS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """A snapshot that has a tokenizer and no model."""
    directory = tmp_path_factory.mktemp("snapshot")
    vocab = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)  # as sentence models have it; it must not cut prompts
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, simulated_sdk_root):
    directory = tmp_path_factory.mktemp("compiled")
    for name in ("onnx", "out", "work"):
        (directory / name).mkdir()
    toy_decoder.export(directory / "onnx", eos=(toy_decoder.greedy(IDS[1], num_tokens=3)[2],))
    context = StageContext(
        out=directory / "out",
        work=directory / "work",
        inputs={ONNX: directory / "onnx"},
        sdk_root=simulated_sdk_root,
    )
    pipeline.run_stage(CompileSpec(num_cores=14, batch_size=2, prefill_len=4, ctx_len=24), context=context)
    return directory / "out"


@pytest.fixture
def run(tmp_path, snapshot, compiled, simulated_sdk_root):
    """Run the stage; options replace fields of its context."""

    def call(run_spec, **options):
        for name in ("out", "work"):
            (tmp_path / name).mkdir()
        context = StageContext(
            **{
                "out": tmp_path / "out",
                "work": tmp_path / "work",
                "inputs": {PROGRAM: compiled, SNAPSHOT: snapshot},
                "sdk_root": simulated_sdk_root,
                "devices": (DeviceGrant(qid=1, num_cores=14),),
                **options,
            }
        )
        figures = pipeline.run_stage(run_spec, context=context).figures
        return figures, json.loads((tmp_path / "out" / "measurement.json").read_text())

    return call


def test_tokens_texts_and_figures_are_measured(run):
    figures, measurement = run(RunSpec(prompts=PROMPTS, generation_len=6, check_parity=False))
    eos = frozenset({toy_decoder.greedy(IDS[1], num_tokens=3)[2]})
    expected = [toy_decoder.greedy(ids, num_tokens=6, eos=eos) for ids in IDS]
    assert measurement["tokens"] == expected
    assert measurement["texts"] == [" ".join(WORDS[token] for token in tokens) for tokens in expected]
    assert figures["num_prompt_tokens"] == 7
    assert figures["num_generated_tokens"] == sum(map(len, expected))
    assert 0 < figures["ttft_s"] < figures["total_s"]
    assert figures["total_tok_s"] == pytest.approx(figures["num_generated_tokens"] / figures["total_s"], rel=1e-3)
    assert figures["decode_tok_s"] > figures["total_tok_s"] / 10
    assert [len(times) for times in measurement["token_times_s"]] == [len(tokens) for tokens in expected]


def test_the_granted_device_is_used_and_named(run):
    figures, measurement = run(RunSpec(prompts=PROMPTS, generation_len=2, check_parity=False))
    assert (figures["qid"], figures["num_cores"], figures["simulated"]) == (1, 14, True)
    assert figures["sku"] == measurement["devices"][0]["sku"] != ""
    assert measurement["devices"][0]["nsp_total"] == 14


def test_without_a_grant_the_tightest_free_device_is_used(run):
    figures, _ = run(RunSpec(prompts=PROMPTS, generation_len=2, check_parity=False), devices=())
    assert figures["qid"] == 1


def test_a_comparison_that_cannot_be_made_says_so(run):
    figures, measurement = run(RunSpec(prompts=PROMPTS, generation_len=2))
    assert figures["tokens_equal"] is None
    assert figures["num_tokens_equal"] is None
    assert "config.json" in figures["parity_note"]
    assert measurement["parity"]["note"] == figures["parity_note"]


def test_original_is_what_answers_are_compared_with(run, snapshot, compiled, tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    (original / "config.json").write_text('{"quantization_config": {}}')
    figures, _ = run(
        RunSpec(prompts=PROMPTS, generation_len=2),
        inputs={PROGRAM: compiled, SNAPSHOT: snapshot, ORIGINAL: original},
    )
    assert "itself quantized" in figures["parity_note"]


def test_prompt_and_answer_beyond_the_context_are_refused(run):
    with pytest.raises(errors.InvalidInput, match=r"Prompt 0 has 5 tokens and 20 .* 25, expected at most .* 24"):
        run(RunSpec(prompts=PROMPTS, generation_len=20))


def test_a_device_with_too_few_cores_is_refused_for_good(run, compiled, snapshot, tmp_path):
    wide = tmp_path / "wide"
    wide.mkdir()
    found = program.load(compiled)
    for path in compiled.rglob("*"):
        if path.is_file():
            (wide / path.relative_to(compiled)).parent.mkdir(parents=True, exist_ok=True)
            (wide / path.relative_to(compiled)).write_bytes(path.read_bytes())
    program.Program(
        compile_spec=CompileSpec(num_cores=16), commands={}, sdk_versions={}, simulated=found.simulated
    ).save(wide)
    with pytest.raises(errors.InvalidInput, match=r"compiled for 16 cores; device 1 \(.*\) has 14"):
        run(RunSpec(), inputs={PROGRAM: wide, SNAPSHOT: snapshot})


def test_a_granted_device_that_is_gone_is_lost(run):
    with pytest.raises(errors.DeviceLost, match="Device 7 does not exist"):
        run(RunSpec(prompts=PROMPTS), devices=(DeviceGrant(qid=7, num_cores=14),))


def test_grants_must_be_as_many_as_the_program_spans(run):
    grants = tuple(DeviceGrant(qid=qid, num_cores=14) for qid in (0, 1))
    with pytest.raises(errors.InvalidInput, match=r"spans 1 device\(s\), 2 were granted"):
        run(RunSpec(prompts=PROMPTS), devices=grants)


def test_a_program_of_a_real_sdk_is_not_run_on_a_simulated_one(run, compiled, snapshot, tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "export.json").write_text((compiled / "export.json").read_text())
    program.Program(compile_spec=CompileSpec(), commands={}, sdk_versions={}, simulated=False).save(real)
    with pytest.raises(errors.InvalidInput, match="made by a real SDK"):
        run(RunSpec(), inputs={PROGRAM: real, SNAPSHOT: snapshot})


def test_snapshot_without_tokenizer_is_refused(run, compiled, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.InvalidInput, match="not a tokenizer"):
        run(RunSpec(), inputs={PROGRAM: compiled, SNAPSHOT: empty})
