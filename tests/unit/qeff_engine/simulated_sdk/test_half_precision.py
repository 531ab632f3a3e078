"""fp16 arithmetic: overflow, underflow and rounding of every operator, as numpy's own fp16 shows them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import fp16_graphs, node_precision, qpc_container, refusal
from tests.unit.qeff_engine.simulated_sdk import graphs

# Beside ordinary numbers: what overflows when squared or added, ties, subnormal numbers, what is lost against others.
_X = np.array(
    [0.1, -3.7, 300.0, -255.9, 7e4, 65519.0, 65504.0, 2049.0, 2e-4, 3e-8, -6e-5, 0.0, 1e-3, -999.5, 0.33, 12.0],
    np.float32,
)
_W_KN = np.random.default_rng(5).normal(size=(16, 24)).astype(np.float32)


def _chain(kind=TensorProto.FLOAT, *, in_function=False, third=3.1):
    """((x * x + x) / 3.1 - x) moved about and halved."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squared"], name="square"),
        helper.make_node("Add", ["squared", "x"], ["sum"]),
        helper.make_node("Div", ["sum", "third"], ["quotient"]),
        helper.make_node("Sub", ["quotient", "x"], ["difference"]),
        helper.make_node("Unsqueeze", ["difference", "zero"], ["row"]),
        helper.make_node("Squeeze", ["row", "zero"], ["again"]),
        helper.make_node("Neg", ["again"], ["negative"]),
        helper.make_node("Mul", ["negative", "half"], ["y"]),
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"third": np.asarray(third, dtype), "half": np.asarray(0.5, dtype), "zero": np.array([0])}
    functions = []
    if in_function:
        names = ["x", *weights]
        functions = [helper.make_function("f", "F", names, ["y"], nodes, [helper.make_opsetid("", 18)])]
        nodes = [helper.make_node("F", names, ["y"], domain="f")]
    shape = {"x": (kind, [len(_X)])}
    return graphs.model(
        nodes, inputs=shape, outputs={"y": (kind, [len(_X)])}, weights=weights, opsets={"f": 1}, functions=functions
    )


def _by_numpy(x, *, third=3.1):
    """The chain as numpy computes it in the type of ``x``."""
    third, half = x.dtype.type(third), x.dtype.type(0.5)
    with np.errstate(all="ignore"):
        return -((x * x + x) / third - x) * half


def _product(*, in_function=False):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    functions = []
    if in_function:
        functions = [helper.make_function("f", "F", ["x", "w"], ["y"], nodes, [helper.make_opsetid("", 18)])]
        nodes = [helper.make_node("F", ["x", "w"], ["y"], domain="f")]
    return graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [2, 16])},
        outputs={"y": (TensorProto.FLOAT, [2, 24])},
        weights={"w": _W_KN},
        opsets={"f": 1},
        functions=functions,
    )


@pytest.fixture
def run(tmp_path, compile_in, runtime):
    """Compile a graph of ``x`` and ``y`` with flags, run it, return ``y``."""
    clients = []

    def compute(graph, x, *flags, shape=None):
        folder = tmp_path / str(len(clients))
        folder.mkdir()
        assert compile_in(graphs.save(graph, folder), *flags) == 0
        clients.append(graphs.Client(*runtime, program=folder / "qpc"))
        assert clients[-1].activate() == 0
        out = np.zeros(shape or x.shape, x.dtype)
        return clients[-1].call(clients[-1].exec_object(), {"x": x}, outputs={"y": out})["y"]

    yield compute
    for client in clients:
        client.program.deactivate()


@pytest.mark.parametrize("in_function", [False, True])
def test_a_chain_of_operators_equals_numpys_fp16_to_the_bit(run, in_function):
    got = run(_chain(in_function=in_function), _X, "-convert-to-fp16")
    with np.errstate(over="ignore"):
        expected = _by_numpy(_X.astype(np.float16))
    assert np.isinf(expected).any(), "something overflows"
    assert np.isnan(expected).any(), "infinities meet"
    assert ((expected != 0) & (np.abs(expected) < 6e-5)).any(), "something underflows"
    np.testing.assert_array_equal(got, expected.astype(np.float32))
    assert np.mean(got[np.isfinite(got)] != _by_numpy(_X)[np.isfinite(got)]) > 0.5, "rounding can be seen"


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("flags", [(), ("-convert-to-fp16",)])
def test_an_fp16_graph_computes_in_fp16_whatever_is_asked(run, in_function, flags):
    with np.errstate(over="ignore"):
        x = _X.astype(np.float16)
    np.testing.assert_array_equal(run(_chain(TensorProto.FLOAT16, in_function=in_function), x, *flags), _by_numpy(x))


