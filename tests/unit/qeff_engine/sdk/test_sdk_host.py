"""What doctors say of a host, on made-up hosts: directories with the files that the kernel shows."""

from __future__ import annotations

import os

import pytest

from qeff_engine.sdk import host
from qeff_engine.sdk.host import Host, Level

_GIB = 1 << 30


def card(root, number, *, group=None, region_bytes=2 * _GIB, device="0xa100", vendor="0x17cb"):
    """A PCI function of a card, and its IOMMU group."""
    folder = root / "sys/bus/pci/devices" / f"0000:{number:02x}:00.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")
    lines = [f"{0:#018x} {0:#018x} {0:#018x}"] * 6
    lines[4] = f"{0x1000000000:#018x} {0x1000000000 + region_bytes - 1:#018x} {0x14220C:#018x}"
    (folder / "resource").write_text("\n".join(lines) + "\n")
    if group is not None:
        (root / "sys/kernel/iommu_groups" / group).mkdir(parents=True, exist_ok=True)
        (folder / "iommu_group").symlink_to(root / "sys/kernel/iommu_groups" / group)
    return folder


def node(root, number, *, vendor="0x17cb", mode=0o660):
    """A device file."""
    (root / "dev/accel").mkdir(parents=True, exist_ok=True)
    path = root / "dev/accel" / f"accel{number}"
    path.write_text("")
    path.chmod(mode)
    (root / "sys/class/accel" / path.name / "device").mkdir(parents=True)
    (root / "sys/class/accel" / path.name / "device/vendor").write_text(f"{vendor}\n")
    return path


def someone(root, **fields):
    """The host as a user sees it who owns none of its files."""
    return Host(**{"root": root, "kernel": "6.8.0-45-generic", "uid": os.getuid() + 1, "gids": frozenset(), **fields})


def levels(findings):
    return {finding.name: str(finding.level) for finding in findings}


def test_a_host_without_cards_can_compile_and_not_run(tmp_path):
    (finding,) = host.for_cards(someone(tmp_path))
    assert (finding.name, finding.level) == ("cards", Level.WARN)
    assert "can compile and not run" in finding.advice


def test_other_accelerators_are_not_taken_for_cards(tmp_path):
    card(tmp_path, 1, vendor="0x8086", device="0x7d1d")
    node(tmp_path, 0, vendor="0x8086")
    assert Host(root=tmp_path).cards() == []
    assert Host(root=tmp_path).nodes() == []


def test_one_card_in_order_has_nothing_to_complain_about(tmp_path):
    card(tmp_path, 1, group="7")
    path = node(tmp_path, 0)
    found = host.for_cards(someone(tmp_path, gids=frozenset({path.stat().st_gid})))
    assert levels(found) == {"driver": "ok", "permission": "ok", "kernel": "ok", "IOMMU": "ok"}
    assert all(not finding.advice for finding in found)


@pytest.mark.parametrize(("files", "level"), [(0, "fail"), (1, "warn"), (2, "ok")])
def test_cards_without_device_files_lack_their_driver(tmp_path, files, level):
    for number in (1, 2):
        card(tmp_path, number, group="7")
    for number in range(files):
        node(tmp_path, number)
    (driver,) = (finding for finding in host.for_cards(someone(tmp_path)) if finding.name == "driver")
    assert str(driver.level) == level
    assert ("modprobe qaic" in driver.advice) == (level != "ok")


def test_files_of_older_drivers_count(tmp_path):
    card(tmp_path, 1, group="7")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/qaic_aic100_0").write_text("")
    assert levels(host.for_cards(someone(tmp_path)))["driver"] == "ok"


