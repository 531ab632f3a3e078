"""What a host must have for Cloud AI cards and for their compiler, read from its files. Standard library only.

Sources: the vendor's pages on installation, system management and model sharding
(https://quic.github.io/cloud-ai-sdk-pages), and the kernel's documentation of the driver (Documentation/accel/qaic).
What only root could read is inferred: whether access control (ACS) is off from IOMMU groups, since devices that ACS
isolates have groups of their own.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

_VENDOR, _CARD_IDS = "0x17cb", ("0xa100", "0xa080", "0xa0dc")
_GIB = 1 << 30
_COMPILE_MEMORY, _COMPILE_DISK = 512 * _GIB, 1000 * _GIB  # what the vendor asks for
_LEAST_MEMORY, _LEAST_DISK = 4 * _GIB, 2 * _GIB  # what small models need here
_LEAST_FILES = 1024  # a node with its stage processes holds a few hundred
_P2P_REGION, _P2P_BYTES = 4, 2 * _GIB
_SLICING_TIMEOUT_S = 2600
_ACCEL_KERNEL = (6, 2)


class Level(enum.StrEnum):
    """How bad something is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        level: how bad it is.
        found: what was found.
        advice: what to do about it; empty when it is fine.
    """

    name: str
    level: Level
    found: str
    advice: str = ""


def judged(name: str, level: Level, found: str, *, advice: str) -> Finding:
    """A finding whose advice stands only where something is wrong."""
    return Finding(name=name, level=level, found=found, advice="" if level is Level.OK else advice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """A host as its files show it.

    Attributes:
        root: where its file system is.
        kernel: its release.
        uid, gids: who asks.
    """

    root: Path = Path("/")
    kernel: str = dataclasses.field(default_factory=platform.release)
    uid: int = dataclasses.field(default_factory=os.geteuid)
    gids: frozenset[int] = dataclasses.field(default_factory=lambda: frozenset({os.getegid(), *os.getgroups()}))

    def cards(self) -> list[Path]:
        """The PCI functions of cards, a SoC each."""
        folders = sorted((self.root / "sys/bus/pci/devices").glob("*"))
        return [
            folder
            for folder in folders
            if _read(folder / "vendor") == _VENDOR and _read(folder / "device") in _CARD_IDS
        ]

    def nodes(self) -> list[Path]:
        """The device files of cards, of the kernel's driver and of older ones."""
        accel = [
            node
            for node in sorted((self.root / "dev/accel").glob("accel*"))
            # Others have accelerators, too.
            if _read(self.root / "sys/class/accel" / node.name / "device/vendor") in (_VENDOR, "")
        ]
        return [*accel, *sorted((self.root / "dev").glob("qaic_aic100_*"))]

    def may_open(self, path: Path) -> bool:
        """Whether who asks may read and write a file, by its mode."""
        try:
            status = path.stat()
        except OSError:
            return False
        if self.uid == 0:
            return True
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.gids else 0
        return status.st_mode >> shift & 0o6 == 0o6


def for_cards(host: Host) -> list[Finding]:
    """Whether the cards of a host can be used; of one without cards only that."""
    cards = host.cards()
    if not cards:
        return [
            judged(
                "cards",
                Level.WARN,
                "none on the PCI bus",
                advice="This host can compile and not run. If it has cards: see `lspci -d 17cb:` and reseat them.",
            )
        ]
    found = [_driver(host, num_cards=len(cards)), _permission(host), _kernel(host), _iommu(host)]
    return found + (_slicing(host, cards=cards) if len(cards) > 1 else [])


def for_compiling(host: Host, *, cache: Path, simulated: bool) -> list[Finding]:
    """Whether a host has memory, disk and limits for compilations.

    Args:
        host: the host.
        cache: where programs are kept.
        simulated: the compiler is a simulated one, which needs much less.
    """
    return [_memory(host, simulated=simulated), _disk(cache, simulated=simulated), *_limits(host)]


def _driver(host: Host, *, num_cards: int) -> Finding:
    nodes = host.nodes()
    level = Level.OK if len(nodes) >= num_cards else Level.WARN if nodes else Level.FAIL
    return judged(
        "driver",
        level,
        f"{num_cards} SoC(s) on the PCI bus, {len(nodes)} device file(s)",
        advice="Load the driver with `modprobe qaic` or install the Platform SDK; in a container pass "
        "`--device /dev/accel/`. The kernel's log says why one is missing.",
    )


def _permission(host: Host) -> Finding:
    closed = [node for node in host.nodes() if not host.may_open(node)]
    return judged(
        "permission",
        Level.FAIL if closed else Level.OK,
        f"{closed[0]} may not be opened" if closed else "device files may be opened",
        advice="Join the group qaic with `usermod -aG qaic $USER` and log in again; `qaic-util` shows such devices as "
        "Error.",
    )


