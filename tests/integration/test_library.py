"""The public classes on a tiny decoder, as their users call them."""

import io
import sys
from pathlib import Path

import pytest
import torch
import transformers

import qeff_engine
from qeff_engine import QEFFAutoModel, QEFFAutoModelForCausalLM, QEFFAutoModelForImageTextToText
from qeff_engine.errors import InvalidInput
from tests import tiny

PROMPTS = ["Why is it", "So"]
NUM_TOKENS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def expected(checkpoint):
    """Greedy tokens of the original."""
    original = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    with torch.inference_mode():
        return [continued(original, tokenizer(prompt).input_ids) for prompt in PROMPTS]


def continued(original, prompt):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + NUM_TOKENS and tiny.EOS not in tokens[len(prompt) :]:
        tokens.append(int(original(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def environment(monkeypatch, simulated_sdk_root, cache_dir):
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    monkeypatch.setenv("QEFF_HOME", str(cache_dir))


@pytest.fixture
def model(checkpoint):
    return QEFFAutoModelForCausalLM.from_pretrained(checkpoint)


def test_load_transform_compile_generate(model, expected, monkeypatch):
    assert model.transform(form_factor="cloud") is model
    program = model.compile(num_cores=8, prefill_seq_len=4, ctx_len=32)
    assert (Path(program) / "programqpc.bin").is_file()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    result = model.generate(prompts=PROMPTS, generation_len=NUM_TOKENS, stream=True)
    assert result.generated_ids == expected
    assert sys.stdout.getvalue() == result.generated_texts[0] + "\n"
    assert result.simulated
    assert result.total_perf > 0


def test_the_classic_form_wraps_a_loaded_model(checkpoint, expected):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    wrapped = QEFFAutoModel.transform(loaded, form_factor="cloud")
    assert type(wrapped) is QEFFAutoModelForCausalLM
    assert QEFFAutoModel.transform(wrapped) is wrapped
    wrapped.compile(num_cores=8, prefill_seq_len=4, ctx_len=32, batch_size=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    result = wrapped.generate(tokenizer=tokenizer, prompts=PROMPTS, generation_len=NUM_TOKENS)
    assert result.generated_ids == expected


def test_a_loaded_model_is_taken_as_it_is_at_that_moment(checkpoint):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    first, again = QEFFAutoModelForCausalLM(loaded), QEFFAutoModelForCausalLM(loaded)
    with torch.no_grad():
        loaded.model.norm.weight.mul_(2)
    changed = QEFFAutoModelForCausalLM(loaded)
    assert first._snapshot.digest == again._snapshot.digest != changed._snapshot.digest


def test_what_was_done_is_not_done_again(checkpoint, model, monkeypatch):
    program = model.compile(num_cores=8, prefill_seq_len=4, ctx_len=32)
    monkeypatch.setattr(qeff_engine.pipeline, "run_stage", lambda *_, **__: pytest.fail("a stage ran again"))
    again = QEFFAutoModelForCausalLM.from_pretrained(checkpoint)
    assert again.compile(num_cores=8, prefill_seq_len=4, ctx_len=32) == program


def test_results_can_be_put_into_directories_of_the_user_and_used_from_there(checkpoint, model, tmp_path):
    graph = model.export(export_dir=tmp_path / "mine")
    assert graph.startswith(str(tmp_path / "mine"))
    other = QEFFAutoModelForCausalLM.from_pretrained(checkpoint)
    program = other.compile(num_cores=4, ctx_len=32, onnx_path=graph, compile_dir=tmp_path / "mine")
    assert program.startswith(str(tmp_path / "mine" / "qpc-"))
    assert (Path(program) / "programqpc.bin").is_file()


def test_a_quantized_model_is_what_is_exported_then(model):
    directory = model.quantize("rtn", bits=4, group_size=16)
    assert (Path(directory) / "config.json").is_file()
    model.compile(num_cores=8, prefill_seq_len=4, ctx_len=32)
    assert len(model.generate(prompts=PROMPTS, generation_len=2).generated_ids) == 2


def test_unknown_options_are_type_errors(model):
    for call in (model.compile, model.export, model.generate, model.transform):
        with pytest.raises(TypeError, match="unexpected keyword argument 'num_corse'"):
            call(num_corse=8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtype'"):
        QEFFAutoModelForCausalLM.from_pretrained("x", dtype="float16")


def test_wrong_requests_say_what_to_do(checkpoint, model):
    with pytest.raises(InvalidInput, match=r"not compiled yet.*compile\(\)"):
        model.generate(prompts=PROMPTS)
    with pytest.raises(InvalidInput, match=r"for text-generation.*QEFFAutoModel\.from_pretrained"):
        QEFFAutoModelForImageTextToText.from_pretrained(checkpoint)
    with pytest.raises(InvalidInput, match="only encoders pool"):
        QEFFAutoModel.from_pretrained(checkpoint, pooling="mean")
    with pytest.raises(InvalidInput, match="expected a model of transformers"):
        QEFFAutoModel.transform(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="expected one of: cloud"):
        QEFFAutoModel.transform(model, form_factor="edge")


def test_flags_of_the_compiler_are_arguments_or_keys_and_checked_before_anything_is_exported(model):
    kept = model.compile(num_cores=8, mos=1, ols=2, aic_enable_depth_first=True, prefill_seq_len=4, ctx_len=32)
    options = {"ols": "2", "mos": 1, "aic-enable-depth-first": True, "multicast_weights": False}
    assert model.compile(num_cores=8, compiler_options=options, prefill_seq_len=4, ctx_len=32) == kept
    recorded = (Path(kept).parents[1] / "program.json").read_text()
    assert '"-mos=1"' in recorded
    assert '"-ols=2"' in recorded
    for options, words in (
        ({"moss": 1}, "Did you mean 'mos'"),
        ({"ols": 1}, "ols is given twice"),
        ({"aic_num_cores": 4}, "Use the number of cores"),
        ({"mdts_mos": 2}, "expected several"),
    ):
        with pytest.raises(InvalidInput, match=words):
            model.compile(ols=2, ctx_len=32, compiler_options=options)