@pytest.mark.parametrize(
    ("mode", "in_group", "uid_is_owner", "level"),
    [
        (0o660, False, False, "fail"),
        (0o660, True, False, "ok"),
        (0o640, True, False, "fail"),
        (0o666, False, False, "ok"),
        (0o600, False, True, "ok"),
    ],
)
def test_who_may_not_open_the_files_is_told_the_group(tmp_path, mode, in_group, uid_is_owner, level):
    card(tmp_path, 1, group="7")
    path = node(tmp_path, 0, mode=mode)
    gids = frozenset({path.stat().st_gid}) if in_group else frozenset()
    uid = path.stat().st_uid if uid_is_owner and path.stat().st_uid else os.getuid() + 1
    if uid_is_owner and not path.stat().st_uid:
        uid = 0
    (found,) = (item for item in host.for_cards(someone(tmp_path, gids=gids, uid=uid)) if item.name == "permission")
    assert str(found.level) == level
    assert ("group qaic" in found.advice) == (level == "fail")


@pytest.mark.parametrize(
    ("release", "level"), [("5.15.0-91", "warn"), ("6.1.9", "warn"), ("6.2.0", "ok"), ("10.0", "ok"), ("odd", "warn")]
)
def test_kernels_before_the_accel_class_are_named(tmp_path, release, level):
    card(tmp_path, 1, group="7")
    assert levels(host.for_cards(someone(tmp_path, kernel=release)))["kernel"] == level


def test_slicing_wants_one_group_large_regions_and_patience(tmp_path):
    for number in (1, 2):
        card(tmp_path, number, group=str(number), region_bytes=_GIB if number == 2 else 2 * _GIB)
    parameters = tmp_path / "sys/module/qaic/parameters"
    parameters.mkdir(parents=True)
    (parameters / "control_resp_timeout_s").write_text("60\n")
    found = {finding.name: finding for finding in host.for_cards(someone(tmp_path))}
    assert [str(found[name].level) for name in ("P2P region", "ACS", "control timeout")] == ["warn"] * 3
    assert "0000:02:00.0 has less than 2 GiB" in found["P2P region"].found
    assert "qaic-util -a" in found["ACS"].advice
    assert "2600" in found["control timeout"].advice


def test_slicing_that_is_set_up_is_fine(tmp_path):
    for number in (1, 2):
        card(tmp_path, number, group="7")
    parameters = tmp_path / "sys/module/qaic/parameters"
    parameters.mkdir(parents=True)
    (parameters / "control_resp_timeout_s").write_text("2600\n")
    found = levels(host.for_cards(someone(tmp_path)))
    assert {name: found[name] for name in ("P2P region", "ACS", "control timeout", "IOMMU")} == dict.fromkeys(
        ("P2P region", "ACS", "control timeout", "IOMMU"), "ok"
    )


def test_without_an_iommu_there_are_few_interrupts(tmp_path):
    card(tmp_path, 1)
    assert levels(host.for_cards(someone(tmp_path)))["IOMMU"] == "warn"


@pytest.mark.parametrize(
    ("gib", "simulated", "level"), [(2, True, "fail"), (8, True, "ok"), (64, False, "warn"), (768, False, "ok")]
)
def test_memory_for_compiling(tmp_path, gib, simulated, level):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {gib << 20} kB\nMemFree: 1 kB\n")
    found = levels(host.for_compiling(someone(tmp_path), cache=tmp_path / "cache", simulated=simulated))
    assert found["memory"] == level


@pytest.mark.parametrize(("limit", "level"), [("256", "warn"), ("1048576", "ok"), ("unlimited", "ok")])
def test_a_low_limit_of_open_files_is_named(tmp_path, limit, level):
    (tmp_path / "proc/self").mkdir(parents=True)
    text = f"Limit                Soft Limit     Hard Limit\nMax open files       {limit}    4096   files\n"
    (tmp_path / "proc/self/limits").write_text(text)
    assert levels(host.for_compiling(someone(tmp_path), cache=tmp_path, simulated=True))["open files"] == level


def test_what_cannot_be_read_is_said_or_left_out(tmp_path):
    found = {finding.name: finding for finding in host.for_compiling(someone(tmp_path), cache=tmp_path, simulated=True)}
    assert (found["memory"].level, found["memory"].found) == (Level.WARN, "not known")
    assert "open files" not in found
