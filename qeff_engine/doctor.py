"""What of the SDK, the devices, the libraries and the host is fit for work. Imports none of the libraries."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import qeff_engine
from qeff_engine import toolchain
from qeff_engine.library import cache
from qeff_engine.sdk import installation
from qeff_engine.sdk.host import Finding, Host, Level, judged

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "gguf", "safetensors", "pillow")


def examine(sdk_root: Path | None = None, *, where: Host | None = None) -> dict[str, Any]:
    """What was found, as JSON values; ``problems`` is empty when models can be compiled and run here.

    Args:
        sdk_root: the SDK; by default where ``QAIC_SDK_ROOT`` points.
        where: the host; by default this one.
    """
    packages = {name: toolchain.package_version(name) for name in _PACKAGES}
    checkup = installation.examine(sdk_root=sdk_root, cache=cache.default_root(), where=where)
    findings = [_packages(packages), *checkup.findings]
    sdk = checkup.sdk
    return {
        "engine": qeff_engine.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "cache": str(cache.default_root()),
        "sdk": sdk
        and {"root": str(sdk.root), "versions": dict(sdk.versions), "simulated": sdk.simulated, **_compiler(findings)},
        "devices": [dataclasses.asdict(device) for device in checkup.devices],
        "checks": [dataclasses.asdict(finding) for finding in findings],
        "problems": [f"{item.found}. {item.advice}".strip() for item in findings if item.level is Level.FAIL],
    }


def text(report: dict[str, Any]) -> str:
    """The report for people: a line for every check, and below it what to do."""
    lines = [f"engine {report['engine']}, Python {report['python']}, cache {report['cache']}"]
    width = max(len(check["name"]) for check in report["checks"])
    lines += [f"{check['level']:<5} {check['name']:<{width}}  {check['found']}" for check in report["checks"]]
    for device in report["devices"]:
        lines.append(
            f"device {device['qid']}: {device['status']}, {device['sku']}, {device['nsp_free']} of "
            f"{device['nsp_total']} cores and {device['dram_free_mb']} of {device['dram_total_mb']} MB free"
        )
    lines += [f"{check['name']}: {check['advice']}" for check in report["checks"] if check["advice"]]
    if not report["problems"]:
        lines.append("Models can be compiled and run here.")
    return "\n".join(lines)


def _packages(packages: dict[str, str]) -> Finding:
    missing = [name for name, found in packages.items() if found == toolchain.ABSENT]
    return judged(
        "packages",
        Level.FAIL if missing else Level.OK,
        f"missing: {', '.join(missing)}" if missing else ", ".join(f"{name} {it}" for name, it in packages.items()),
        advice="Install them: pip install 'qeff-farm[engine]'.",
    )


def _compiler(findings: list[Finding]) -> dict[str, str | None]:
    found = next(finding for finding in findings if finding.name == "compiler")
    return {"compiler": found.found if found.level is Level.OK else None}
