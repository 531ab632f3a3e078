"""The installed directory, against what clients of the real SDK look for in it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qeff_engine.simulated_sdk import devices
from qeff_engine.simulated_sdk.install import BadInstall, install


def _snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_an_installed_sdk_has_everything_at_the_places_of_the_real_one(tmp_path):
    root = install(tmp_path / "qti-aic", devices="ultra:1", version="1.20.4")
    for tool in (
        "exec/qaic-compile",
        "exec/qaic-exec",
        "exec/qaic-runner",
        "tools/qaic-util",
        "tools/qaic-version-util",
        "tools/qaic-qpc",
    ):
        assert os.access(root / tool, os.X_OK), tool
    assert (root / "dev" / "lib" / platform.machine() / "qaicrt.py").is_file()
    assert (root / "dev" / "python" / "QAicApi_pb2.py").is_file()
    for package in ("apps", "platform"):
        element = ElementTree.parse(root / "versions" / f"{package}.xml").getroot().find(".//base_version")
        assert element is not None
        assert element.text == "1.20.4"
    assert json.loads((root / "SIMULATED").read_text())["version"] == "1.20.4"


def test_installing_again_changes_nothing(tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1,standard:1")
    before = _snapshot(root)
    install(root, devices="ultra:1,standard:1")
    assert _snapshot(root) == before


def test_installing_over_it_changes_devices_and_version(tmp_path):
    root = install(tmp_path / "sdk", devices="ultra:1")
    install(root, devices="standard:2", version="1.22.0")
    assert [device.kind for device in devices.load(root)] == ["standard", "standard"]
    assert "1.22.0" in (root / "versions" / "apps.xml").read_text()
    assert json.loads((root / "SIMULATED").read_text())["version"] == "1.22.0"


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(BadInstall, match="not empty"):
        install(tmp_path, devices="ultra:1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious.txt"]


def test_a_failed_installation_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        install(tmp_path / "sdk", devices="ultra:1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "ultra", "ultra:0", "ultra:-1", "gpu:1", "ultra:1,,standard:1", "ultra:65"])
def test_a_bad_list_of_devices_is_refused_before_anything_is_written(tmp_path, text):
    with pytest.raises(devices.BadDevices):
        install(tmp_path / "sdk", devices=text)
    assert not (tmp_path / "sdk").exists()


@pytest.mark.parametrize("version", ["", "newest", "1", "1.20.x"])
def test_a_bad_version_is_refused(tmp_path, version):
    with pytest.raises(BadInstall, match="not a version"):
        install(tmp_path / "sdk", devices="ultra:1", version=version)


def test_four_ultra_socs_share_a_board_and_qids_follow_pci_addresses():
    listed = devices.parse("ultra:5,standard:1,ultra:1")
    assert [device.qid for device in listed] == list(range(7))
    addresses = [device.pci_address for device in listed]
    assert addresses == sorted(addresses)
    boards = [device.board_serial for device in listed]
    assert len({*boards[:4]}) == 1
    assert len({*boards[3:]}) == 4


@pytest.mark.parametrize(("kind", "cores", "memory_gb"), [("ultra", 16, 32), ("pro", 16, 32), ("standard", 14, 16)])
def test_kinds_have_the_published_cores_and_memory(kind, cores, memory_gb):
    (device,) = devices.parse(f"{kind}:1")
    assert device.traits.cores == cores
    assert device.traits.dram_mb == memory_gb * 1024
    assert device.traits.bandwidth_gb_s == 137


@pytest.mark.parametrize(("value", "seen"), [("", [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("7", []), ("x, 1", [1])])
def test_visible_devices_keep_their_numbers(value, seen):
    listed = devices.parse("ultra:3")
    environ = {"QAIC_VISIBLE_DEVICES": value}
    assert [device.qid for device in devices.visible(listed, environ=environ)] == seen


def test_the_command_installs_without_heavy_imports(tmp_path):
    code = (
        "import sys; from qeff_engine.simulated_sdk.__main__ import main;"
        f"code = main(['install', {str(tmp_path / 'sdk')!r}, '--devices', 'pro:1']);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'google.protobuf'} & sys.modules.keys();"
        "print(sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "sdk"), "[]"]


def test_the_command_refuses_with_a_usage_error(tmp_path):
    command = [
        sys.executable,
        "-m",
        "qeff_engine.simulated_sdk",
        "install",
        str(tmp_path / "sdk"),
        "--devices",
        "gpu:1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'gpu:1' is not KIND:COUNT" in done.stderr


def test_tools_run_from_a_directory_with_blanks_and_a_long_interpreter_path(tmp_path, monkeypatch):
    interpreter = tmp_path / ("long name " * 12) / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    root = install(tmp_path / "my sdk", devices="ultra:1")
    environ = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [root / "tools" / "qaic-version-util", "--apps"], capture_output=True, text=True, check=False, env=environ
    )
    assert done.stdout == "apps:AIC.1.20.4\n", done.stderr


def test_versions_are_told_as_the_real_tool_tells_them(simulated_sdk_root):
    done = subprocess.run(
        [simulated_sdk_root / "tools" / "qaic-version-util"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"platform:AIC\.[\d.]+\napps:AIC\.[\d.]+\nfactory:not found\n", done.stdout)
