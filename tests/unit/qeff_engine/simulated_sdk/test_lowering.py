"""What the compiler does to weights: which are packed, in which form they are stored, how they are streamed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qeff_engine.simulated_sdk import mx_formats, qpc_container
from tests.unit.qeff_engine.simulated_sdk import graphs

_rng = np.random.default_rng(11)
_X = _rng.normal(size=(3, 64)).astype(np.float32)
_W_KN = _rng.normal(size=(64, 48)).astype(np.float32)


def _stored(program):
    """The stored constants by name: form, and the table's record."""
    path = program / "programqpc.bin"
    segments = qpc_container.read_segments(path)
    table = json.loads(qpc_container.read_segment(path, segment=segments["constantsdesc.bin"]))
    return {record["name"]: record for record in table}


def _bf16(name, values):
    """A tensor that holds the upper halves of fp32 numbers."""
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, bits.tobytes(), raw=True)


def _layer(nodes, inputs):
    return helper.make_function("qeff.layers", "Layer", inputs, ["out"], nodes, [helper.make_opsetid("", 18)])


_CALL = helper.make_node("Layer", ["x", "w"], ["y"], domain="qeff.layers")
_TRANSPOSED = [
    helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
    helper.make_node("MatMul", ["x", "wt"], ["y"]),
]

# Name -> nodes, stored weight, functions, axis of the stored weight along which the product reduces.
_PRODUCTS = {
    "plain": ([helper.make_node("MatMul", ["x", "w"], ["y"])], _W_KN, [], 0),
    "transposed": (_TRANSPOSED, _W_KN.T.copy(), [], 1),
    "gemm": ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], _W_KN.T.copy(), [], 1),
    "in a function": ([_CALL], _W_KN, [_layer([helper.make_node("MatMul", ["x", "w"], ["out"])], ["x", "w"])], 0),
    "transposed in a function": (
        [_CALL],
        _W_KN.T.copy(),
        [_layer([_TRANSPOSED[0], helper.make_node("MatMul", ["x", "wt"], ["out"])], ["x", "w"])],
        1,
    ),
}


@pytest.fixture
def run(tmp_path, compile_in, runtime, fp32_arithmetic):
    """Compile a graph with one input ``x`` and one output ``y``, run it on :data:`_X`, return ``y``."""
    clients = []

    def compute(graph, *flags):
        path = graphs.save(graph, tmp_path)
        assert compile_in(path, *flags) == 0
        clients.append(graphs.Client(*runtime, program=tmp_path / "qpc"))
        assert clients[-1].activate() == 0
        out = np.zeros((3, 48), np.float32)
        return clients[-1].call(clients[-1].exec_object(), {"x": _X}, outputs={"y": out})["y"]

    yield compute
    for client in clients:
        client.program.deactivate()


def _graph(nodes, weights, functions=()):
    return graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [3, 64])},
        outputs={"y": (TensorProto.FLOAT, [3, 48])},
        weights=weights,
        opsets={"qeff.layers": 1} if functions else {},
        functions=functions,
    )


@pytest.mark.parametrize("form", _PRODUCTS)
def test_a_products_weight_is_packed_along_its_reduction_axis(run, tmp_path, form):
    nodes, weight, functions, axis = _PRODUCTS[form]
    got = run(_graph(nodes, {"w": weight}, functions), "-convert-to-fp16", "-mxfp6-matmul")
    packed = graphs.fp16(mx_formats.round_fp6(weight, axis=axis))
    np.testing.assert_allclose(got, _X @ (packed if axis == 0 else packed.T), rtol=1e-5, atol=1e-5)
    (record,) = _stored(tmp_path / "qpc").values()
    assert record["form"] == "mxfp6"
    assert record["bytes"] == weight.size * 6.25 / 8


