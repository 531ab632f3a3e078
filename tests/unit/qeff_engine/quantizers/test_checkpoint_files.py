import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from qeff_engine.checkpoint import INDEX_NAME
from qeff_engine.errors import Bug, InvalidInput, Unsupported
from qeff_engine.quantizers.checkpoint_files import CheckpointReader, CheckpointWriter, TensorInfo

TENSORS = {
    "odd.half": torch.arange(3, dtype=torch.float16),
    "brain": torch.linspace(-2, 2, 12).bfloat16().view(3, 4),
    "packed": torch.arange(-8, 8, dtype=torch.int32).view(4, 4),
    "scalar": torch.tensor(2.5),
}
PLAN = {
    "odd.half": TensorInfo(dtype="F16", shape=(3,)),
    "brain": TensorInfo(dtype="BF16", shape=(3, 4)),
    "packed": TensorInfo(dtype="I32", shape=(4, 4)),
    "scalar": TensorInfo(dtype="F32", shape=()),
}


def write(directory, **limits):
    with CheckpointWriter(directory, PLAN, **limits) as writer:
        for name in reversed(PLAN):
            writer.write(name, TENSORS[name])
    return writer


def test_the_library_reads_what_was_written(tmp_path):
    writer = write(tmp_path)
    path = tmp_path / "model.safetensors"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size == writer.num_bytes
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(read[name], tensor)


def test_what_the_library_wrote_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)
    for name, tensor in TENSORS.items():
        assert reader.info(name) == PLAN[name]
        assert torch.equal(reader.tensor(name), tensor)
        assert torch.equal(reader.mapped(name), tensor)
        assert b"".join(reader.chunks(name)) == tensor.flatten().view(torch.uint8).numpy().tobytes()


def test_shards_are_listed_in_an_index(tmp_path):
    write(tmp_path, max_shard_bytes=70)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert set(index["weight_map"]) == set(PLAN)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert files == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert set(CheckpointReader(tmp_path).names) == set(PLAN)


def test_every_tensor_is_aligned_to_its_own_type(tmp_path):
    write(tmp_path)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    for name, info in PLAN.items():
        assert header[name]["data_offsets"][0] % info.item_bytes == 0


def test_a_tensor_that_was_planned_and_not_written_is_a_bug(tmp_path):
    writer = CheckpointWriter(tmp_path, PLAN)
    writer.write("odd.half", TENSORS["odd.half"])
    writer.write("brain", TENSORS["brain"])
    with pytest.raises(Bug, match="2 planned tensors were never written, such as packed"), writer:
        pass


def test_a_tensor_of_another_size_than_planned_is_a_bug(tmp_path):
    with pytest.raises(Bug, match="packed has 24 bytes, expected 64"), CheckpointWriter(tmp_path, PLAN) as writer:
        writer.write("packed", TENSORS["brain"])


@pytest.mark.parametrize("kept_bytes", [0, 4, 60, -4])
def test_a_truncated_file_is_refused_with_its_name(tmp_path, kept_bytes):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        CheckpointReader(tmp_path)


def test_tensors_of_an_unknown_type_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"XF16"'))
    with pytest.raises(Unsupported, match="has tensors of type XF16"):
        CheckpointReader(tmp_path)
