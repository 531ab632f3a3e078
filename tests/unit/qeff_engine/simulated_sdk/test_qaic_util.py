"""The query tool, against its published format and the expressions with which clients read it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

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


# The field list of the published source of the open runtime's tool, in its order; board and sensors from its main file.
_DOCUMENTED = """
Status, PCI Address, PCI Info, Max Link Speed, Max Link Width, Current Link Speed, Current Link Width, Dev Link,
HW Version, HW Serial, FW Version, FW QC_IMAGE_VERSION, FW OEM_IMAGE_VERSION, FW IMAGE_VARIANT,
NSP Version, NSP QC_IMAGE_VERSION, NSP OEM_IMAGE_VERSION, NSP IMAGE_VARIANT,
Dram Total, Dram Free, Dram Fragmentation, Vc Total, Vc Free, Pc Total, Pc Reserved, Nsp Total, Nsp Free,
Last 100ms Average Dram Bw, MCID Total, MCID Free, Semaphore Total, Semaphore Free,
Constants Loaded, Constants In-Use, Networks Loaded, Networks Active,
NSP Frequency(Mhz), DDR Frequency(Mhz), COMPNOC Frequency(Mhz), MEMNOC Frequency(Mhz), SYSNOC Frequency(Mhz),
Metadata Version, NNC Command Protocol Version, SBL Image, PVS Image Version, NSP Defective PG Mask,
Sku Type, Board serial, SoC temperature(degree C), Board power(Watts), TDP Cap(Watts)
"""
# How values of some fields look there.
_FORMS = {
    "PCI Address": r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]",
    "Max Link Speed": r"\d+GT/s",
    "Current Link Width": r"x\d+",
    "Dev Link": r"/dev/accel/accel\d+ ",
    "HW Version": r"\d+\.\d+\.\d+\.\d+",
    "FW Version": r"\d+\.\d+\.\d+(\.\d+)?",
    "Dram Total": r"\d+ MB",
    "Dram Free": r"\d+ MB",
    "Dram Fragmentation": r"\d+\.\d\d%",
    "Nsp Free": r"\d+",
    "Last 100ms Average Dram Bw": r"[\d.]+ KBps",
    "NSP Frequency(Mhz)": r"\d+\.\d\d",
    "DDR Frequency(Mhz)": r"\d+\.\d\d",
    "Metadata Version": r"\d+\.\d+",
    "NSP Defective PG Mask": r" 0x[0-9A-F]+",
    "SoC temperature(degree C)": r"\d+\.\d\d",
    "Board power(Watts)": r"\d+\.\d\d",
    "TDP Cap(Watts)": r"\d+\.\d\d",
}


def test_every_key_stands_behind_a_tab_in_the_order_and_the_form_of_the_published_source(root, capsys):
    text = _text(root, capsys, "-q", "-d", "0")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    lines = text.splitlines()
    assert lines[0] == "QID 0"
    values = {}
    for line in lines[1:]:
        assert line.startswith("\t")
        key, value = line[1:].split(":", 1)
        assert value.startswith(" ") == (key == "NSP Defective PG Mask")
        assert value.endswith(" ") == (key == "Dev Link")
        values[key] = value
    documented = [name.strip() for name in _DOCUMENTED.replace("\n", " ").split(",")]
    assert [key for key in values if key in documented] == documented
    assert {key: value for key, value in values.items() if not re.fullmatch(_FORMS.get(key, ".*"), value)} == {}


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-d", "9"], "Device 9 invalid"),
        (["-d", "a"], "Device a invalid"),
        (["-d"], "qaic-util: option requires an argument -- 'd'"),
        (["-x"], "qaic-util: invalid option -- 'x'"),
        (["--quary"], "qaic-util: unrecognized option '--quary'"),
        (["--query=1"], "qaic-util: option '--query' doesn't allow an argument"),
        (["-t", "0"], "qaic-util: refresh rate is '0'"),
        (["-f", "Ready"], "qaic-util: filter is 'Ready', expected FIELD==VALUE"),
        (["-j", "/nowhere/out.json"], "Unable to write /nowhere/out.json"),
    ],
)
def test_wrong_usage_ends_with_255_and_says_why(root, capsys, arguments, said):
    assert util_cli.main(["-q", *arguments], root=root) == 255
    assert said in capsys.readouterr().err


def test_help_is_the_published_usage_and_ends_with_255(root, capsys):
    assert util_cli.main(["-h"], root=root) == 255
    out = capsys.readouterr().out
    assert out.startswith("Usage: qaic-util [options]\n  -d, --aic-device-id <id>  ")
    assert "  -t, --table <refresh-rate-sec> [-d QID] " in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["-d0", "-d", "2"],
        ["--aic-device-id=0", "-qd2"],
        ["--aic", "0", "--aic-device-id", "2"],
        ["-d", "0", "-d2", "word"],
    ],
)
def test_devices_are_chosen_as_getopt_reads_options(root, capsys, arguments):
    text = _text(root, capsys, *arguments)
    assert re.findall(r"^QID (\d+)$", text, re.MULTILINE) == ["0", "2"]


def test_a_filter_leaves_the_devices_of_a_board(root, capsys):
    serial = devices.load(root)[2].board_serial
    text = _text(root, capsys, "-q", "-f", f"Board serial=={serial}")
    assert re.findall(r"^QID (\d+)$", text, re.MULTILINE) == ["2"]
    assert _text(root, capsys, "-q", "-f", "Board serial==other") == ""


def test_a_reset_hits_the_whole_card_and_its_programs_find_out(root, capsys):
    listed = devices.load(root)
    amounts = occupancy.Amounts(cores=5, dram_mb=100, channels=1)
    on_first, on_neighbour, elsewhere = (occupancy.take(root, device=device, amounts=amounts) for device in listed)
    assert listed[0].board_serial == listed[1].board_serial != listed[2].board_serial
    assert _text(root, capsys, "-s", "-d", "1") == ""
    assert [holding.lost for holding in (on_first, on_neighbour, elsewhere)] == [True, True, False]
    free = re.findall(r"^\tNsp Free:(\d+)$", _text(root, capsys, "-q"), re.MULTILINE)
    assert free == ["16", "16", "9"]
    again = occupancy.take(root, device=listed[0], amounts=amounts)
    on_first.release()
    assert "\tNsp Free:11\n" in _text(root, capsys, "-q", "-d", "0")
    for holding in (again, on_neighbour, elsewhere):
        holding.release()


def test_version_and_slicing_succeed(root, capsys):
    assert "1.20.4" in _text(root, capsys, "-V")
    assert _text(root, capsys, "-a", "-d", "0") == ""


def test_the_table_is_drawn_until_it_is_interrupted(simulated_sdk_root):
    command = [simulated_sdk_root / "tools/qaic-util", "-t", "600", "-d", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={})
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()
    assert lines[1].startswith("DeviceID-1 --- Status: Ready --- FW Version: ")
    for name in ("NSP Used / Total: 0 / 14", "NW Loaded / Active: 0 / 0", "DRAM Used / Total: ", "Power / TDP Cap: "):
        assert name in lines[2]


def test_many_threads_may_ask_while_others_take_and_give_back(root):
    device = devices.load(root)[2]

    def ask(number):
        path = root / f"{number}.json"
        for _ in range(10):
            holding = occupancy.take(root, device=device, amounts=occupancy.Amounts(cores=1, dram_mb=1, channels=1))
            assert util_cli.main(["-q", "-j", str(path)], root=root) == 0
            record = json.loads(path.read_text())["device_info"][2]
            # This thread's own program is seen, and never more than one for each thread.
            assert 1 <= record["networks_active"] <= 4
            assert record["nsp_free"] == 14 - record["networks_active"]
            holding.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


def test_the_installed_tool_answers_as_a_process(simulated_sdk_root):
    done = subprocess.run(
        [simulated_sdk_root / "tools/qaic-util", "-q"], capture_output=True, text=True, check=True, env={}
    )
    assert re.findall(r"^\tNsp Total:(\d+)$", done.stdout, re.MULTILINE) == ["16", "14"]
