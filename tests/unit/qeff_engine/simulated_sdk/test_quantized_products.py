"""4-bit products: the compiler expands them, checked against ONNX Runtime's own kernel and a plain formula."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import mx_formats, qpc_container
from tests.unit.qeff_engine.simulated_sdk import graphs

_N, _BLOCK = 48, 32
_rng = np.random.default_rng(17)


def _case(columns, *, with_zeros=True):
    """Integers, and the initializers that hold them."""
    blocks = -(-columns // _BLOCK)
    elements = _rng.integers(0, 16, (_N, blocks, _BLOCK), dtype=np.uint8)
    scales = _rng.uniform(0.01, 0.1, (_N, blocks)).astype(np.float32)
    zeros = _rng.integers(0, 16, (_N, blocks + blocks % 2), dtype=np.uint8)
    tensors = {"q": elements[..., ::2] | (elements[..., 1::2] << 4), "s": scales}
    if with_zeros:
        tensors["z"] = zeros[:, ::2] | (zeros[:, 1::2] << 4)
    middle = zeros[:, :blocks] if with_zeros else np.full((_N, blocks), 8)
    values_NK = ((elements - middle[..., None].astype(np.float32)) * scales[..., None]).reshape(_N, -1)[:, :columns]
    return values_NK.astype(np.float32), tensors


def _node(inputs, output, columns):
    settings = {"K": columns, "N": _N, "bits": 4, "block_size": _BLOCK}
    return helper.make_node("MatMulNBits", inputs, [output], domain="com.microsoft", name="/q_proj", **settings)


def _graph(columns, tensors, *, in_function=False):
    names = list(tensors)
    nodes, functions = [_node(["x", *names], "y", columns)], []
    if in_function:
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        body = [_node(["a", *(f"p{name}" for name in names)], "out", columns)]
        parameters = ["a", *(f"p{name}" for name in names)]
        functions = [helper.make_function("qeff.layers", "Layer", parameters, ["out"], body, imports)]
        nodes = [helper.make_node("Layer", ["x", *names], ["y"], domain="qeff.layers")]
    return graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, ["rows", columns])},
        outputs={"y": (TensorProto.FLOAT, ["rows", _N])},
        weights=tensors,
        opsets={"com.microsoft": 1, "qeff.layers": 1},
        functions=functions,
    )


@pytest.fixture
def run(tmp_path, compile_in, runtime, fp32_arithmetic):
    clients = []

    def compute(graph, x, *flags):
        path = graphs.save(graph, tmp_path)
        assert compile_in(path, *flags, specializations=[{"rows": str(len(x))}]) == 0
        clients.append(graphs.Client(*runtime, program=tmp_path / "qpc"))
        assert clients[-1].activate() == 0
        out = {"y": np.zeros((len(x), _N), np.float32)}
        return clients[-1].call(clients[-1].exec_object(), {"x": x}, outputs=out)["y"]

    yield compute
    for client in clients:
        client.program.deactivate()


@pytest.mark.parametrize("columns", [64, 96, 80])
@pytest.mark.parametrize("with_zeros", [True, False])
@pytest.mark.parametrize("in_function", [True, False])
def test_expanded_weights_give_what_the_packed_kernel_gives(run, tmp_path, columns, with_zeros, in_function):
    values_NK, tensors = _case(columns, with_zeros=with_zeros)
    graph = _graph(columns, tensors, in_function=in_function)
    x = _rng.normal(size=(3, columns)).astype(np.float32)
    got = run(graph, x)
    np.testing.assert_allclose(got, x @ values_NK.T, rtol=1e-4, atol=1e-4)
    (kernel,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x})
    np.testing.assert_allclose(got, kernel, rtol=1e-2, atol=2e-2)


def test_expanded_weights_are_packed_and_counted_like_others(run, tmp_path):
    values_NK, tensors = _case(64)
    x = _rng.normal(size=(3, 64)).astype(np.float32)
    got = run(_graph(64, tensors, in_function=True), x, "-convert-to-fp16", "-mxfp6-matmul")
    np.testing.assert_allclose(got, x @ mx_formats.round_fp6(values_NK, axis=1).T, rtol=1e-5, atol=1e-5)
    path = tmp_path / "qpc" / "programqpc.bin"
    table = qpc_container.read_segment(path, segment=qpc_container.read_segments(path)["constantsdesc.bin"])
    (record,) = json.loads(table)
    assert (record["form"], record["bytes"]) == ("mxfp6", _N * 64 * 6.25 / 8)


def test_fp16_rounds_the_expanded_values(run):
    values_NK, tensors = _case(64)
    x = _rng.normal(size=(3, 64)).astype(np.float32)
    got = run(_graph(64, tensors), x, "-convert-to-fp16")
    np.testing.assert_allclose(got, x @ graphs.fp16(values_NK).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fault", ["short", "dynamic", "bits"])
def test_a_form_that_cannot_be_expanded_is_refused(tmp_path, compile_in, capsys, fault):
    _, tensors = _case(64)
    if fault == "short":
        tensors["s"] = tensors["s"][:, :1]
    graph = _graph(64, tensors)
    if fault == "dynamic":
        graph.graph.node.insert(0, helper.make_node("Identity", ["q"], ["q2"]))
        graph.graph.node[1].input[1] = "q2"
    if fault == "bits":
        next(item for item in graph.graph.node[0].attribute if item.name == "bits").i = 2
    assert compile_in(graphs.save(graph, tmp_path), specializations=[{"rows": "1"}]) == 1
    assert "[Operator-'/q_proj'] : MatMulNBits is not supported: " in capsys.readouterr().err
