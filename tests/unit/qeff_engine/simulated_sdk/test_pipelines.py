"""Programs that are cut into a pipeline of devices: what is refused, what each device holds, how long a call takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from qeff_engine.simulated_sdk import cost_model, cost_parameters, devices, network_description, qpc_container, sdk_root
from qeff_engine.simulated_sdk.operations import Work
from tests.unit.qeff_engine.simulated_sdk import graphs

_ROWS, _WIDTH, _MIB = 3, 1024, 1 << 20
_LAYER = helper.make_function(
    "layers",
    "Layer",
    ["x", "w"],
    ["y"],
    [helper.make_node("MatMul", ["x", "w"], ["made"]), helper.make_node("Tanh", ["made"], ["y"])],
    [helper.make_opsetid("", 18)],
)


@pytest.fixture
def layers(tmp_path):
    """Three calls of one layer, the last with its weight turned; the second weight is the third's too."""
    nodes = [
        helper.make_node("Layer", ["x", "w0"], ["a"], domain="layers", name="first"),
        helper.make_node("Layer", ["a", "w1"], ["b"], domain="layers", name="second"),
        helper.make_node("Transpose", ["w1"], ["turned"]),
        helper.make_node("Layer", ["b", "turned"], ["y"], domain="layers", name="third"),
    ]
    shape = (TensorProto.FLOAT, [_ROWS, _WIDTH])
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(size=(_WIDTH, _WIDTH)).astype(np.float32) / 32 for name in ("w0", "w1")}
    model = graphs.model(
        nodes, inputs={"x": shape}, outputs={"y": shape}, weights=weights, opsets={"layers": 1}, functions=[_LAYER]
    )
    return graphs.save(model, tmp_path)


def _flag(directory, *parts, cores=4):
    """A partition file with parts of (devices, nodes)."""
    document = {
        "partitions": [
            {
                "name": f"Partition{number}",
                "devices": [{"deviceId": device, "numCores": cores} for device in numbers],
                **({"nodeList": nodes} if nodes is not None else {}),
            }
            for number, (numbers, nodes) in enumerate(parts)
        ]
    }
    path = directory / "mdp.json"
    path.write_text(json.dumps(document))
    return f"-mdp-load-partition-config={path}"


def _network(program):
    segments = qpc_container.read_segments(program / qpc_container.FILE_NAME)
    described = qpc_container.read_segment(
        program / qpc_container.FILE_NAME, segment=segments[qpc_container.NETWORK_DESCRIPTION]
    )
    return network_description.parse(described)


