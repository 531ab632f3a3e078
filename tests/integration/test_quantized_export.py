"""A quantized checkpoint exported: ONNX Runtime computes what the dequantized weights compute in transformers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qeff_engine import exported, pipeline, spec, stage
from tests import tiny
from tests.unit.qeff_engine.quantizers import checkpoints, dequantizing

PROMPT = list(b"the quick brown fox")
NUM_TOKENS, CTX_LEN = 8, 40
# float32 sums in another order, through two layers
LOGITS_LIMIT = 1e-3


def export(snapshot, directory):
    """The exported decoder of a checkpoint: its description and its ONNX file."""
    out, work = directory / "onnx", directory / "work"
    out.mkdir()
    work.mkdir()
    context = stage.StageContext(out=out, work=work, inputs={stage.SNAPSHOT: snapshot})
    pipeline.run_stage(spec.ExportSpec(), context=context)
    component = exported.load(out).components[exported.DECODER]
    return component, out / component.file


def decode(component, path):
    """Greedy tokens and the logits of each step, [steps, vocab], with the KV in retained states."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sizes = {"batch_size": 1, "full_batch_size": 1, "ctx_len": CTX_LEN}
    states = {
        name: np.zeros([sizes[axis] if isinstance(axis, str) else axis for axis in component.inputs[name].shape],
                       component.inputs[name].dtype)
        for name in component.retained
    }  # fmt: skip
    tokens, logits = [], []
    ids, positions = PROMPT, list(range(len(PROMPT)))
    for _ in range(NUM_TOKENS):
        feeds = {"input_ids": np.array([ids]), "position_ids": np.array([positions]), **states}
        outputs = dict(zip(component.outputs, session.run(list(component.outputs), feeds), strict=True))
        states = {name: outputs[name + exported.RETAINED] for name in states}
        logits.append(outputs["logits"][0, -1])
        ids, positions = [int(logits[-1].argmax())], [positions[-1] + 1]
        tokens += ids
    return tokens, np.stack(logits)


@torch.no_grad()
def decode_with_transformers(model):
    """The same from the dequantized model, without a cache."""
    ids, logits = list(PROMPT), []
    for _ in range(NUM_TOKENS):
        logits.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].numpy())
        ids.append(int(logits[-1].argmax()))
    return ids[len(PROMPT) :], np.stack(logits)


def assert_same_as_dequantized(component, path, snapshot):
    tokens, logits = decode(component, path)
    expected_tokens, expected_logits = decode_with_transformers(dequantizing.load(snapshot))
    assert tokens == expected_tokens
    np.testing.assert_allclose(logits, expected_logits, atol=LOGITS_LIMIT)


def num_nodes(path, op_type):
    graph = onnx.load(path, load_external_data=False)
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    return sum(node.op_type == op_type for node in nodes)


@pytest.mark.parametrize(("model_type", "method"), [("llama", "gptq"), ("llama", "awq"), ("qwen2", "rtn")])
def test_tokens_are_those_of_the_dequantized_model(tmp_path, model_type, method):
    float_snapshot = checkpoints.save(tmp_path / "float", model_type)
    checkpoints.quantized(float_snapshot, tmp_path / "quantized", method=method)
    component, path = export(tmp_path / "quantized", tmp_path)
    assert num_nodes(path, "MatMulNBits") in (7, 14)  # seven of a layer, in a function or not
    assert component.outputs["logits"].shape[-1] == tiny.VOCAB_SIZE  # the head is float
    assert_same_as_dequantized(component, path, tmp_path / "quantized")


def test_mixed_float_and_quantized_linears_are_exported(tmp_path):
    """Keys and values four wide stay in float, in bfloat16 as they are stored."""
    widths = {"num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 4}
    float_snapshot = checkpoints.save(tmp_path / "float", "llama", dtype=torch.bfloat16, **widths)
    checkpoints.quantized(float_snapshot, tmp_path / "quantized", method="awq")
    component, path = export(tmp_path / "quantized", tmp_path)
    assert num_nodes(path, "MatMulNBits") in (5, 10)
    assert_same_as_dequantized(component, path, tmp_path / "quantized")


def test_float_experts_between_quantized_linears_are_exported(tmp_path):
    float_snapshot = checkpoints.save(tmp_path / "float", "mixtral")
    checkpoints.quantized(float_snapshot, tmp_path / "quantized", method="gptq")
    component, path = export(tmp_path / "quantized", tmp_path)
    assert num_nodes(path, "MatMulNBits") in (4, 8)
    assert_same_as_dequantized(component, path, tmp_path / "quantized")
