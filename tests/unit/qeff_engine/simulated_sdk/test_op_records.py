"""The operations that the compiler finds in a graph are those that the same network's geometry gives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import convolutional, geometries
from qeff_engine.simulated_sdk import network_description, op_records, operations, qpc_container, shapes
from tests import exported_decoder, tiny
from tests.unit.qeff_engine.simulated_sdk import graphs

_FP16 = op_records.Forms(to_fp16=True, mxfp6=False)
_SPECIALIZATIONS = [
    {"batch_size": "2", "seq_len": "16", "ctx_len": "64"},
    {"batch_size": "2", "seq_len": "1", "ctx_len": "64"},
]
_LLAMA = geometries.Decoder(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocabulary=260)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("llama")
    _, onnx_dir, _ = exported_decoder.make(tiny.save_model(root / "source", "llama"), root)
    return next(onnx_dir.glob("*.onnx"))


@pytest.mark.parametrize("precision", ["fp16", "mxfp6"])
def test_an_exported_decoder_does_what_its_geometry_says(llama, simulated_sdk_root, tmp_path, precision):
    specializations = tmp_path / "specializations.json"
    specializations.write_text(json.dumps({"specializations": _SPECIALIZATIONS}))
    flags = ["-convert-to-fp16", "-retained-state", "-aic-num-cores=4", "-ols=2", "-mos=1,3"]
    flags += ["-mxfp6-matmul"] if precision == "mxfp6" else []
    done = subprocess.run(
        [
            *(simulated_sdk_root / "exec/qaic-compile", "-aic-hw", f"-m={llama}", f"-aic-binary-dir={tmp_path}/qpc"),
            *(f"-network-specialization-config={specializations}", *flags),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "qpc" / qpc_container.FILE_NAME
    segment = qpc_container.read_segments(path)[qpc_container.NETWORK_DESCRIPTION]
    network = network_description.parse(qpc_container.read_segment(path, segment=segment))
    assert (network.ols, network.mos, network.depth_first) == (2, 3, False)
    for work, symbols in zip(network.works, _SPECIALIZATIONS, strict=True):
        expected = geometries.decoder_work(
            _LLAMA,
            batch=int(symbols["batch_size"]),
            tokens=int(symbols["seq_len"]),
            ctx_len=int(symbols["ctx_len"]),
            precision=precision,
        )
        assert set(work.operations) == set(expected.operations)
        assert (work.reductions, work.reduction_bytes) == (expected.reductions, expected.reduction_bytes)


def _weight(name, dims):
    return numpy_helper.from_array(np.zeros(dims, np.float32), name)


def _convolutional_graph(*, depthwise):
    """A stem, pooling, a 3 x 3 and a depthwise or grouped convolution, global pooling, a dense layer."""
    groups = 16 if depthwise else 4
    nodes = [
        helper.make_node("Conv", ["x", "stem", "bias"], ["a"], strides=[2, 2], pads=[3, 3, 3, 3]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "first"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["d", *["scale"] * 4], ["e"]),
        helper.make_node("Conv", ["e", "second"], ["f"], pads=[1, 1, 1, 1], strides=[2, 2], group=groups),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("BatchNormalization", ["g", *["scale"] * 4], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["i"]),
        helper.make_node("Flatten", ["i"], ["j"]),
        helper.make_node("Gemm", ["j", "dense"], ["y"], transB=1),
    ]
    constants = {"stem": (16, 3, 7, 7), "bias": (16,), "first": (16, 16, 3, 3), "scale": (16,)}
    constants |= {"second": (16, 16 // groups, 3, 3), "dense": (10, 16)}
    model = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["batch", 3, 64, 64])},
        outputs={"y": (TensorProto.FLOAT, ["batch", 10])},
    )
    model.graph.initializer.extend(_weight(name, dims) for name, dims in constants.items())
    return model, groups


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_convolutional_graph_does_what_its_geometry_says(depthwise):
    model, groups = _convolutional_graph(depthwise=depthwise)
    found = shapes.specialize(model, symbols={"batch": 5}, forms=_FP16).operations
    net = convolutional.Net(batch=5, precision="fp16", side=64)
    net.conv(16, kernel=7, stride=2)
    net.pool(3, stride=2, padding=1)
    net.conv(16, kernel=3)
    net.conv(16, kernel=3, stride=2, groups=groups)
    net.scale()
    net.pool(net.side, stride=1)
    net.dense(10)
    assert found == operations.merged(net.operations)


def test_weights_of_experts_that_are_chosen_at_run_time_are_read_as_often_as_chosen():
    nodes = [
        helper.make_node("Gather", ["experts", "chosen"], ["weights"]),
        helper.make_node("Transpose", ["weights"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    model = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [2, 3, 16]), "chosen": (TensorProto.INT64, [2])},
        outputs={"y": (TensorProto.FLOAT, [2, 3, 8])},
    )
    model.graph.initializer.append(_weight("experts", (64, 8, 16)))
    (found,) = shapes.specialize(model, symbols={}, forms=op_records.Forms(to_fp16=True, mxfp6=True)).operations
    assert (found.kind, found.precision) == ("matmul", "fp16")
    assert (found.weights, found.weight_bytes, found.flops) == (2 * 8 * 16, 2 * 2 * 8 * 16, 2 * 2 * 3 * 8 * 16)


def test_without_conversion_weights_are_read_in_fp32():
    model, _ = _convolutional_graph(depthwise=False)
    wide = shapes.specialize(model, symbols={"batch": 1}, forms=op_records.Forms(to_fp16=False, mxfp6=True))
    half = shapes.specialize(model, symbols={"batch": 1}, forms=_FP16)
    assert {item.precision for item in wide.operations} == {"fp32"}
    assert [item.weight_bytes for item in wide.operations] == [2 * item.weight_bytes for item in half.operations]


def test_what_is_empty_at_a_size_is_no_work_there():
    model = graphs.model(
        [
            helper.make_node("Slice", ["x", "start", "end", "axis"], ["rest"]),
            helper.make_node("MatMul", ["rest", "weight"], ["made"]),
            helper.make_node("Exp", ["made"], ["y"]),
        ],
        inputs={"x": (TensorProto.FLOAT, ["rows", 8])},
        outputs={"y": (TensorProto.FLOAT, ["rest", 4])},
    )
    model.graph.initializer.append(_weight("weight", (8, 4)))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("start", 4), ("end", 1000), ("axis", 0))
    )
    kinds = {
        rows: [item.kind for item in shapes.specialize(model, symbols={"rows": rows}, forms=_FP16).operations]
        for rows in (4, 6)
    }
    assert kinds == {4: [], 6: ["matmul", "activation"]}
