"""Versions of everything that can change a stage's output, without importing any of it. Standard library only."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from qeff_engine.architectures import registry
from qeff_engine.sdk import location

_ENGINE = Path(__file__).parent
_DIGITS = 12
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
    if "engine" in found:  # the version of a checkout stays while its code changes
        found["engine"] += f"+{engine_digest()}"
    if outside := registry.from_outside():
        found["architectures"] = ", ".join(f"{name}: {outside[name]}" for name in sorted(outside))
    return found | (sdk.toolchain() if sdk is not None else {})


def engine_digest() -> str:
    """The beginning of the SHA-256 of the engine's files, by their names and contents wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted(_ENGINE.rglob("*"), key=lambda path: path.relative_to(_ENGINE).as_posix()):
        if path.suffix != ".pyc" and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(_ENGINE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:_DIGITS]


def package_version(package: str) -> str:
    """The installed version of a Python package, or :data:`ABSENT`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