@pytest.mark.parametrize("form", ["plain", "transposed"])
def test_a_last_block_that_is_not_full_is_packed_too(tmp_path, compile_in, runtime, fp32_arithmetic, form):
    nodes, weight, _, axis = _PRODUCTS[form]
    weight = np.ascontiguousarray(weight[:40] if axis == 0 else weight[:, :40])
    graph = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [3, 40])},
        outputs={"y": (TensorProto.FLOAT, [3, 48])},
        weights={"w": weight},
    )
    assert compile_in(graphs.save(graph, tmp_path), "-convert-to-fp16", "-mxfp6-matmul") == 0
    client = graphs.Client(*runtime, program=tmp_path / "qpc")
    assert client.activate() == 0
    x = np.ascontiguousarray(_X[:, :40])
    got = client.call(client.exec_object(), {"x": x}, outputs={"y": np.zeros((3, 48), np.float32)})["y"]
    packed = mx_formats.round_fp6(weight, axis=axis)
    np.testing.assert_allclose(got, x @ (packed if axis == 0 else packed.T), rtol=1e-5, atol=1e-5)


def test_a_cast_behind_a_bf16_weight_is_part_of_its_form(run, tmp_path):
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["y"]),
    ]
    graph = _graph(nodes, {})
    graph.graph.initializer.append(_bf16("w", _W_KN))
    got = run(graph, "-convert-to-fp16")
    truncated = (_W_KN.view(np.uint32) & 0xFFFF0000).view(np.float32)
    np.testing.assert_allclose(got, _X @ graphs.fp16(truncated), rtol=1e-5, atol=1e-5)
    assert [record["form"] for record in _stored(tmp_path / "qpc").values()] == ["float16"]


def test_a_weight_that_is_also_added_stays_fp16(run, tmp_path):
    nodes = [
        helper.make_node("Add", ["w", "w"], ["doubled"]),
        helper.make_node("MatMul", ["x", "doubled"], ["y"]),
    ]
    got = run(_graph(nodes, {"w": _W_KN}), "-convert-to-fp16", "-mxfp6-matmul")
    np.testing.assert_allclose(got, _X @ (2 * graphs.fp16(_W_KN)), rtol=1e-5, atol=1e-5)
    assert [record["form"] for record in _stored(tmp_path / "qpc").values()] == ["float16"]


def test_values_beyond_fp16_become_its_largest_number(run):
    weight = _W_KN.copy()
    weight[0, :] = 1e6
    got = run(_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}), "-convert-to-fp16")
    weight[0, :] = 65504
    np.testing.assert_allclose(got, _X @ graphs.fp16(weight), rtol=1e-5, atol=1e-2)


def test_without_conversion_weights_stay_as_they_are(run, tmp_path):
    got = run(_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _W_KN}))
    np.testing.assert_allclose(got, _X @ _W_KN, rtol=1e-5, atol=1e-5)
    assert [record["form"] for record in _stored(tmp_path / "qpc").values()] == ["float"]


def test_a_weight_that_a_branch_captures_keeps_its_name(run):
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["product"])],
        "then",
        [],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [3, 48])],
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)]
    got = run(_graph(nodes, {"w": _W_KN, "yes": np.array(True)}), "-convert-to-fp16", "-mxfp6-matmul")
    np.testing.assert_allclose(got, _X @ graphs.fp16(_W_KN), rtol=1e-5, atol=1e-5)