def _kernel(host: Host) -> Finding:
    release = re.match(r"(\d+)\.(\d+)", host.kernel)
    new = release is not None and (int(release[1]), int(release[2])) >= _ACCEL_KERNEL
    return judged(
        "kernel",
        Level.OK if new else Level.WARN,
        host.kernel,
        advice="Kernels before 6.2 have 64 DRM devices at most, graphics included, and a card of four SoCs takes four: "
        "with many cards use a newer one.",
    )


def _iommu(host: Host) -> Finding:
    groups = len(list((host.root / "sys/kernel/iommu_groups").glob("*")))
    return judged(
        "IOMMU",
        Level.OK if groups else Level.WARN,
        f"{groups} group(s)" if groups else "off",
        advice="Cards want up to 32 interrupts each, which needs VT-d or AMD-Vi switched on in the firmware.",
    )


def _slicing(host: Host, *, cards: Sequence[Path]) -> list[Finding]:
    """What programs that span several devices need."""
    small = [card.name for card in cards if 0 < _region_bytes(card) < _P2P_BYTES]
    groups = [(card / "iommu_group").resolve().name for card in cards if (card / "iommu_group").exists()]
    apart = len(groups) > 1 and len(set(groups)) == len(groups)
    text = _read(host.root / "sys/module/qaic/parameters/control_resp_timeout_s")
    short = text.isdigit() and int(text) < _SLICING_TIMEOUT_S
    return [
        judged(
            "P2P region",
            Level.WARN if small else Level.OK,
            f"{small[0]} has less than 2 GiB in region {_P2P_REGION}" if small else "as large as slicing needs",
            advice="For programs over several devices enable MDP: `qaic-monitor-json -i enable_mdp.json`, then "
            "`qaic-util -s`.",
        ),
        judged(
            "ACS",
            Level.WARN if apart else Level.OK,
            "every SoC has an IOMMU group of its own" if apart else "does not keep SoCs apart",
            advice="Access control keeps SoCs from reaching each other: `qaic-util -a`, or `QAicChangeAcs.py all` with "
            "older SDKs, after each power cycle.",
        ),
        judged(
            "control timeout",
            Level.WARN if short else Level.OK,
            f"{text} s" if text else "not known",
            advice=f"For programs over several devices write {_SLICING_TIMEOUT_S} to "
            "/sys/module/qaic/parameters/control_resp_timeout_s.",
        ),
    ]


def _region_bytes(card: Path) -> int:
    """Size of the region through which SoCs reach each other; 0 when it is not known."""
    lines = _read(card / "resource").splitlines()
    words = lines[_P2P_REGION].split() if len(lines) > _P2P_REGION else []
    try:
        first, last = int(words[0], 16), int(words[1], 16)
    except (IndexError, ValueError):
        return 0
    return last - first + 1 if last > first else 0


def _memory(host: Host, *, simulated: bool) -> Finding:
    found = re.search(r"^MemTotal:\s+(\d+) kB", _read(host.root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return judged("memory", Level.WARN, "not known", advice="/proc/meminfo cannot be read.")
    size = int(found[1]) * 1024
    level = Level.FAIL if size < _LEAST_MEMORY else Level.OK if simulated or size >= _COMPILE_MEMORY else Level.WARN
    return judged(
        "memory",
        level,
        f"{size / _GIB:.0f} GiB",
        advice="The vendor asks for 512 GB for compiling large models; small ones take a few GB. Compile elsewhere if "
        "the compiler gets killed.",
    )


def _disk(cache: Path, *, simulated: bool) -> Finding:
    nearest = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    level = Level.FAIL if free < _LEAST_DISK else Level.OK if simulated or free >= _COMPILE_DISK else Level.WARN
    return judged(
        "disk",
        level,
        f"{free / _GIB:.0f} GiB free at {cache}",
        advice="The vendor asks for 1 TB for exported and compiled models. Free some, or put the cache elsewhere with "
        "QEFF_HOME.",
    )


def _limits(host: Host) -> list[Finding]:
    """Limits of this process that are too low; nothing where they are not known."""
    found = re.search(r"^Max open files\s+(\w+)", _read(host.root / "proc/self/limits"), re.MULTILINE)
    if found is None:
        return []
    low = found[1].isdigit() and int(found[1]) < _LEAST_FILES
    advice = f"Raise it to at least {_LEAST_FILES} with `ulimit -n` or in /etc/security/limits.conf."
    return [judged("open files", Level.WARN if low else Level.OK, f"at most {found[1]}", advice=advice)]


def _read(path: Path) -> str:
    """The text of a file without blanks around it; nothing when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
