"""The code that is installed, as far as stages run it: whether it is still the code that a process has imported.

A farm may be upgraded while it runs, and a checkout may be edited. A process keeps the modules that it has, and would
import others from the new code: so code is looked at before a stage starts, and results count as made by what ran.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

OURS = ("qeff_engine", "workers", "farm")  # each file of these is looked at
_LIBRARY_DIRECTORIES = ("site-packages", "dist-packages")  # these change when a package is installed or removed
_LOOK_EVERY_S = 0.25  # no more often: a stage that starts meanwhile has imported the old code, and counts as such


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """Code as it was found.

    Attributes:
        fingerprint: equal as long as nothing is changed.
        toolchain: versions by name, see :mod:`qeff_engine.toolchain`.
    """

    fingerprint: str
    toolchain: Mapping[str, str]


class Installed:
    """Knows the installed code.

    Args:
        packages: top-level packages of which each file counts.
        toolchain: finds the versions; called when the code has changed.
    """

    def __init__(self, packages: tuple[str, ...] = OURS, *, toolchain: Callable[[], Mapping[str, str]] = dict) -> None:
        self.packages = packages
        self._toolchain = toolchain
        self._lock = threading.Lock()
        self._code: Code | None = None
        self._looked_at = 0.0

    def now(self) -> Code:
        """The code as it is, or was a moment ago."""
        with self._lock:
            if self._code is None or time.monotonic() - self._looked_at > _LOOK_EVERY_S:
                self._code = self._look(self._code)
                self._looked_at = time.monotonic()
            return self._code

    def _look(self, known: Code | None) -> Code:
        found = fingerprint(self.packages)
        while known is None or known.fingerprint != found:
            known = Code(fingerprint=found, toolchain=dict(self._toolchain()))
            found = fingerprint(self.packages)  # it may have changed while its versions were read
        return known


def fingerprint(packages: tuple[str, ...]) -> str:
    """What changes with any file of some packages, and when a package is installed or removed."""
    installs = " ".join(f"{root} {root.stat().st_mtime_ns}" for root in _libraries())
    return f"{files_fingerprint(packages)} {hashlib.blake2b(installs.encode(), digest_size=8).hexdigest()}"


def files_fingerprint(packages: tuple[str, ...]) -> str:
    """A digest of when files of some packages were changed and how long they are."""
    digest = hashlib.blake2b(digest_size=16)
    for root in _directories(packages):
        for line in sorted(_lines(root)):
            digest.update(line)
    return digest.hexdigest()


def _directories(packages: tuple[str, ...]) -> list[Path]:
    specs = [importlib.util.find_spec(package) for package in packages]
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]


def _libraries() -> list[Path]:
    return [path for entry in sys.path if (path := Path(entry)).name in _LIBRARY_DIRECTORIES and path.is_dir()]


def late(names: frozenset[str], *, packages: tuple[str, ...]) -> list[str]:
    """Modules below the directories that are looked at that were imported and are not among ``names``."""
    beginnings = tuple(f"{root}{os.sep}" for root in [*_directories(packages), *_libraries()])
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name not in names and str(getattr(module, "__file__", None) or "").startswith(beginnings)
    )


def _lines(root: Path) -> list[bytes]:
    lines, left = [], [str(root)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        left.append(entry.path)
                    continue
                seen = entry.stat()
                lines.append(f"{entry.path} {seen.st_mtime_ns} {seen.st_size}\n".encode())
    return lines
