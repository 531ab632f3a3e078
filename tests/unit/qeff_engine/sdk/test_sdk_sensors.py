"""Power and temperature, from files laid out as the kernel's driver lays them out."""

from __future__ import annotations

import threading

import pytest

from qeff_engine.sdk import sensors
from qeff_engine.sdk.devices import Device


def device(qid, *, board="B1"):
    address = f"0000:0{qid + 1}:00.0"
    sizes = {"nsp_total": 16, "nsp_free": 16, "dram_total_mb": 32768, "dram_free_mb": 32768}
    return Device(qid=qid, status="Ready", sku="PCIe", board_serial=board, pci_address=address, **sizes)


def write(root, shown, **values):
    folder = root / "bus" / "pci" / "devices" / shown.pci_address / "hwmon" / "hwmon3"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def test_mean_power_highest_temperature_and_energy(tmp_path):
    shown = device(0)
    write(tmp_path, shown, power1_input=30_000_000, power1_max=75_000_000, temp2_input=45_500)
    with sensors.watch([shown], root=tmp_path, period_s=1000) as watch:
        write(tmp_path, shown, power1_input=50_000_000, temp2_input=61_250)
    assert (watch.power_w, watch.temperature_c, watch.cap_w) == (40.0, 61.25, 75.0)
    figures = watch.figures(seconds=2.0, count=100)
    assert figures == {"power_w": 40.0, "power_cap_w": 75.0, "temperature_c": 61.25, "joules_per_token": 0.8}
    assert watch.figures(seconds=0.0, count=100).keys() == {"power_w", "power_cap_w", "temperature_c"}


def test_readings_are_taken_while_the_block_runs(tmp_path):
    shown = device(0)
    write(tmp_path, shown, power1_input=10_000_000)
    seen = threading.Event()

    class Noticing(sensors.Watch):
        def sample(self):
            super().sample()
            if self.power_w is not None and self.power_w > 10:
                seen.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensors, "Watch", Noticing)
        with sensors.watch([shown], root=tmp_path, period_s=0.001) as watch:
            write(tmp_path, shown, power1_input=20_000_000)
            assert seen.wait(timeout=60)
    assert 10 < watch.power_w <= 20


def test_devices_of_one_board_show_one_power_and_boards_add_up(tmp_path):
    listed = [device(0), device(1), device(2, board="B2")]
    for shown, power_w in zip(listed, (100, 110, 40), strict=True):
        write(tmp_path, shown, power1_input=power_w * 1_000_000, power1_max=150_000_000, temp2_input=40_000)
    with sensors.watch(listed, root=tmp_path) as watch:
        pass
    assert (watch.power_w, watch.cap_w) == (145.0, 300.0)


@pytest.mark.parametrize("values", [{}, {"power1_input": "", "temp2_input": "hot"}, None])
def test_a_host_that_shows_nothing_gives_no_figures(tmp_path, values):
    shown = device(0)
    if values is not None:
        write(tmp_path, shown, **values)
    with sensors.watch([shown, device(1, board="")], root=tmp_path) as watch:
        assert not any(thread.name == "sensors" for thread in threading.enumerate())
    assert watch.figures(seconds=1.0, count=1) == {}


def test_the_place_is_what_the_environment_names(tmp_path, monkeypatch):
    shown = device(0)
    write(tmp_path, shown, temp2_input=41_000)
    monkeypatch.setenv("QEFF_SYSFS_ROOT", str(tmp_path))
    with sensors.watch([shown]) as watch:
        pass
    assert watch.figures() == {"temperature_c": 41.0}
