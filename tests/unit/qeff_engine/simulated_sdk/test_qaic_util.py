"""The query tool, against its published format and the expressions with which clients read it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from qeff_engine.simulated_sdk import devices, occupancy, util_cli
from qeff_engine.simulated_sdk.install import install


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.delenv("QAIC_VISIBLE_DEVICES", raising=False)
    return install(tmp_path / "sdk", devices="ultra:2,standard:1")


def _text(root, capsys, *arguments):
    assert util_cli.main(list(arguments), root=root) == 0
    return capsys.readouterr().out


def test_text_satisfies_the_expressions_of_existing_clients(root, capsys):
    text = _text(root, capsys, "-q")
    assert re.findall(r"^QID (\d+)\s*$", text, re.MULTILINE) == ["0", "1", "2"]
    assert re.findall(r"^\s*Nsp Total:(\d+)\s*$", text, re.MULTILINE) == ["16", "16", "14"]
    assert len(re.findall(r"^\s*Board serial:(.+?)\s*$", text, re.MULTILINE)) == 3
    assert text.count("Status:Ready") == 3


def test_every_key_stands_behind_a_tab_without_a_space_after_the_colon(root, capsys):
    lines = _text(root, capsys, "-q", "-d", "0").splitlines()
    assert lines[0] == "QID 0"
    keys = []
    for line in lines[1:]:
        assert line.startswith("\t")
        key, value = line[1:].split(":", 1)
        keys.append(key)
        assert value.startswith(" ") == (key == "NSP Defective PG Mask")
        assert value.endswith(" ") == (key == "Dev Link")
    documented = [
        *("Status", "PCI Address", "PCI Info", "Max Link Speed", "Dev Link", "HW Version", "FW Version"),
        *("Dram Total", "Dram Free", "Dram Fragmentation", "Vc Total", "Vc Free", "Nsp Total", "Nsp Free"),
        *("Networks Loaded", "Networks Active", "NSP Frequency(Mhz)", "NSP Defective PG Mask", "Sku Type"),
        *("Board serial", "TDP Cap(Watts)"),
    ]
    assert [key for key in keys if key in documented] == documented


def test_json_has_the_keys_of_the_tool_in_snake_case(root, tmp_path, capsys):
    assert util_cli.main(["-q", "-j", str(tmp_path / "out.json")], root=root) == 0
    records = json.loads((tmp_path / "out.json").read_text())["device_info"]
    assert [record["qid"] for record in records] == [0, 1, 2]
    ultra, standard = records[0], records[2]
    assert (ultra["dev_status"], ultra["sku_type"]) == ("Ready", "PCIe Ultra")
    assert (ultra["nsp_total"], ultra["nsp_free"], standard["nsp_total"]) == (16, 16, 14)
    assert ultra["board_serial"] == records[1]["board_serial"] != standard["board_serial"]
    assert all(re.fullmatch(r"[a-z0-9_]+", key) for key in ultra)


def test_what_a_program_holds_is_shown_at_once(root, capsys):
    device = devices.load(root)[2]
    holding = occupancy.take(root, device=device, amounts=occupancy.Amounts(cores=5, dram_mb=100, channels=1))
    text = _text(root, capsys, "-q", "-d", "2")
    for line in ("Nsp Free:9", "Vc Free:15", "Networks Active:1", f"Dram Free:{16384 - 2048 - 100} MB"):
        assert f"\t{line}\n" in text
    holding.release()
    assert "\tNsp Free:14\n" in _text(root, capsys, "-q", "-d", "2")


def test_a_device_that_may_not_be_opened_has_status_error_and_a_short_block(root, capsys):
    shutil.rmtree(root / "state")
    (root / "state").write_text("no folder")
    text = _text(root, capsys, "-q", "-d", "0")
    assert "\tStatus:Error\n" in text
    assert text.rstrip("\n").splitlines()[-1].startswith("\tDev Link:")


def test_only_visible_devices_are_shown(root, capsys, monkeypatch):
    monkeypatch.setenv("QAIC_VISIBLE_DEVICES", "1")
    assert re.findall(r"^QID (\d+)$", _text(root, capsys, "-q"), re.MULTILINE) == ["1"]


@pytest.mark.parametrize("arguments", [["-d", "9"], ["-d"], ["-x"], ["-j"], ["-d", "a"]])
def test_wrong_usage_ends_with_1_and_says_why(root, capsys, arguments):
    assert util_cli.main(["-q", *arguments], root=root) == 1
    assert capsys.readouterr().err


def test_the_installed_tool_answers_as_a_process(simulated_sdk_root):
    done = subprocess.run(
        [simulated_sdk_root / "tools/qaic-util", "-q"], capture_output=True, text=True, check=True, env={}
    )
    assert re.findall(r"^\tNsp Total:(\d+)$", done.stdout, re.MULTILINE) == ["16", "14"]