def test_without_conversion_a_graph_stays_fp32(run):
    np.testing.assert_array_equal(run(_chain(), _X), _by_numpy(_X))


def test_the_switch_shows_what_rounding_does(run, monkeypatch):
    monkeypatch.setenv("QAIC_SIM_ACTIVATIONS", "fp32")
    got = run(_chain(third=3.0), _X, "-convert-to-fp16")
    np.testing.assert_array_equal(got, _by_numpy(_X, third=3))


@pytest.mark.parametrize("in_function", [False, True])
def test_a_product_is_rounded_once(run, in_function):
    x = np.random.default_rng(6).normal(size=(2, 16)).astype(np.float32)
    got = run(_product(in_function=in_function), x, "-convert-to-fp16", shape=(2, 24))
    exact = graphs.fp16(x).astype(np.float64) @ graphs.fp16(_W_KN).astype(np.float64)
    assert np.array_equal(got, graphs.fp16(got)), "results are fp16 numbers"
    # Half a step of fp16, and what a sum of 16 products may lose in fp32.
    steps = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
    assert (np.abs(got - exact) <= 0.5 * steps + 16 * 2.0**-24 * (np.abs(x) @ np.abs(_W_KN))).all()


def test_a_product_beyond_fp16_is_infinite_and_a_partial_sum_beyond_it_is_not(run):
    x = np.full((2, 16), 300, np.float32)
    x[1, 8:] = -300
    graph = _product()
    graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((16, 24), 50, np.float32), "w"))
    got = run(graph, x, "-convert-to-fp16", shape=(2, 24))
    np.testing.assert_array_equal(got[0], np.inf)
    np.testing.assert_array_equal(got[1], 0)


@settings(max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40))
def test_the_rounding_nodes_are_numpys_conversion(values):
    import onnxruntime

    x = np.array(values, np.float32)
    graph = graphs.model(
        list(fp16_graphs.rounding("x", output="y")),
        inputs={"x": (TensorProto.FLOAT, ["n"])},
        outputs={"y": (TensorProto.FLOAT, ["n"])},
    )
    (got,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": x})
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize("how", ["by output", "by name", "by operator"])
def test_nodes_that_are_kept_in_fp32_are_not_rounded(run, tmp_path, how, in_function):
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squared"], name="square"),
        helper.make_node("Sqrt", ["squared"], ["y"], name="root"),
    ]
    functions = []
    if in_function:
        functions = [helper.make_function("f", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 18)])]
        nodes = [helper.make_node("F", ["x"], ["y"], domain="f")]
    inputs, outputs = {"x": (TensorProto.FLOAT, [16])}, {"y": (TensorProto.FLOAT, [16])}
    graph = graphs.model(nodes, inputs=inputs, outputs=outputs, opsets={"f": 1}, functions=functions)
    flag = "-keep-original-precision-for-nodes=Mul,Sqrt"
    if how != "by operator":
        names = ["squared", "y"] if how == "by output" else ["square", "root"]
        (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames:\n" + "".join(f"  - {name}\n" for name in names))
        flag = f"-node-precision-info={tmp_path / 'npi.yaml'}"
    np.testing.assert_array_equal(run(graph, _X, "-convert-to-fp16", flag), np.sqrt(_X * _X))
    assert np.isinf(run(graph, _X, "-convert-to-fp16")).any(), "without it, squares overflow"


def test_what_leaves_a_kept_node_is_rounded_where_an_fp16_node_reads_it(run, tmp_path):
    (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames: ['squared',\n  'scaled']\n")
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squared"]),
        helper.make_node("Mul", ["squared", "scale"], ["scaled"]),
        helper.make_node("Neg", ["scaled"], ["y"]),
    ]
    graph = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [16])},
        outputs={"y": (TensorProto.FLOAT, [16])},
        weights={"scale": np.array(1e-5, np.float32)},
    )
    got = run(graph, _X, "-convert-to-fp16", f"-node-precision-info={tmp_path / 'npi.yaml'}")
    # The constant of a node that stays fp32 stays fp32, too.
    np.testing.assert_array_equal(got, -graphs.fp16(_X * _X * np.float32(1e-5)))


