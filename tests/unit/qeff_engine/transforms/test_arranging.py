"""What code does to tensors is recorded as an arrangement, and nodes then do the same to bytes of files."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime
import pytest
import torch

from qeff_engine.onnx_graph import binding
from qeff_engine.onnx_graph.arrangements import Part
from qeff_engine.onnx_graph.sources import Arranged
from qeff_engine.safetensors_header import TensorPlace
from qeff_engine.transforms.arranging import Recorder

SHAPES = {"a": (4, 6), "b": (4, 6), "c": (8, 6)}


def recorded(function):
    """What a function of the tensors by name gives, as it is recorded."""
    recorder, offset, tensors = Recorder(), 0, {}
    for name, shape in SHAPES.items():
        nbytes = 4 * shape[0] * shape[1]
        place = TensorPlace(file="weights", dtype="F32", shape=shape, offset=offset, nbytes=nbytes)
        tensors[name] = recorder.note(torch.empty(shape, device="meta"), Part(name=name, place=place))
        offset += nbytes
    with recorder:
        result = function(tensors)
    return recorder.arrangement(result)


def values():
    """The tensors by name, and the file that has them one after another."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return tensors, b"".join(tensor.numpy().tobytes() for tensor in tensors.values())


def from_graph(arrangement, directory):
    """What ONNX Runtime computes of it, from a file."""
    weight = ir.Value(name="weight", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(arrangement.shape))
    node = ir.node("Identity", [weight], name="read")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "out", weight.type, weight.shape
    graph = ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[weight], opset_imports={"": 18}, name="g")
    model = ir.Model(graph, ir_version=10)
    snapshot, out = directory / "snapshot", directory / "out"
    snapshot.mkdir()
    out.mkdir()
    (snapshot / "weights").write_bytes(values()[1])
    bound = binding.bind(
        model, sources={"weight": Arranged(arrangement=arrangement)}, snapshot=snapshot, out=out, side_file="side"
    )
    assert bound.side_bytes == 0
    binding.save(model, out / "model.onnx")
    return onnxruntime.InferenceSession(out / "model.onnx").run(None, {})[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda t: torch.stack([t["a"], t["b"]]),
        lambda t: torch.stack([t["a"], t["b"]], dim=-1),
        lambda t: torch.cat([torch.stack([t["a"], t["b"]]), torch.stack([t["b"], t["a"]])], dim=1),
        lambda t: torch.cat([t["a"], t["c"]]).transpose(0, 1).contiguous(),
        lambda t: t["c"].view(2, 4, 6).transpose(0, 1).reshape(8, 6),
        lambda t: t["c"].chunk(3, dim=1)[1].contiguous(),
        lambda t: torch.split(t["c"], [1, 2, 3], dim=-1)[2].t().contiguous(),
        lambda t: torch.cat([t["a"][:2], t["b"][-2:]]),
        lambda t: torch.stack([t["a"], t["b"]])[1].permute(1, 0)[2:5].contiguous(),
        lambda t: torch.stack([row.squeeze(0) for row in t["a"].chunk(4)][::-1]),
    ],
)
def test_nodes_give_what_the_code_gives(function, tmp_path):
    arrangement = recorded(function)
    assert arrangement is not None
    expected = function(values()[0])
    found = from_graph(arrangement, tmp_path)
    assert found.shape == expected.shape
    assert (found == expected.numpy()).all()


@pytest.mark.parametrize(
    ("function", "first", "shape"),
    [
        (lambda t: t["c"].chunk(2)[1].contiguous(), 2 * 4 * 24 + 4 * 24, (4, 6)),
        (lambda t: t["c"].reshape(2, 4, 6)[1], 2 * 4 * 24 + 4 * 24, (4, 6)),
        (lambda t: t["a"][1:3].reshape(12), 24, (12,)),
        (lambda t: torch.stack([t["b"]]), 4 * 24, (1, 4, 6)),
    ],
)
def test_what_is_one_range_of_bytes_stays_one(function, first, shape):
    arrangement = recorded(function)
    assert isinstance(arrangement, Part)
    assert (arrangement.place.offset, arrangement.place.shape) == (first, shape)
    assert arrangement.place.nbytes == 4 * torch.Size(shape).numel()


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t["a"] - 1,
        lambda t: torch.cat([t["a"], t["b"] * 2]),
        lambda t: t["a"].to(torch.float16),
        lambda t: t["a"][::2],
        lambda t: t["a"].add_(1),
        lambda t: t["a"].index_select(0, torch.zeros(2, dtype=torch.long, device="meta")),
    ],
)
def test_what_is_computed_has_no_arrangement(function):
    assert recorded(function) is None


def test_one_tensor_taken_in_two_shapes_is_two_initializers_of_the_same_bytes(tmp_path):
    arrangement = recorded(lambda t: torch.cat([t["a"], t["a"].reshape(6, 4).reshape(2, 12).reshape(4, 6)[1:3]]))
    expected, _ = values()
    found = from_graph(arrangement, tmp_path)
    assert (found == torch.cat([expected["a"], expected["a"][1:3]]).numpy()).all()
