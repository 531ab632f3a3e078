import contextlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qeff_engine.errors import DeviceLost, DeviceOutOfMemory, Infrastructure, InvalidInput
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


def test_a_ready_device_without_cores_is_not_believed_and_costs_the_others_nothing():
    found = devices.parse_text(TEXT.replace("\tNsp Total:14\n", ""))
    assert found[::2] == [ULTRA, BROKEN]
    assert (found[1].qid, found[1].status, found[1].ready) == (1, "Unknown", False)


def test_what_older_tools_do_not_say_is_not_needed():
    lines = TEXT.split("\n")
    left = [line for line in lines if not line.startswith(("\tSku", "\tNsp Free", "\tDram Free", "\tBoard serial"))]
    found = devices.parse_text("\n".join(left))
    assert [device.ready for device in found] == [True, True, False]
    assert found[0] == Device(**{**ULTRA.__dict__, "sku": "", "board_serial": "", "dram_free_mb": 32768})
    assert found[0].identity == "/0000:01:00.0"
    assert devices.parse_text("QID 4\n\tStatus:Ready\n\tNsp Total:16\n\tDram Total:1 MB\n")[0].identity == "qid 4"


def test_line_ends_of_windows_and_trailing_blanks_are_no_obstacle():
    assert devices.parse_text("\ufeff" + TEXT.replace("\n", " \t\r\n")) == [ULTRA, STANDARD, BROKEN]


@pytest.mark.parametrize("text", ["Segmentation fault", "\x00\x01", "<html>", "QID zero\n\tStatus:Ready\n"])
def test_text_without_a_device_is_an_error(text):
    with pytest.raises(Infrastructure, match="no list of devices"):
        devices.parse_text(text)


_fields = st.tuples(
    st.sampled_from(
        ["Status", "Nsp Total", "Nsp Free", "Dram Total", "Sku Type", "Board serial", "QID", "New", "", "a:b"]
    ),
    st.text(max_size=12),
)
_noise = st.one_of(st.text(max_size=40), _fields.map(lambda field: f"\t{field[0]}:{field[1]}"))


@given(
    blocks=st.lists(
        st.tuples(
            st.integers(0, 255),  # number
            st.booleans(),  # ready
            st.integers(1, 99),  # cores
            st.permutations(["Sku Type:PCIe Next", "Board serial:X", "PCI Address:0000:01:00.0", "Nsp Free:3", ""]),
            st.integers(0, 5),  # how many of them
            st.lists(_noise, max_size=4),
        ),
        max_size=5,
        unique_by=lambda block: block[0],
    ),
    before=st.lists(_noise.filter(lambda line: "QID" not in line), max_size=2),
    end=st.sampled_from(["\n", "\r\n", "  \n", "\t \r\n"]),
)
@settings(max_examples=150, deadline=None)
def test_no_ready_device_is_lost_whatever_stands_around_it(blocks, before, end):
    lines = list(before)
    for number, ready, cores, optional, count, noise in blocks:
        status = "Ready" if ready else "Error"
        known = (
            [f"\tStatus:{status}", f"\tNsp Total:{cores}", "\tDram Total:16384 MB"] if ready else [f"\tStatus:{status}"]
        )
        # Noise of one line cannot begin another block, since it is text behind or without a header.
        plain = [" ".join(line.split()) for line in noise]
        lines += [f"QID {number}", *known, *(f"\t{field}" for field in optional[:count])]
        lines += [line for line in plain if not line.startswith("QID")]
    try:
        found = devices.parse_text(end.join(lines) + end)
    except Infrastructure:
        assert not blocks
        return
    expected = sorted((number, cores) for number, ready, cores, *_ in blocks if ready)
    assert [(device.qid, device.nsp_total) for device in found if device.ready] == expected
    assert len(found) == len(blocks)


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


