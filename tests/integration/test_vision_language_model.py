"""A picture in, tokens out: a tiny LLaVA through export, ONNX Runtime, compiler and device, beside the original."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from qeff_engine import QEFFAutoModel, QEFFAutoModelForImageTextToText, exported
from qeff_engine.errors import InvalidInput
from tests import tiny_llava

PROMPTS = ["w1 <image> w2 w3", "<image> w5", "w9 w8 w7 <image>"]
NUM_TOKENS = 6
CTX_LEN = 32


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llava")
    return directory, tiny_llava.save(directory)


@pytest.fixture(scope="module")
def model(original, tmp_path_factory):
    return QEFFAutoModel.from_pretrained(original[0], cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def graphs(model):
    vision, language = model.export()
    return onnxruntime.InferenceSession(vision), onnxruntime.InferenceSession(language)


@pytest.fixture(scope="module")
def expected(original):
    """Greedy tokens of the original for each prompt and picture, and the logits of the first."""
    return [generated(original[1], prompt=prompt, seed=seed) for seed, prompt in enumerate(PROMPTS)]


def generated(model, *, prompt, seed):
    features = tiny_llava.processor()(text=prompt, images=tiny_llava.picture(seed), return_tensors="pt")
    with torch.inference_mode():
        found = model.generate(
            **features, do_sample=False, max_new_tokens=NUM_TOKENS, output_logits=True, return_dict_in_generate=True
        )
    return found.sequences[0, features["input_ids"].shape[1] :].tolist(), found.logits[0][0].numpy()


def described(model):
    return exported.load(model._onnx.directory)


def test_the_class_is_picked_and_the_graphs_have_the_names_of_the_contract(model, graphs):
    assert type(model) is QEFFAutoModelForImageTextToText
    components = described(model).components
    vision, language = components["vision"], components["decoder"]
    assert list(vision.inputs) == ["pixel_values"]
    assert list(vision.outputs) == ["vision_embeds"]
    assert list(language.inputs)[:4] == ["input_ids", "position_ids", "vision_embeds", "image_idx"]
    assert list(language.outputs)[:3] == ["logits", "image_idx_output", "vision_embeds_RetainedState"]
    assert language.retained == ["vision_embeds", *(f"past_{kind}.{i}" for i in (0, 1) for kind in ("key", "value"))]
    assert language.symbols == ["batch_size", "seq_len", "ctx_len"]


def test_no_weight_is_written(model, graphs):
    directory = model._onnx.directory
    assert [path.name for path in directory.glob("*.side.bin")] == []
    weights = model._snapshot.directory / "model.safetensors"
    assert (directory / "model.safetensors").samefile(weights)


@pytest.mark.parametrize("chunk", [3, 16])
def test_a_batch_in_chunks_gives_the_original_logits_and_tokens(graphs, expected, chunk):
    """With chunks of 3 a picture of 4 rows spans two or three of them."""
    vision, language = graphs
    readings = [
        tiny_llava.processor()(text=prompt, images=tiny_llava.picture(seed), return_tensors="np")
        for seed, prompt in enumerate(PROMPTS)
    ]
    embeds = np.concatenate([vision.run(None, {"pixel_values": item["pixel_values"]})[0] for item in readings])
    prompts = [item["input_ids"][0].tolist() for item in readings]
    decoder = Decoder(language, embeds_NVD=embeds)
    tokens = [[] for _ in prompts]
    for first in range(0, max(map(len, prompts)), chunk):
        logits_BV = decoder.run([prompt[first : first + chunk] for prompt in prompts], first=[first] * 3, width=chunk)
        for row, prompt in enumerate(prompts):
            if first < len(prompt) <= first + chunk:
                np.testing.assert_allclose(logits_BV[row], expected[row][1], atol=1e-4)
                tokens[row].append(int(logits_BV[row].argmax()))
    for step in range(NUM_TOKENS - 1):
        logits_BV = decoder.run([row[-1:] for row in tokens], first=[len(prompt) + step for prompt in prompts], width=1)
        for row, logits_V in zip(tokens, logits_BV, strict=True):
            row.append(int(logits_V.argmax()))
    assert tokens == [item[0] for item in expected]


class Decoder:
    """The language graph in ONNX Runtime with its states kept between calls."""

    def __init__(self, session, *, embeds_NVD):
        self.session = session
        self.outputs = [item.name for item in session.get_outputs()]
        sizes = {"batch_size": len(embeds_NVD), "ctx_len": CTX_LEN}
        self.states = {
            item.name: np.zeros([sizes.get(axis, axis) for axis in item.shape], np.float32)
            for item in session.get_inputs()
            if item.name.startswith("past_")
        }
        self.states |= {"vision_embeds": embeds_NVD, "image_idx": np.zeros((len(embeds_NVD), 1), np.int64)}

    def run(self, chunks, *, first, width):
        ids, positions = np.zeros((len(chunks), width), np.int64), np.full((len(chunks), width), -1)
        for row, tokens in enumerate(chunks):
            ids[row, : len(tokens)] = tokens
            positions[row, : len(tokens)] = first[row] + np.arange(len(tokens))
        feeds = {"input_ids": ids, "position_ids": positions, **self.states}
        found = dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        for name in self.states:
            self.states[name] = found["image_idx_output" if name == "image_idx" else name + exported.RETAINED]
        return found["logits"][:, 0]


def test_two_programs_on_a_device_give_the_original_tokens(model, expected, simulated_sdk_root, monkeypatch):
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    paths = model.compile(num_cores=8, prefill_seq_len=3, ctx_len=CTX_LEN, batch_size=2)
    assert sorted(paths) == ["lang_qpc_path", "vision_qpc_path"]
    pictures = [tiny_llava.picture(seed) for seed in range(len(PROMPTS))]
    result = model.generate(prompts=PROMPTS, images=pictures, generation_len=NUM_TOKENS)
    assert result.generated_ids == [tokens for tokens, _ in expected]
    assert result.simulated
    assert 0 < result.prefill_time < result.total_time


def test_the_run_stage_compares_with_the_original(model, simulated_sdk_root, monkeypatch, tmp_path):
    """As the farm runs it: a directory of pictures beside program and snapshot, parity in the measurement."""
    from qeff_engine import pipeline, spec, stage

    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    model.compile(num_cores=8, prefill_seq_len=3, ctx_len=CTX_LEN, batch_size=2)
    for name in ("out", "work", "images"):
        (tmp_path / name).mkdir()
    tiny_llava.picture(0).save(tmp_path / "images" / "0.png")
    inputs = {"program": model._program.directory, "snapshot": model._snapshot.directory, "images": tmp_path / "images"}
    context = stage.StageContext(out=tmp_path / "out", work=tmp_path / "work", inputs=inputs)
    run_spec = spec.RunSpec(prompts=tuple(PROMPTS[:2]), generation_len=4)
    figures = pipeline.run_stage(run_spec, context=context).figures
    assert (figures["tokens_equal"], figures["num_tokens_equal"]) == (True, 8)
    assert figures["vision_s"] > 0
    measurement = json.loads((tmp_path / "out" / "measurement.json").read_text())
    assert measurement["prompt_tokens"][1][:4] == [tiny_llava.IMAGE_TOKEN] * 4


def test_a_prompt_without_pictures_is_refused(model, simulated_sdk_root, monkeypatch):
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    model.compile(num_cores=8, prefill_seq_len=3, ctx_len=CTX_LEN, batch_size=2)
    with pytest.raises(InvalidInput, match="images is empty"):
        model.generate(prompts=PROMPTS)
