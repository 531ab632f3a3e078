"""Versions of everything that can change a stage's output, without importing any of it. Standard library only."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

import qeff_engine
from qeff_engine import spec
from qeff_engine.errors import Infrastructure
from qeff_engine.sdk import location

ABSENT = "absent"  # version of something that this host does not have

# What a stage does not use must not void its results.
_PACKAGES_OF_STAGE: Mapping[spec.Stage, tuple[str, ...]] = {
    spec.Stage.RESOLVE: ("transformers", "gguf"),
    spec.Stage.QUANTIZE: ("torch", "transformers"),
    spec.Stage.EXPORT: ("torch", "transformers", "onnx", "onnxscript"),
    spec.Stage.COMPILE: (),
    spec.Stage.RUN: ("torch", "transformers"),
}
_SDK_STAGES = (spec.Stage.COMPILE, spec.Stage.RUN)


def versions(stage: spec.Stage, *, sdk_root: Path | None = None) -> dict[str, str]:
    """Version by name of what a stage uses here; :data:`ABSENT` for what is not installed."""
    found = {"engine": qeff_engine.__version__}
    found.update({package: package_version(package) for package in _PACKAGES_OF_STAGE[stage]})
    if stage in _SDK_STAGES:
        try:
            found.update(location.find(sdk_root).toolchain())
        except Infrastructure:
            found.update(sdk_apps=ABSENT, sdk_platform=ABSENT)
    return found


def package_version(package: str) -> str:
    """The installed version of a Python package, or :data:`ABSENT`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
