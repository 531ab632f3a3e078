"""How much memory a host has when a control group allows less than is there."""

from __future__ import annotations

from pathlib import Path

import psutil

from workers import memory
from workers.memory import HostMemory

MIB = 1 << 20


def cgroup(tmp_path: Path, *, most: str) -> Path:
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{60 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {40 * MIB}\ninactive_file {15 * MIB}\nactive_file {5 * MIB}\n")
    return tmp_path


def test_a_limit_counts_and_cached_files_can_be_given_up(tmp_path: Path) -> None:
    seen = memory.look(cgroup(tmp_path, most=str(100 * MIB)))
    assert seen == HostMemory(total_bytes=100 * MIB, available_bytes=60 * MIB)


def test_without_a_limit_or_a_control_group_the_host_counts(tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert memory.look(tmp_path / "absent").total_bytes == total
    assert memory.look(cgroup(tmp_path, most="max")).total_bytes == total
    assert memory.look(cgroup(tmp_path, most=str(1 << 60))).total_bytes == total
