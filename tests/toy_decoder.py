"""A decoder of a few dozen numbers with the exported contract, and its answers worked out in plain numpy.

One attention head over token embeddings plus position embeddings; logits are similarities with all embeddings. Small
enough to check by a second implementation that knows no cache, no chunks and no padding.

Shape legend: B batch, S tokens of a call, C context, H hidden, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qeff_engine import exported

VOCAB, HIDDEN, MAX_POSITIONS = 32, 16, 64
FILE = "ToyForCausalLM.onnx"

_rng = np.random.default_rng(7)
EMBEDDING_VH = _rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
POSITION_CH = _rng.normal(size=(MAX_POSITIONS, HIDDEN)).astype(np.float32)
OUT_HV = _rng.normal(size=(HIDDEN, VOCAB)).astype(np.float32)


def greedy(prompt: list[int], *, num_tokens: int, eos: frozenset[int] = frozenset()) -> list[int]:
    """Greedy tokens by recomputing everything for every token."""
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        ids = prompt + tokens
        hidden_SH = EMBEDDING_VH[ids] + POSITION_CH[: len(ids)]
        scores_S = hidden_SH @ hidden_SH[-1] / np.sqrt(HIDDEN)
        weights_S = np.exp(scores_S - scores_S.max())
        mixed_H = weights_S @ hidden_SH / weights_S.sum()
        tokens.append(int(((hidden_SH[-1] + mixed_H) @ OUT_HV).argmax()))
        if tokens[-1] in eos:
            break
    return tokens


def export(directory: Path, *, eos: tuple[int, ...] = (), external_data: bool = True) -> exported.ExportedModel:
    """Write graph, weights and ``export.json`` into ``directory``."""
    onnx.save_model(
        _graph(), directory / FILE, save_as_external_data=external_data, location="toy.bin", size_threshold=512
    )
    model = description(eos=eos)
    model.save(directory)
    return model


def description(*, eos: tuple[int, ...] = ()) -> exported.ExportedModel:
    """What ``export.json`` says of the toy."""
    kv = exported.Tensor(dtype="float32", shape=("batch_size", 1, "ctx_len", HIDDEN))
    ids = exported.Tensor(dtype="int64", shape=("batch_size", "seq_len"))
    logits = exported.Tensor(dtype="float32", shape=("batch_size", 1, VOCAB))
    retained = ("past_key.0", "past_value.0")
    component = exported.Component(
        file=FILE,
        inputs={"input_ids": ids, "position_ids": ids, **dict.fromkeys(retained, kv)},
        outputs={"logits": logits, **{name + exported.RETAINED: kv for name in retained}},
    )
    return exported.ExportedModel(
        task="text-generation",
        class_name="ToyForCausalLM",
        model_type="toy",
        vocab_size=VOCAB,
        eos_token_ids=eos,
        max_positions=MAX_POSITIONS,
        num_parameters=EMBEDDING_VH.size + POSITION_CH.size + OUT_HV.size,
        components={exported.DECODER: component},
    )


def _graph() -> onnx.ModelProto:
    def value(name: str, dtype: int, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, shape)

    kv_shape: list[int | str] = ["batch_size", 1, "ctx_len", HIDDEN]
    inputs = [
        value("input_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
        value("position_ids", TensorProto.INT64, ["batch_size", "seq_len"]),
        value("past_key.0", TensorProto.FLOAT, kv_shape),
        value("past_value.0", TensorProto.FLOAT, kv_shape),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["batch_size", 1, VOCAB]),
        value("past_key.0_RetainedState", TensorProto.FLOAT, kv_shape),
        value("past_value.0_RetainedState", TensorProto.FLOAT, kv_shape),
    ]
    arrays = {
        "embedding": EMBEDDING_VH,
        "positions": POSITION_CH,
        "out": OUT_HV,
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "one_f": np.array(1, np.float32),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "low": np.array(-1e4, np.float32),
        "scale": np.array(1 / np.sqrt(HIDDEN), np.float32),
    }
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [*_hidden_nodes(), *_cache_nodes("key"), *_cache_nodes("value"), *_attention_nodes()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _hidden_nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Gather", ["embedding", "input_ids"], ["embedded"]),
        node("Max", ["position_ids", "zero"], ["place"]),
        node("Gather", ["positions", "place"], ["placed"]),
        node("Add", ["embedded", "placed"], ["hidden"]),
        # written[b, s, c] is 1 where token s goes to place c; a token at -1 goes nowhere
        node("Shape", ["past_key.0"], ["num_places"], start=2, end=3),
        node("Squeeze", ["num_places"], ["num_places_0"]),
        node("Range", ["zero", "num_places_0", "one"], ["places"]),
        node("Unsqueeze", ["position_ids", "axis2"], ["position_BS1"]),
        node("Equal", ["position_BS1", "places"], ["written_bool"]),
        node("Cast", ["written_bool"], ["written"], to=TensorProto.FLOAT),
        node("Transpose", ["written"], ["written_BCS"], perm=[0, 2, 1]),
        node("MatMul", ["written_BCS", "hidden"], ["new_BCH"]),
        node("ReduceMax", ["written_BCS"], ["touched"], axes=[2], keepdims=1),
        node("Sub", ["one_f", "touched"], ["kept"]),
        node("Unsqueeze", ["kept", "axis1"], ["kept_B1C1"]),
        node("Unsqueeze", ["new_BCH", "axis1"], ["new_B1CH"]),
    ]


def _cache_nodes(kind: str) -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Mul", [f"past_{kind}.0", "kept_B1C1"], [f"old_{kind}"]),
        node("Add", [f"old_{kind}", "new_B1CH"], [f"past_{kind}.0_RetainedState"]),
        node("Squeeze", [f"past_{kind}.0_RetainedState", "axis1"], [f"{kind}_BCH"]),
    ]


def _attention_nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        # the query is the last real token of each row, the one with the highest position
        node("ReduceMax", ["position_ids"], ["newest"], axes=[1], keepdims=1),
        node("Equal", ["position_ids", "newest"], ["is_newest"]),
        node("Cast", ["is_newest"], ["selected"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["selected", "axis1"], ["selected_B1S"]),
        node("MatMul", ["selected_B1S", "hidden"], ["query_B1H"]),
        node("Transpose", ["key_BCH"], ["key_BHC"], perm=[0, 2, 1]),
        node("MatMul", ["query_B1H", "key_BHC"], ["raw"]),
        node("Mul", ["raw", "scale"], ["scores"]),
        node("Unsqueeze", ["newest", "axis2"], ["newest_B11"]),
        node("LessOrEqual", ["places", "newest_B11"], ["visible"]),
        node("Where", ["visible", "scores", "low"], ["masked"]),
        node("Softmax", ["masked"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value_BCH"], ["mixed"]),
        node("Add", ["query_B1H", "mixed"], ["state"]),
        node("MatMul", ["state", "out"], ["logits"]),
    ]
