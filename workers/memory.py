"""How much memory this host has and how much of it is left, also where a control group allows less than is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")  # version 2; inside a container it is the container's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostMemory:
    """Bytes that processes of this host may have altogether, and those that are left."""

    total_bytes: int
    available_bytes: int


def look(cgroup: Path = _CGROUP) -> HostMemory:
    """The memory of this host now."""
    seen = psutil.virtual_memory()
    host = HostMemory(total_bytes=seen.total, available_bytes=seen.available)
    limited = _of_cgroup(cgroup)
    if limited is None or limited.total_bytes >= host.total_bytes:
        return host
    return HostMemory(
        total_bytes=limited.total_bytes, available_bytes=min(host.available_bytes, limited.available_bytes)
    )


def _of_cgroup(cgroup: Path) -> HostMemory | None:
    """What a control group is limited to; None when it is not."""
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used_bytes = int((cgroup / "memory.current").read_text())
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    cache_bytes = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))  # given up when it gets tight
    return HostMemory(total_bytes=int(most), available_bytes=max(0, int(most) - used_bytes + cache_bytes))