_PEAK = """
import resource, sys
from pathlib import Path
from qeff_engine.simulated_sdk import compiler_cli
code = compiler_cli.main(sys.argv[2:], root=Path(sys.argv[1]))
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize("axis", [0, 1])
def test_memory_of_a_compile_does_not_grow_with_the_weights(tmp_path, simulated_sdk_root, axis):
    peaks = []
    for rows in (64, 48 << 10):
        folder = tmp_path / str(rows)
        folder.mkdir()
        shape = (512, rows) if axis == 0 else (rows, 512)
        weights = folder / "weights.bin"
        with weights.open("wb") as file:
            file.truncate(rows * 512 * 4)
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="weights.bin")
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        if axis == 1:
            nodes = [_TRANSPOSED[0], _TRANSPOSED[1]]
        graph = graphs.model(
            nodes, inputs={"x": (TensorProto.FLOAT, [1, 512])}, outputs={"y": (TensorProto.FLOAT, [1, rows])}
        )
        graph.graph.initializer.append(tensor)
        onnx.save_model(graph, folder / "model.onnx")
        line = graphs.command(folder / "model.onnx", "-convert-to-fp16", "-mxfp6-matmul")
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, simulated_sdk_root, *line], capture_output=True, text=True, check=True
        )
        code, peak = done.stdout.splitlines()[-1].split()
        assert code == "0"
        peaks.append(int(peak))
    # The large weight has 96 MB; mapped pages of its file count while they are read.
    assert peaks[1] - peaks[0] < 40e6


def test_a_function_with_a_constant_negative_index_still_counts_from_the_end(run):
    layer = _layer(
        [
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([-1]))),
            helper.make_node("Gather", ["x", "last"], ["row"], axis=0),
            helper.make_node("MatMul", ["row", "w"], ["product"]),
            helper.make_node("Expand", ["product", "shape"], ["out"]),
        ],
        ["x", "w", "shape"],
    )
    call = helper.make_node("Layer", ["x", "w", "shape"], ["y"], domain="qeff.layers")
    got = run(_graph([call], {"w": _W_KN, "shape": np.array([3, 48])}, [layer]))
    np.testing.assert_allclose(got, np.repeat(_X[-1:] @ _W_KN, 3, axis=0), rtol=1e-5, atol=1e-5)


def _compiled_from_file(folder, compile_in, *, kind, fill, flags):
    """The program of a product whose weight [512, 1024] lies in a file that ``fill`` writes."""
    folder.mkdir()
    tensor = TensorProto(name="w", data_type=kind, dims=(512, 1024), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    tensor.external_data.add(key="offset", value="4096")
    with (folder / "weights.bin").open("wb") as file:
        fill(file)
    nodes = [
        helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w32"], ["y"]),
    ]
    graph = graphs.model(
        nodes, inputs={"x": (TensorProto.FLOAT, [1, 512])}, outputs={"y": (TensorProto.FLOAT, [1, 1024])}
    )
    graph.graph.initializer.append(tensor)
    onnx.save_model(graph, folder / "model.onnx")
    assert compile_in(folder / "model.onnx", *flags) == 0
    return folder / "qpc" / "programqpc.bin"


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("flags", [(), ("-convert-to-fp16",), ("-convert-to-fp16", "-mxfp6-matmul")])
def test_holes_of_a_checkpoint_are_holes_of_the_program_and_read_as_its_zeros(tmp_path, compile_in, kind, flags):
    size = 4096 + 512 * 1024 * helper.tensor_dtype_to_np_dtype(kind).itemsize

    def with_hole(file):
        file.truncate(size)

    def with_zeros(file):
        file.write(bytes(size))

    sparse = _compiled_from_file(tmp_path / "sparse", compile_in, kind=kind, fill=with_hole, flags=flags)
    dense = _compiled_from_file(tmp_path / "dense", compile_in, kind=kind, fill=with_zeros, flags=flags)
    assert sparse.read_bytes() == dense.read_bytes()
    assert 512 * sparse.stat().st_blocks < 64 << 10 < 512 * dense.stat().st_blocks


@pytest.mark.parametrize("in_kernel", [True, False])
def test_fp16_weights_are_stored_as_they_are(tmp_path, compile_in, monkeypatch, in_kernel):
    values = np.random.default_rng(1).normal(size=(512, 1024)).astype(np.float16)

    def fill(file):
        file.write(bytes(4096) + values.tobytes())

    if not in_kernel:
        # As between file systems that cannot do it.
        monkeypatch.setattr("os.copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid link")))
    path = _compiled_from_file(
        tmp_path / "fp16", compile_in, kind=TensorProto.FLOAT16, fill=fill, flags=("-convert-to-fp16",)
    )
    (record,) = _stored(path.parent).values()
    segment = qpc_container.read_segments(path)[qpc_container.CONSTANTS]
    stored = path.read_bytes()[segment.start + record["offset"] :][: record["bytes"]]
    assert stored == values.tobytes()
