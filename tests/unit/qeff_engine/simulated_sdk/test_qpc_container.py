"""The container's bytes, against the published C structures; the tool that validates it."""

from __future__ import annotations

import contextlib
import io
import json
import struct

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qeff_engine.errors import InvalidInput
from qeff_engine.sdk import runtime_failures
from qeff_engine.simulated_sdk import network_description, qpc_cli, qpc_container
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


@pytest.fixture
def binary(tmp_path, compile_in, capsys):
    """The container of a decoder with two specializations and a retained state."""
    path = graphs.save(graphs.decoder(), tmp_path)
    flags = ("-retained-state", "-aic-num-cores=5", "-stats-batchsize=2")
    assert compile_in(path, *flags, specializations=graphs.SPECIALIZATIONS) == 0
    capsys.readouterr()
    return tmp_path / "qpc" / "programqpc.bin"


def test_validate_names_the_cores_that_a_program_needs(binary, simulated_sdk_root, capsys):
    assert qpc_cli.main(["validate", "-i", str(binary)], root=simulated_sdk_root) == 0
    out = capsys.readouterr().out
    assert "Number of NSP required:5\n" in out
    assert "Batch size:2\n" in out
    binary.write_bytes(binary.read_bytes()[:-1])
    assert qpc_cli.main(["validate", "-i", str(binary)], root=simulated_sdk_root) == 1
    assert "Invalid qpc" in capsys.readouterr().err


def test_dump_and_extract_look_inside(binary, tmp_path, simulated_sdk_root, capsys):
    assert qpc_cli.main(["dump", "-i", str(binary)], root=simulated_sdk_root) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["hw_version"] == "ai100"
    assert [item["name"] for item in described["inputs"]] == ["input_ids", "position_ids", "past_key.0"]
    assert described["inputs"][0]["shapes"] == [[1, 4], [1, 1]]
    out = tmp_path / "network.elf"
    assert (
        qpc_cli.main(["extract", "-i", str(binary), "-s", "network.elf", "-o", str(out)], root=simulated_sdk_root) == 0
    )
    assert out.stat().st_size == described["segments"]["network.elf"]["size"]
    assert [node.op_type for node in onnx.load(out, load_external_data=False).graph.node]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["validate"], "got 'validate'"),
        (["validate", "-i"], "option requires an argument -- 'i'"),
        (["validate", "-i", "/nowhere"], "Unable to open /nowhere: No such file or directory"),
        (["inspect", "-i", "{binary}"], "Usage: qaic-qpc validate -i programqpc.bin"),
        (
            ["extract", "-i", "{binary}", "-s", "weights", "-o", "out"],
            "has no segment 'weights'; it has constantsdesc.bin",
        ),
        (["extract", "-i", "{binary}", "-s", "network.elf", "-o", "/nowhere/x"], "Unable to open /nowhere/x"),
    ],
)
def test_what_cannot_be_looked_at_ends_with_1(binary, simulated_sdk_root, capsys, arguments, said):
    arguments = [argument.format(binary=binary) for argument in arguments]
    assert qpc_cli.main(arguments, root=simulated_sdk_root) == 1
    assert said in capsys.readouterr().err


def test_a_program_for_other_hardware_is_refused_with_the_firmwares_words(binary, runtime, capsys):
    segments = qpc_container.read_segments(binary)
    described = qpc_container.read_segment(binary, segment=segments["networkdesc.bin"])
    # The same length, so that nothing else moves.
    other = described.replace(b"ai100", b"ai200")
    assert described.count(b"ai100") == 1
    binary.write_bytes(binary.read_bytes().replace(described, other))
    client = graphs.Client(*runtime, program=binary.parent)
    assert client.activate() == 300
    assert "Device 0 activate failed: Version mismatch" in capsys.readouterr().err
    error = runtime_failures.failure(
        "activate the program", status=300, text="Device 0 activate failed: Version mismatch"
    )
    assert isinstance(error, InvalidInput)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_description_is_refused_and_nothing_else_is_raised(binary, data):
    segments = qpc_container.read_segments(binary)
    described = bytearray(qpc_container.read_segment(binary, segment=segments["networkdesc.bin"]))
    for _ in range(data.draw(st.integers(1, 4))):
        described[data.draw(st.integers(0, len(described) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(described)))
    for damaged in (bytes(described), bytes(described[:cut])):
        with contextlib.suppress(network_description.BadDescription):
            assert network_description.parse(damaged).works