@given(
    ready=st.lists(st.integers(0, 255), unique=True, max_size=3),
    extra=st.dictionaries(st.text(max_size=8).filter(lambda key: key.strip()[:1] not in "qdnQDN"), _json, max_size=3),
    other=_json,
)
@settings(max_examples=100, deadline=None)
def test_json_with_more_or_less_in_it_is_read_or_left_to_the_text(ready, extra, other):
    core = {"dev_status": "Ready", "nsp_total": 16, "dram_total_mb": 32768}
    entries = [{**extra, **core, "qid": number} for number in ready]
    found = devices.parse_json(json.dumps({"device_info": entries, **extra}))
    if found is not None:
        assert [(device.qid, device.ready) for device in found] == [(number, True) for number in sorted(ready)]
    for text in (json.dumps(other), json.dumps({"device_info": other}), json.dumps({"device_info": [other]})):
        assert isinstance(devices.parse_json(text), list | None)


def test_json_that_is_nested_too_deep_is_not_taken():
    assert devices.parse_json("[" * 100_000) is None
    assert devices.parse_json('{"device_info": [{"qid": Infinity, "dev_status": "Error"}]}') is None


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
        "open(sys.argv[3], 'w').write('{}') if '-j' in sys.argv else print(text)",
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


def test_a_hanging_tool_ends_with_all_its_processes(tmp_path):
    script = """
    import os, signal
    if os.fork() == 0:
        open(sys.argv[0] + '.child', 'w').write(str(os.getpid()))
    signal.pause()
    """
    sdk = sdk_with(tmp_path, script)
    child = tmp_path / "tools" / "qaic-util.child"
    with pytest.raises(Infrastructure, match="did not answer"):
        devices.discover(sdk, limit_s=2)
    # On a busy machine it may not have been born; and it may stay a zombie for a while.
    stat = Path(f"/proc/{child.read_text()}/stat") if child.exists() else tmp_path / "none"
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_several_devices_come_from_one_board():
    listed = [
        Device(**{**ULTRA.__dict__, "qid": qid, "board_serial": board, "nsp_free": free})
        for qid, board, free in ((0, "B1", 9), (1, "B1", 9), (2, "B2", 12), (3, "B2", 12), (4, "B2", 16), (5, "B3", 10))
    ]
    assert [device.qid for device in devices.pick(listed, num_cores=8, num_devices=2)] == [0, 1]
    assert [device.qid for device in devices.pick(listed, num_cores=8, num_devices=3)] == [2, 3, 4]
    assert len(devices.pick(listed, num_cores=8, num_devices=6)) == 6


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


IDLE = Device(**{**ULTRA.__dict__, "nsp_free": 16, "nsp_total": 16, "dram_free_mb": 30_000, "dram_total_mb": 32_000})
USED = Device(**{**IDLE.__dict__, "nsp_free": 6, "dram_free_mb": 10_000})


@pytest.mark.parametrize(
    ("device", "num_cores", "dram_mb", "kind", "said"),
    [
        (IDLE, 16, 30_000, None, ""),
        (USED, 6, 10_000, None, ""),
        (USED, 8, 1, DeviceLost, r"needs 8 cores on device \d+ \(.*\), and 6 of 16 are free"),
        (USED, 1, 20_000, DeviceLost, "needs 20000 MB of memory on device .* and 10000 of 32000 are free"),
        (USED, 8, 20_000, DeviceLost, "needs 8 cores .* needs 20000 MB"),
        (USED, 1, 33_000, DeviceOutOfMemory, "needs 33000 MB of memory"),
        (IDLE, 1, 31_000, DeviceOutOfMemory, "and 30000 of 32000 are free"),
    ],
)
def test_what_does_not_fit_now_is_refused_before_it_is_activated(device, num_cores, dram_mb, kind, said):
    with pytest.raises(kind, match=said) if kind else contextlib.nullcontext():
        devices.require_room(device, num_cores=num_cores, dram_bytes=dram_mb << 20)