@pytest.fixture
def compiled(layers, compile_in):
    def make(*parts):
        flags = ["-convert-to-fp16", "-aic-num-cores=4", *([_flag(layers.parent, *parts)] if parts else [])]
        assert compile_in(layers, *flags) == 0
        return layers.parent.joinpath("qpc").rename(layers.parent / f"program-{len(parts)}")

    return make


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([([0], ["first", "second"]), ([1], ["third", "fourth"])], "lists the node 'fourth', of which the graph has 0"),
        ([([0], ["first", "second"]), ([1], ["second", "third"])], "the node 'second' is listed by 'Partition1' and"),
        ([([0], ["first"]), ([1], None)], "'Partition1' has no nodeList"),
        ([([0], ["first"]), ([0], ["second"])], "names 2 devices, expected 1 to 16 different ones"),
        ([([0], ["first"]), ([], ["second"])], "names 1 devices, expected 1 to 16 different ones, each part some"),
        ([([0], ["first"]), ([1], "second")], "nodeList is no list of names"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(layers, compile_in, capsys, parts, text):
    assert compile_in(layers, "-aic-num-cores=4", _flag(layers.parent, *parts)) == 1
    assert text in capsys.readouterr().err
    assert not (layers.parent / "qpc").exists()


def test_each_part_has_its_own_work_and_constants(compiled):
    whole, cut = _network(compiled()), _network(compiled(([0], ["first", "second"]), ([2, 1], ["third"])))
    weight_bytes = _WIDTH * _WIDTH * 2
    assert whole.stages == ()
    assert [stage.devices for stage in cut.stages] == [(0,), (2, 1)]
    assert (cut.num_devices, cut.works) == (3, whole.works), "the work of all is what it was"
    first, second = cut.stages
    # Three equal devices share program and buffers; the second weight is on both parts' devices.
    assert first.dram_bytes - 2 * weight_bytes == pytest.approx((second.dram_bytes - weight_bytes) / 2, abs=1)
    assert (
        cut.dram_bytes == first.dram_bytes + second.dram_bytes == pytest.approx(whole.dram_bytes + weight_bytes, abs=2)
    )
    assert [cut.device_dram_bytes(place) for place in range(3)] == [
        first.dram_bytes,
        *[-(-second.dram_bytes // 2)] * 2,
    ]
    assert [[(item.kind, item.count) for item in stage.works[0].operations] for stage in cut.stages] == [
        [("matmul", 2), ("activation", 2)],
        [("matmul", 1), ("activation", 1)],
    ]
    handed = _ROWS * _WIDTH * 2
    works = [stage.works[0] for stage in cut.stages]
    assert [(work.transfers, work.transfer_bytes) for work in works] == [(0, 0), (1, handed)]
    assert [work.io_bytes for work in works] == [_ROWS * _WIDTH * 4] * 2, (
        "the input enters first, the output leaves last"
    )


def test_a_call_passes_the_parts_one_after_another_and_computes_as_one_program(compiled, runtime):
    rt, _ = runtime
    programs = {"whole": compiled(), "cut": compiled(([0], ["first"]), ([1], ["second", "third"]))}
    stages = _network(programs["cut"]).stages
    settings = cost_model.Settings(cores=4)
    kinds = [device.traits for device in devices.load(sdk_root.root())]
    each_s = [
        cost_model.call_s(stage.works[0], kind=kind, settings=settings)
        for stage, kind in zip(stages, kinds, strict=True)
    ]
    results = {}
    x = np.random.default_rng(6).normal(size=(_ROWS, _WIDTH)).astype(np.float32)
    for name, path in programs.items():
        properties = rt.QAicProgramProperties()
        properties.devMapping = "0:1" if name == "cut" else "0"
        context = rt.Context(rt.QIDList([0, 1]))
        free_before = [_free_mb(rt, qid) for qid in (0, 1)]
        program = rt.Program(context, None, rt.Qpc(str(path)), properties)
        assert (program.load(), program.activate()) == (0, 0)
        taken = [before - _free_mb(rt, qid) for qid, before in enumerate(free_before)]
        exec_object = rt.ExecObj(context, program)
        assert exec_object.run([rt.QBuffer(x), rt.QBuffer(np.zeros_like(x))]) == 0
        results[name] = bytes(exec_object.getData()[1][1]), taken, program.predicted_s(specialization=0)
        program.deactivate()
    assert results["cut"][0] == results["whole"][0]
    assert results["cut"][2] == pytest.approx(sum(each_s))
    assert results["cut"][1] == [-(-stage.dram_bytes // _MIB) for stage in stages]
    assert results["cut"][1][1] < results["whole"][1][0], "a part takes less of its device than the whole of one"
    assert results["whole"][1][1] == 0


def _free_mb(rt, qid):
    return rt.Util().getResourceInfo(qid)[1].dramFree


def test_a_hand_over_takes_the_time_of_an_exchange_and_its_bytes():
    found, kind = cost_parameters.load(), devices.KINDS["ultra"]
    work = Work(transfers=2, transfer_bytes=1_000_000)
    taken_s = cost_model.call_s(work, kind=kind, settings=cost_model.Settings(cores=4))
    assert taken_s == pytest.approx(2 * found.all_reduce_us * 1e-6 + 1e6 / (found.p2p_gb_s * 1e9))
