"""The container's bytes, against the published C structures; the tool that validates it."""

from __future__ import annotations

import io
import struct

import pytest

from qeff_engine.simulated_sdk import qpc_cli, qpc_container
from qeff_engine.simulated_sdk.qpc_container import BadContainer
from tests.unit.qeff_engine.simulated_sdk import graphs

_HEAD = {"constantsdesc.bin": b"[]", "networkdesc.bin": b"abc" * 7, "network.elf": b"graph"}
_CONSTANTS = bytes(range(256)) * 20


@pytest.fixture
def container(tmp_path):
    file = io.BytesIO()
    writer = qpc_container.Writer(file, head=_HEAD)
    file.write(_CONSTANTS)
    writer.finish()
    path = tmp_path / "programqpc.bin"
    path.write_bytes(file.getvalue())
    return path


def test_header_and_table_are_the_published_structures(container):
    data = container.read_bytes()
    magic, major, minor, compression, size, base = struct.unpack_from("<IBBHQQ", data)
    assert (magic, major, minor, compression) == (0x00A1CD7C, 0, 1, 0)
    assert (size, base) == (len(data), 0)
    count, table = struct.unpack_from("<QQ", data, 24)
    found = {}
    for number in range(count):
        size, offset, name, start = struct.unpack_from("<QQQQ", data, table + 32 * number)
        assert (name % 8, start % 8) == (0, 0)
        found[data[name : data.index(b"\0", name)].decode()] = (data[start : start + size], offset)
    assert list(found) == ["constantsdesc.bin", "networkdesc.bin", "network.elf", "constants.bin"]
    assert {name: content for name, (content, _) in found.items()} == _HEAD | {"constants.bin": _CONSTANTS}
    assert found["constants.bin"][1] == len(_CONSTANTS), "the offset of the constants is the size of the static ones"


def test_segments_are_read_back(container):
    segments = qpc_container.read_segments(container)
    for name, data in (_HEAD | {"constants.bin": _CONSTANTS}).items():
        assert qpc_container.read_segment(container, segment=segments[name]) == data
    assert segments["constants.bin"].start % 4096 == 0, "so that it can be mapped"


def test_a_container_without_constants_is_whole(tmp_path):
    path = tmp_path / "programqpc.bin"
    with path.open("wb") as file:
        qpc_container.Writer(file, head=_HEAD).finish()
    assert qpc_container.read_segments(path)["constants.bin"].size == 0


@pytest.mark.parametrize("length", [0, 10, 39, 60, 4000, -1])
def test_a_truncated_container_is_refused(container, length):
    container.write_bytes(container.read_bytes()[:length])
    with pytest.raises(BadContainer, match="damaged"):
        qpc_container.read_segments(container)


@pytest.mark.parametrize(("at", "value"), [(0, 0xFF), (4, 1), (6, 1), (24, 0), (24, 200), (33, 0xFF), (47, 1), (63, 1)])
def test_a_damaged_header_is_refused(container, at, value):
    data = bytearray(container.read_bytes())
    data[at] = value
    container.write_bytes(data)
    with pytest.raises(BadContainer):
        qpc_container.read_segments(container)


def test_validate_names_the_cores_that_a_program_needs(tmp_path, compile_in, simulated_sdk_root, capsys):
    path = graphs.save(graphs.decoder(), tmp_path)
    assert compile_in(path, "-retained-state", "-aic-num-cores=5", specializations=graphs.SPECIALIZATIONS) == 0
    binary = tmp_path / "qpc" / "programqpc.bin"
    capsys.readouterr()
    assert qpc_cli.main(["validate", "-i", str(binary)], root=simulated_sdk_root) == 0
    assert "Number of NSP required:5\n" in capsys.readouterr().out
    binary.write_bytes(binary.read_bytes()[:-1])
    assert qpc_cli.main(["validate", "-i", str(binary)], root=simulated_sdk_root) == 1
    assert "Invalid qpc" in capsys.readouterr().err
    assert qpc_cli.main(["validate", "-i", str(tmp_path / "none")], root=simulated_sdk_root) == 1
    assert qpc_cli.main(["validate"], root=simulated_sdk_root) == 1
