import json
import os
import shutil
import struct

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qeff_engine import checkpoint, gguf_header
from qeff_engine.errors import InvalidInput, Unsupported

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def directory(tmp_path):
    """A checkpoint of one file."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16)}
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture
def sharded(directory):
    """The same in two files with an index."""
    (directory / "model.safetensors").unlink()
    save_file({"a": torch.ones(2, 3)}, directory / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4)}, directory / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_gguf(path, *, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
    writer.add_array("tokenizer.ggml.scores", [0.0, 1.0, 2.0])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), dtype=np.float32))
    blocks = gguf.quantize(np.ones((2, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_directory_is_told_by_what_is_in_it(directory):
    (directory / "README.md").write_text("not of interest")
    source = checkpoint.inspect(str(directory))
    assert (source.kind, source.location) == ("directory", str(directory))
    assert source.files == {name: (directory / name).stat().st_size for name in ("config.json", "model.safetensors")}
    assert checkpoint.model_type(source) == "llama"


@pytest.mark.parametrize("source", ["organization/name", "gpt2", "Organization/Name-7B_v0.1"])
def test_a_word_that_is_no_path_is_a_hub_id(source):
    found = checkpoint.inspect(source, revision="v1")
    assert (found.kind, found.location, found.revision, found.fingerprint) == ("hub", source, "v1", "")
    assert checkpoint.model_type(found) is None


@pytest.mark.parametrize("source", ["two words", "a--b", "organization/..", "-name", "x" * 97, "nul\0byte", ""])
def test_a_word_that_is_neither_is_refused(source):
    with pytest.raises(InvalidInput, match="neither a path that exists nor a hub id"):
        checkpoint.inspect(source)


@pytest.mark.parametrize("name", ["modle", "modle/", "./modle", "deeper/down/model", "model.gguf"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(directory, monkeypatch, name):
    monkeypatch.chdir(directory.parent)
    with pytest.raises(InvalidInput, match="does not exist"):
        checkpoint.inspect(name if name != "modle" else str(directory.parent / name))


def test_a_misspelt_path_names_the_near_one(directory):
    with pytest.raises(InvalidInput, match="Did you mean 'model'"):
        checkpoint.inspect(str(directory.parent / "modle"))


def test_a_revision_of_a_directory_is_refused(directory):
    with pytest.raises(InvalidInput, match="Only hub ids have revisions"):
        checkpoint.inspect(str(directory), revision="main")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "config.json").unlink(), r"has no config\.json"),
        (lambda path: (path / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda path: (path / "config.json").write_text("[1]"), r"is a JSON list, expected an object"),
        (lambda path: (path / "config.json").write_text("{}"), "names no model_type"),
        (lambda path: (path / "model.safetensors").unlink(), r"has neither model\.safetensors nor"),
        (lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"), "as pickle .*save_pretrained"),
        (lambda path: os.truncate(path / "model.safetensors", 4), "has 4 bytes, expected a safetensors file"),
        (lambda path: os.truncate(path / "model.safetensors", 20), "is truncated"),
        (lambda path: os.truncate(path / "model.safetensors", size(path) - 1), "is truncated: it has"),
        (lambda path: os.truncate(path / "model.safetensors", size(path) + 1), "is damaged: it has"),
        (lambda path: (path / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"nope"), "header .* is damaged"),
    ],
)  # fmt: skip
def test_a_directory_that_is_no_whole_checkpoint_is_refused(directory, spoil, message):
    spoil(directory)
    with pytest.raises(InvalidInput, match=message):
        checkpoint.inspect(str(directory))


def size(directory):
    return (directory / "model.safetensors").stat().st_size


def test_a_gguf_file_in_a_directory_without_config_is_pointed_at(tmp_path):
    write_gguf(tmp_path / "weights.gguf")
    with pytest.raises(InvalidInput, match=r"name the file: .*weights\.gguf"):
        checkpoint.inspect(str(tmp_path))


def test_tensors_are_where_the_index_says(directory):
    index = checkpoint.safetensors_index(directory)
    place = index["a"]
    assert (place.dtype, place.shape, place.nbytes) == ("F32", (2, 3), 24)
    content = (directory / place.file).read_bytes()[place.offset : place.offset + place.nbytes]
    assert np.frombuffer(content, "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert index["b"].dtype == "BF16"


def test_shards_are_found_through_their_index(sharded):
    assert len(checkpoint.inspect(str(sharded)).files) == 4
    assert {place.file for place in checkpoint.safetensors_index(sharded).values()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InvalidInput, match=r"1 of 2 shards: model-00002-of-00002\.safetensors is missing"):
        checkpoint.inspect(str(sharded))


def test_a_shard_without_its_tensor_is_named(sharded):
    shutil.copyfile(sharded / "model-00001-of-00002.safetensors", sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(InvalidInput, match=r"says that model-0000\d-of-00002\.safetensors has the tensor"):
        checkpoint.inspect(str(sharded))


def test_an_index_cannot_point_out_of_the_directory(sharded):
    weight_map = {"a": "../model/model-00001-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidInput, match="expected a file beside it"):
        checkpoint.inspect(str(sharded))


def test_fingerprint_changes_with_the_files_and_not_with_others(directory):
    before = checkpoint.inspect(str(directory)).fingerprint
    (directory / "README.md").write_text("new")
    assert checkpoint.inspect(str(directory)).fingerprint == before
    changed_ns = (directory / "model.safetensors").stat().st_mtime_ns + 1
    os.utime(directory / "model.safetensors", ns=(changed_ns, changed_ns))
    assert checkpoint.inspect(str(directory)).fingerprint != before


def test_a_gguf_file_is_told_by_its_header(tmp_path):
    path = write_gguf(tmp_path / "weights.gguf")
    source = checkpoint.inspect(str(path))
    assert (source.kind, source.files) == ("gguf", {"weights.gguf": path.stat().st_size})
    assert checkpoint.model_type(source) == "llama"
    header = gguf_header.read(path)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    found = {tensor.name: (tensor.shape, tensor.kind, tensor.nbytes) for tensor in header.tensors}
    assert found == {"token_embd.weight": ((3, 32), 0, 384), "output.weight": ((2, 64), 8, 136)}


@pytest.mark.parametrize("kept", [3, 23, 60, 200, -1])
def test_a_truncated_gguf_file_is_refused_wherever_it_ends(tmp_path, kept):
    path = write_gguf(tmp_path / "weights.gguf")
    os.truncate(path, kept if kept > 0 else gguf_header.read(path).tensors[-1].offset + 135)
    with pytest.raises(InvalidInput, match=r"truncated|expected a GGUF file"):
        checkpoint.inspect(str(path))


def test_a_file_that_is_no_gguf_file_is_refused(tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"<!DOCTYPE html><title>Not found</title>")
    with pytest.raises(InvalidInput, match="it is not a GGUF file"):
        checkpoint.inspect(str(path))


def test_a_part_of_a_split_gguf_file_is_unsupported(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_tensor("a", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match="split in 3"):
        checkpoint.inspect(str(tmp_path / "part.gguf"))


def test_sizes_of_all_types_are_those_of_the_format():
    assert {int(kind): tuple(sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == dict(gguf_header.BLOCKS)


def test_the_spec_carries_what_was_seen(directory):
    spec = checkpoint.resolve_spec(str(directory))
    assert (spec.source, spec.kind) == (str(directory), "directory")
    assert spec.fingerprint == checkpoint.inspect(str(directory)).fingerprint
