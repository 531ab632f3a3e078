"""What of the SDK, the devices and the libraries is on this host. Imports none of the libraries."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import qeff_engine
from qeff_engine import toolchain
from qeff_engine.errors import EngineError
from qeff_engine.library import cache
from qeff_engine.sdk import devices, location

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "gguf", "safetensors", "pillow")


def examine(sdk_root: Path | None = None) -> dict[str, Any]:
    """What was found, as JSON values; ``problems`` is empty when models can be compiled and run here."""
    packages = {name: toolchain.package_version(name) for name in _PACKAGES}
    problems = [
        f"The package {name} is not installed." for name, found in packages.items() if found == toolchain.ABSENT
    ]
    report: dict[str, Any] = {
        "engine": qeff_engine.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "cache": str(cache.default_root()),
        "sdk": None,
        "devices": [],
    }
    try:
        sdk = location.find(sdk_root)
        report["sdk"] = {"root": str(sdk.root), "versions": dict(sdk.versions), "simulated": sdk.simulated}
        report["sdk"]["compiler"] = _compiler(sdk, problems=problems)
        found = devices.discover(sdk)
        report["devices"] = [dataclasses.asdict(device) for device in found]
        if not any(device.ready for device in found):
            problems.append(f"None of the {len(found)} device(s) is ready.")
    except EngineError as error:
        problems.append(str(error))
    return {**report, "problems": problems}


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"engine    {report['engine']}, Python {report['python']}",
        "packages  " + ", ".join(f"{name} {version}" for name, version in report["packages"].items()),
        f"cache     {report['cache']}",
    ]
    sdk = report["sdk"]
    if sdk:
        versions = ", ".join(f"{name} {version}" for name, version in sdk["versions"].items()) or "unknown versions"
        lines.append(f"SDK       {sdk['root']} ({versions}){' simulated' if sdk['simulated'] else ''}")
        lines.append(f"compiler  {sdk['compiler'] or 'none'}")
    for device in report["devices"]:
        lines.append(
            f"device {device['qid']}  {device['status']}, {device['sku']}, {device['nsp_free']} of "
            f"{device['nsp_total']} cores and {device['dram_free_mb']} of {device['dram_total_mb']} MB free"
        )
    lines += [f"problem   {problem}" for problem in report["problems"]] or ["Models can be compiled and run here."]
    return "\n".join(lines)


def _compiler(sdk: location.Sdk, *, problems: list[str]) -> str | None:
    try:
        return sdk.compiler()[0]
    except EngineError as error:
        problems.append(str(error))
        return None
