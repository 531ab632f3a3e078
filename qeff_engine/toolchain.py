"""Versions of everything that can change a stage's output, without importing any of it. Standard library only."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType

from qeff_engine.sdk import location

ABSENT = "absent"  # version of something that this host does not have

# Name in action keys: name of the distribution.
DISTRIBUTIONS: Mapping[str, str] = MappingProxyType(
    {
        "engine": "qeff-farm",
        "torch": "torch",
        "transformers": "transformers",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnxruntime": "onnxruntime",
        "gguf": "gguf",
    }
)


def versions(sdk: location.Sdk | None) -> dict[str, str]:
    """Version by name of what is installed on this host, and of the SDK; what is absent is left out."""
    found = {name: package_version(distribution) for name, distribution in DISTRIBUTIONS.items()}
    found = {name: version for name, version in found.items() if version != ABSENT}
    return found | (sdk.toolchain() if sdk is not None else {})


def package_version(package: str) -> str:
    """The installed version of a Python package, or :data:`ABSENT`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
