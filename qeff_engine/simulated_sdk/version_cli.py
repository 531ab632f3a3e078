"""``qaic-version-util``: the SDK's versions. Standard library only."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_PACKAGES = ("platform", "apps")


def main(arguments: list[str], *, root: Path) -> int:
    """Print the versions of the packages that ``--platform`` and ``--apps`` name, of all without options.

    The form is that of the real tool as https://github.com/krai/ck-qaic (docker/README.md) shows it.
    """
    unknown = [argument for argument in arguments if argument not in {f"--{package}" for package in _PACKAGES}]
    if unknown:
        print(f"Unknown option {unknown[0]}.\nUsage: qaic-version-util [--platform] [--apps]", file=sys.stderr)
        return 1
    for package in _PACKAGES:
        if not arguments or f"--{package}" in arguments:
            print(f"{package}:AIC.{version_of(root, package=package)}")
    if not arguments:
        print("factory:not found")
    return 0


def version_of(root: Path, *, package: str) -> str:
    """The first ``base_version`` of a package's version file.

    Raises:
        OSError: the SDK is damaged.
    """
    path = root / "versions" / f"{package}.xml"
    found = re.search(r"<base_version>\s*([^<\s]+)\s*</base_version>", path.read_text())
    if found is None:
        raise OSError(f"{path} has no base_version. Install the simulated SDK again.")
    return found[1]


def at_least(version: str, *, wanted: tuple[int, int]) -> bool:
    """Whether a version such as ``1.20.4`` is ``wanted`` (major, minor) or newer."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) >= wanted
