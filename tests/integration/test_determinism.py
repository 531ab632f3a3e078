"""The same snapshot gives the same bytes: in another process, another directory, another order of everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from qeff_engine import exported
from tests import exported_decoder, tiny


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A snapshot of Mixtral in shards, and its graph, made after that of another model."""
    root = tmp_path_factory.mktemp("mixture")
    exported_decoder.make(tiny.save_model(root / "other", "llama"), root / "before")
    source = tiny.save_model(root / "source", "mixtral", max_shard_size="40KB")
    snapshot, onnx_dir, _ = exported_decoder.make(source, root / "here")
    return snapshot, onnx_dir


def test_another_process_with_other_hashes_writes_the_same_bytes(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    snapshot, onnx_dir = mixture
    elsewhere = tmp_path / "somewhere else"
    elsewhere.mkdir()
    for path in sorted(snapshot.iterdir(), reverse=True):  # files come in another order from the directory
        shutil.copyfile(path, elsewhere / path.name)
    subprocess.run(
        [sys.executable, "-m", "qeff_engine", "export", "--snapshot", elsewhere, "--out", tmp_path / "onnx"],
        env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    written = [path.name for path in onnx_dir.iterdir() if path.suffix in (".onnx", ".json")]
    assert len(written) == 2
    for name in written:
        assert (tmp_path / "onnx" / name).read_bytes() == (onnx_dir / name).read_bytes()


def test_graph_passes_the_checker_and_strict_shape_inference(mixture: tuple[Path, Path], tmp_path: Path) -> None:
    _, onnx_dir = mixture
    shutil.copytree(onnx_dir, tmp_path / "copy")  # the checker refuses hard links
    path = tmp_path / "copy" / exported.load(onnx_dir).components[exported.DECODER].file
    onnx.checker.check_model(path, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(
        onnx.load(path, load_external_data=False), check_type=True, strict_mode=True, data_prop=True
    )
    outputs = {item.name: item.type.tensor_type for item in inferred.graph.output}
    assert [axis.dim_param or axis.dim_value for axis in outputs["logits"].shape.dim] == ["batch_size", 1, 260]


def test_names_of_nodes_follow_the_modules(mixture: tuple[Path, Path]) -> None:
    _, onnx_dir = mixture
    path = onnx_dir / exported.load(onnx_dir).components[exported.DECODER].file
    graph = onnx.load(path, load_external_data=False)
    layer = next(function for function in graph.functions if function.domain == "qeff.layers")
    for nodes in (graph.graph.node, layer.node):
        names = [node.name for node in nodes]
        assert len(set(names)) == len(names)
    of_product = {node.input[1]: node.name for node in layer.node if node.op_type == "MatMul"}
    assert of_product["self_attn.q_proj/Transpose"] == "self_attn.q_proj/MatMul"
    assert of_product["mlp.experts/Transpose"] == "mlp.experts/MatMul"
    assert "model.embed_tokens/Gather" in {node.name for node in graph.graph.node}
    assert "model.layers.0.mlp.experts.gate_up_proj" in {name for node in graph.graph.node for name in node.output}
