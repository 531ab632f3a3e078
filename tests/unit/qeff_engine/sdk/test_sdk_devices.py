import json
import subprocess
import sys
import textwrap

import pytest

from qeff_engine.errors import DeviceLost, Infrastructure, InvalidInput
from qeff_engine.sdk import devices, location
from qeff_engine.sdk.devices import Device

TEXT = (
    "QID 1\n\tStatus:Ready\n\tPCI Address:0000:02:00.0\n\tPCI Info:Qualcomm Device a100\n"
    "\tDev Link:/dev/accel/accel1 \n\tDram Total:16384 MB\n\tDram Free:16000 MB\n\tDram Fragmentation:0.00%\n"
    "\tNsp Total:14\n\tNsp Free:6\n\tNSP Defective PG Mask: 0x0\n\tSku Type:PCIe\n\tBoard serial:B2\n"
    "QID 0\n\tStatus:Ready\n\tPCI Address:0000:01:00.0\n\tDram Total:32768 MB\n\tDram Free:32000 MB\n"
    "\tNsp Total:16\n\tNsp Free:16\n\tSku Type:PCIe Ultra\n\tBoard serial:B1\n"
    "QID 2\n\tStatus:Error\n\tPCI Address:0000:03:00.0\n\tDev Link:/dev/accel/accel2 \n"
)
ULTRA = Device(
    qid=0,
    status="Ready",
    sku="PCIe Ultra",
    board_serial="B1",
    pci_address="0000:01:00.0",
    nsp_total=16,
    nsp_free=16,
    dram_total_mb=32768,
    dram_free_mb=32000,
)
STANDARD = Device(
    qid=1,
    status="Ready",
    sku="PCIe",
    board_serial="B2",
    pci_address="0000:02:00.0",
    nsp_total=14,
    nsp_free=6,
    dram_total_mb=16384,
    dram_free_mb=16000,
)
BROKEN = Device(
    qid=2,
    status="Error",
    sku="",
    board_serial="",
    pci_address="0000:03:00.0",
    nsp_total=0,
    nsp_free=0,
    dram_total_mb=0,
    dram_free_mb=0,
)
JSON = {
    "device_info": [
        {
            "qid": 0,
            "dev_status": "Ready",
            "sku_type": "PCIe Ultra",
            "board_serial": "B1",
            "pci_address": "0000:01:00.0",
            "nsp_total": 16,
            "nsp_free": 16,
            "dram_total_mb": 32768,
            "dram_free_mb": 32000,
        }
    ]
}


def sdk_with(tmp_path, script):
    """An SDK whose qaic-util is a Python script."""
    tool = tmp_path / "tools" / "qaic-util"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!{sys.executable}\nimport sys\ntext = {TEXT!r}\n{textwrap.dedent(script)}")
    tool.chmod(0o755)
    return location.find(tmp_path)


def test_text_blocks_become_devices_in_order_of_qid():
    assert devices.parse_text(TEXT) == [ULTRA, STANDARD, BROKEN]


def test_identity_survives_a_shift_of_numbers():
    shifted = devices.parse_text(TEXT.replace("QID 1\n", "QID 7\n"))
    assert [device.identity for device in shifted] == [ULTRA.identity, BROKEN.identity, STANDARD.identity]


def test_unknown_lines_are_no_obstacle():
    noisy = "Some banner\n" + TEXT.replace("\tNsp Free", "\tNew Field:a:b:c\n garbage\n\n\tNsp Free")
    assert devices.parse_text(noisy) == [ULTRA, STANDARD, BROKEN]


def test_a_ready_device_without_cores_is_not_believed():
    with pytest.raises(Infrastructure, match="without 'nsp_total'"):
        devices.parse_text(TEXT.replace("\tNsp Total:14\n", ""))


def test_no_device_is_an_empty_list():
    assert devices.parse_text("") == []


def test_json_is_read_with_and_without_nesting():
    assert devices.parse_json(json.dumps(JSON)) == [ULTRA]
    nested = {
        "device_info": [
            {**JSON["device_info"][0], "nsp_total": None, "resources": {"Nsp Total": 16, "Dram Total": "32768 MB"}}
        ]
    }
    assert devices.parse_json(json.dumps(nested)) == [ULTRA]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"device_info": [3]}', '{"device_info": [{"dev_status": "Ready"}]}'])
def test_json_of_another_form_is_not_taken(text):
    assert devices.parse_json(text) is None


def test_json_with_numbers_for_words_is_not_taken():
    other = json.dumps(JSON).replace('"Ready"', "1")
    assert devices.parse_json(other) is None


@pytest.mark.parametrize(
    "script",
    [
        "print(text)",  # ignores -j
        "sys.exit('unknown option -j') if '-j' in sys.argv else print(text)",
        "open(sys.argv[3], 'w').write('{}') if '-j' in sys.argv else None\nprint(text)",
    ],
)
def test_text_is_used_where_the_tool_writes_no_json(tmp_path, script):
    assert devices.discover(sdk_with(tmp_path, script)) == [ULTRA, STANDARD, BROKEN]


def test_json_is_preferred(tmp_path):
    script = f"open(sys.argv[sys.argv.index('-j') + 1], 'w').write({json.dumps(JSON)!r})\nprint('QID 5')"
    assert devices.discover(sdk_with(tmp_path, script)) == [ULTRA]


def test_failing_tool_is_an_error_with_its_words(tmp_path):
    with pytest.raises(Infrastructure, match="exit code 1: no driver"):
        devices.discover(sdk_with(tmp_path, "sys.exit('no driver')"))


def test_hanging_tool_is_an_error(tmp_path):
    with pytest.raises(Infrastructure, match=r"did not answer within 0.2 s"):
        devices.discover(sdk_with(tmp_path, "import signal\nsignal.pause()"), limit_s=0.2)


def test_the_tightest_fit_is_picked():
    spare = Device(**{**ULTRA.__dict__, "qid": 3, "nsp_free": 8})
    assert devices.pick([ULTRA, STANDARD, BROKEN, spare], num_cores=6, num_devices=1) == (STANDARD,)
    assert devices.pick([ULTRA, STANDARD, spare], num_cores=8, num_devices=2) == (spare, ULTRA)


def test_cores_in_use_may_come_free_but_missing_ones_never():
    with pytest.raises(DeviceLost, match="0 of 1 device"):
        devices.pick([STANDARD], num_cores=14, num_devices=1)
    with pytest.raises(InvalidInput, match="widest with 14 cores"):
        devices.pick([STANDARD], num_cores=16, num_devices=1)
    with pytest.raises(InvalidInput, match="0 device"):
        devices.pick([], num_cores=1, num_devices=1)


def test_discovery_imports_neither_numpy_nor_torch():
    code = "import sys, qeff_engine.sdk.devices; print(sorted({'numpy', 'torch', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_forms_of_the_simulated_tool_tell_the_same(simulated_sdk_root):
    sdk = location.find(simulated_sdk_root)
    text = subprocess.run([sdk.tool("qaic-util"), "-q"], capture_output=True, text=True, check=True).stdout
    found = devices.discover(sdk)
    assert devices.parse_text(text) == found
    assert [(device.qid, device.nsp_total, device.ready) for device in found] == [(0, 16, True), (1, 14, True)]
    assert len({device.identity for device in found}) == 2