def test_a_large_weight_of_a_kept_node_is_stored_as_it_is(run, tmp_path):
    (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames: [y]\n")
    x = np.random.default_rng(7).normal(size=(2, 16)).astype(np.float32)
    got = run(_product(), x, "-convert-to-fp16", f"-node-precision-info={tmp_path / 'npi.yaml'}", shape=(2, 24))
    np.testing.assert_allclose(got, x @ _W_KN, rtol=1e-6, atol=1e-6)


def test_a_name_that_no_node_has_is_reported(run, tmp_path, capsys):
    (tmp_path / "npi.yaml").write_text("FP32NodeInstanceNames: [nothing]\nFP16NodeInstanceNames:\n - squared\n")
    run(_chain(), _X, "-convert-to-fp16", f"-node-precision-info={tmp_path / 'npi.yaml'}")
    assert "[WARNING] Node precision info: the model has no node 'nothing'." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["other: [a]", "- a", "FP32NodeInstanceNames: [a,", "FP32NodeInstanceNames:\n a b"])
def test_a_node_precision_file_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / "npi.yaml").write_text(text)
    with pytest.raises(refusal.Refusal, match=r"node precision info|does not end"):
        node_precision.read_fp32_names(tmp_path / "npi.yaml")
    with pytest.raises(refusal.Refusal, match="Unable to open"):
        node_precision.read_fp32_names(tmp_path / "none.yaml")


def test_constants_beyond_fp16_stay_finite_and_infinite_ones_infinite(run):
    lowest = float(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("Constant", [], ["lowest"], value_float=lowest),
        helper.make_node("Less", ["x", "zero"], ["negative"]),
        helper.make_node("Where", ["negative", "lowest", "x"], ["masked"]),
        helper.make_node("Max", ["masked", "minus_infinity"], ["y"]),
    ]
    graph = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [16])},
        outputs={"y": (TensorProto.FLOAT, [16])},
        weights={"zero": np.array(0, np.float32), "minus_infinity": np.array(-np.inf, np.float32)},
    )
    np.testing.assert_array_equal(run(graph, _X, "-convert-to-fp16"), np.where(_X < 0, -65504, graphs.fp16(_X)))


def test_what_is_known_at_compile_time_is_computed_in_fp32_and_then_rounded(run):
    # 20001 is no fp16 number: its square's root times a 20001st is 1 only if nothing was rounded before.
    nodes = [
        helper.make_node("Mul", ["big", "big"], ["squared"]),
        helper.make_node("Sqrt", ["squared"], ["root"]),
        helper.make_node("Div", ["root", "big"], ["one"]),
        helper.make_node("Mul", ["x", "one"], ["y"]),
    ]
    graph = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [16])},
        outputs={"y": (TensorProto.FLOAT, [16])},
        weights={"big": np.array(20001, np.float32)},
    )
    np.testing.assert_array_equal(run(graph, _X, "-convert-to-fp16"), graphs.fp16(_X))


def test_bodies_of_control_flow_compute_in_fp16(run):
    then = helper.make_graph(
        [helper.make_node("Mul", ["x", "x"], ["a"]), helper.make_node("Sqrt", ["a"], ["then_y"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_y", TensorProto.FLOAT, [16])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_y"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", TensorProto.FLOAT, [16])],
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    graph = graphs.model(
        nodes,
        inputs={"x": (TensorProto.FLOAT, [16])},
        outputs={"y": (TensorProto.FLOAT, [16])},
        weights={"yes": np.array(True)},
    )
    with np.errstate(over="ignore"):
        x = _X.astype(np.float16)
        np.testing.assert_array_equal(run(graph, _X, "-convert-to-fp16"), np.sqrt(x * x).astype(np.float32))


def test_integers_that_become_floating_are_rounded(run):
    graph = graphs.model(
        [
            helper.make_node("Cast", ["x"], ["integers"], to=TensorProto.INT64),
            helper.make_node("Cast", ["integers"], ["y"], to=TensorProto.FLOAT),
        ],
        inputs={"x": (TensorProto.FLOAT, [4])},
        outputs={"y": (TensorProto.FLOAT, [4])},
    )
    x = np.array([2048, 4098, -3, 40000], np.float32)
    np.testing.assert_array_equal(run(graph, x, "-convert-to-fp16"), graphs.fp16(x))


def test_states_that_a_call_moves_are_not_rounded_again(tmp_path, compile_in):
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", "-convert-to-fp16", specializations=graphs.SPECIALIZATIONS) == 0
    container = tmp_path / "qpc" / "programqpc.bin"
    segment = qpc_container.read_segments(container)[qpc_container.NETWORK]
    program = onnx.load_model_from_string(qpc_container.read_segment(container, segment=segment))
    rounded = {node.output[0] for node in program.graph.node if node.name.startswith(fp16_graphs.ROUNDING)}
    assert {"keys_flat", "summed", "logits"} <= rounded
    assert not {"hidden", "keys", "past_key.0_RetainedState"} & rounded
