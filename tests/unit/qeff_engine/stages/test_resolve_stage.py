import json
import shutil

import pytest
import torch

from qeff_engine import checkpoint
from qeff_engine.errors import InvalidInput
from qeff_engine.stage import StageContext
from qeff_engine.stages import resolve
from tests import tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("original"), "llama", dtype=torch.bfloat16, max_shard_size="20KB")


@pytest.fixture
def source(original, tmp_path):
    return shutil.copytree(original, tmp_path / "source")


def resolved(source, tmp_path):
    out = tmp_path / "snapshot"
    out.mkdir()
    return out, resolve.run(checkpoint.resolve_spec(str(source)), StageContext(out=out, work=tmp_path))


def test_snapshot_is_links_to_the_files_that_matter(original, source, tmp_path):
    for name in ("modeling_tiny.py", "pytorch_model.bin", "optimizer.pt", "README.md", "other.safetensors"):
        (source / name).write_bytes(b"not for the snapshot")
    out, _ = resolved(source, tmp_path)
    assert {path.name for path in out.iterdir()} == {path.name for path in original.iterdir()}
    assert all((out / path.name).samefile(source / path.name) for path in original.iterdir())


def test_links_lead_to_the_files_themselves(source, tmp_path):
    """A hub's cache is symbolic links, behind which ONNX Runtime reads no weights."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    out, _ = resolved(linked, tmp_path)
    assert not any(path.is_symlink() for path in out.iterdir())


def test_pooling_of_an_encoder_is_kept(source, tmp_path):
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    out, _ = resolved(source, tmp_path)
    assert (out / "1_Pooling" / "config.json").read_text() == "{}"


def test_figures_describe_the_weights(source, tmp_path):
    out, result = resolved(source, tmp_path)
    figures = result.figures
    assert (figures["model_type"], figures["dtype"]) == ("llama", "BF16")
    assert figures["num_parameters"] == tiny.model("llama").num_parameters()
    assert figures["num_files"] == len(list(out.iterdir()))
    assert figures["snapshot_bytes"] == sum(path.stat().st_size for path in out.iterdir())


def test_files_that_changed_since_they_were_asked_for_are_refused(source, tmp_path):
    spec = checkpoint.resolve_spec(str(source))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 1}))
    with pytest.raises(InvalidInput, match="changed after they were asked for"):
        resolve.run(spec, StageContext(out=tmp_path, work=tmp_path))


def test_a_source_that_vanished_is_invalid_input(source, tmp_path):
    spec = checkpoint.resolve_spec(str(source))
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match="does not exist"):
        resolve.run(spec, StageContext(out=tmp_path, work=tmp_path))
