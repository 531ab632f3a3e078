"""Graphs are cut between layers, and every node is in exactly one part."""

import json

import onnx
import pytest
from onnx import TensorProto, helper

from qeff_engine.errors import InvalidInput, Unsupported
from qeff_engine.exported import LAYERS_DOMAIN
from qeff_engine.sdk import partitions
from qeff_engine.spec import CompileSpec


def graph_of(*kinds, directory, names=None):
    """A chain of nodes; ``layer`` calls the function of a layer, every other kind is an operator."""
    nodes = []
    for at, kind in enumerate(kinds):
        name = f"{kind}{at}" if names is None else names[at]
        domain = LAYERS_DOMAIN if kind == "layer" else ""
        nodes.append(helper.make_node(kind, [f"t{at}"], [f"t{at + 1}"], name=name, domain=domain))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(LAYERS_DOMAIN, 1)]
    layer = helper.make_function(
        LAYERS_DOMAIN, "layer", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets[:1]
    )
    first, last = (helper.make_tensor_value_info(f"t{at}", TensorProto.FLOAT, [1]) for at in (0, len(kinds)))
    graph = helper.make_graph(nodes, "g", [first], [last])
    onnx.save(helper.make_model(graph, functions=[layer], opset_imports=opsets), directory / "model.onnx")
    return directory / "model.onnx"


def test_layers_are_divided_evenly_with_what_is_around_them(tmp_path):
    path = graph_of("Identity", "layer", "layer", "Neg", "layer", "layer", "Abs", directory=tmp_path)
    assert partitions.cut(path, parts=2) == [
        ["Identity0", "layer1", "layer2"],
        ["Neg3", "layer4", "layer5", "Abs6"],
    ]


@pytest.mark.parametrize(
    ("layers", "parts", "sizes"), [(8, 4, [2, 2, 2, 2]), (9, 4, [2, 3, 2, 2]), (10, 4, [2, 3, 3, 2]), (4, 4, [1] * 4)]
)
def test_the_parts_in_the_middle_get_what_is_left(tmp_path, layers, parts, sizes):
    path = graph_of("Identity", *["layer"] * layers, "Abs", directory=tmp_path)
    found = partitions.cut(path, parts=parts)
    assert [sum(name.startswith("layer") for name in part) for part in found] == sizes
    assert [name for part in found for name in part] == [node.name for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("kinds", "names", "words"),
    [
        (["Abs", "layer"], None, "has 1 layers as functions, expected at least the 2 parts"),
        (["layer", "layer"], ["a", "a"], "nodes without a name of their own"),
        (["layer", "layer"], ["a", ""], "nodes without a name of their own"),
    ],
)
def test_a_graph_that_cannot_be_cut_is_refused(tmp_path, kinds, names, words):
    with pytest.raises(Unsupported, match=words):
        partitions.cut(graph_of(*kinds, directory=tmp_path, names=names), parts=2)


def test_each_part_of_a_pipeline_has_its_devices_and_nodes():
    text = partitions.partition_json(num_devices=4, num_cores=14, link="p2p", nodes=[["a", "b"], ["c"]])
    first, second = ([{"deviceId": device, "numCores": 14} for device in pair] for pair in ((0, 1), (2, 3)))
    assert json.loads(text) == {
        "connections": [{"devices": [0, 1, 2, 3], "type": "p2p"}],
        "partitions": [
            {"name": "Partition0", "devices": first, "nodeList": ["a", "b"]},
            {"name": "Partition1", "devices": second, "nodeList": ["c"]},
        ],
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_devices": 17}, "17 devices, expected at most 16"),
        ({"num_devices": 4, "num_partitions": 3}, "4 devices do not divide into 3 equal parts"),
        ({"num_partitions": 2}, "1 devices do not divide into 2"),
        ({"num_partitions": 0}, "num_partitions is 0"),
        ({"device_link": "host"}, "device link is 'host' for one device"),
        ({"num_devices": 2, "device_link": "pcie"}, "device link is 'pcie', expected one of p2p, host"),
    ],
)
def test_numbers_of_devices_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(InvalidInput, match=words):
        CompileSpec(**fields)


def test_a_request_without_a_pipeline_is_what_it_was():
    assert not CompileSpec(num_devices=2).to_json().keys() & {"num_partitions", "device_link"}
    spec = CompileSpec(num_devices=4, num_partitions=2, device_link="host")
    assert CompileSpec.from_json(spec.to_json()) == spec
